"""Checking the storage."""

from serai.api.bodies import CheckBody, WaitQuery
from serai.api.calls import Call
from serai.model.actions import CheckStorage


def check_storage(call: Call[WaitQuery, CheckBody]) -> CheckStorage:
    """Check the storage.

    All records are compared with the files, and all layers, memories and images are read. Guests go on
    meanwhile. Snapshots that stand on what is not sound become `broken`, with a problem that says why;
    broken ones that are sound again become `ready`. With `repair` files that nobody has are deleted.
    What was found is the `report` of the job.
    """
    return CheckStorage(repair=call.body.repair)
