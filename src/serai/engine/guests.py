"""Who is here: every guest's task, by id and by name.

    names ──▶ id ──▶ driver (one task a guest) ──▶ its record, state and image

What guests hold in the house (names, numbers, ports) is claimed before one is owned, and released when
it is forgotten.
"""

from serai.engine.driver import GuestDriver, Script
from serai.engine.house import House
from serai.engine.procedures import PHASES, PROCEDURES, start_by_policy
from serai.engine.running import react
from serai.errors import Code, Conflict, HostFailure, NotFound
from serai.model.guest import GuestRecord
from serai.model.image import Image, ImageKind
from serai.model.lifecycle import Deny, GuestState, Verb, admit
from serai.plan.admission import refusal
from serai.units import shorten

VM_SCRIPT = Script(
    procedures=PROCEDURES, phases=PHASES, start_by_policy=start_by_policy, react=react
)


class Guests:
    """All guests of a house. ``by_id`` is read by others and changed only here.

    ``coming`` are those that ``GuestCreator`` is storing just now; ``damaged`` the ids of those whose records
    can't be read.
    """

    def __init__(self, house: House) -> None:
        self._house = house
        self.by_id: dict[str, GuestDriver] = {}
        self.coming: set[GuestDriver] = set()
        self.damaged: set[str] = set()

    def all(self) -> list[GuestDriver]:
        """Return all guests that belong to somebody."""
        return [each for each in self.by_id.values() if not each.record.is_spare]

    def find(self, name_or_id: str) -> GuestDriver:
        """Return one guest; NotFound (``guest-not-found``)."""
        guest_id = self._house.names.owner(name_or_id) or name_or_id
        driver = self.by_id.get(guest_id)
        if driver is not None and driver.record.is_spare:
            driver = None
        if driver is None and guest_id in self.damaged:
            raise HostFailure(
                Code.DATABASE_FAILED,
                f"what the database has of the guest {shorten(name_or_id)} can't be read",
                hint="Its volumes are untouched; the daemon's log says more: serai daemon status",
                details={"id": guest_id},
            )
        if driver is None:
            raise NotFound(
                Code.GUEST_NOT_FOUND,
                f"there is no guest {shorten(name_or_id)}",
                hint="See which there are: serai list",
            )
        return driver

    def by_name(self, name: str) -> GuestDriver | None:
        """Return the guest of that name, if there is one."""
        return self.by_id.get(self._house.names.owner(name) or "")

    def records(self) -> list[GuestRecord]:
        """Return the records of all guests."""
        return [each.record for each in self.by_id.values()]

    def look(self, guest: str) -> GuestDriver:
        """Return a guest whose screen and console can be looked at; Conflict (``guest-state``)."""
        driver = self.find(guest)
        admission = admit(driver.state, Verb.LOOK)
        if isinstance(admission, Deny):
            raise refusal(driver.name, driver.state, Verb.LOOK, admission.reason)
        if driver.instance is None:
            raise Conflict(Code.GUEST_STATE, f"{driver.name} is {driver.state}, try again")
        return driver

    def make(self, record: GuestRecord, image: Image | None, state: GuestState) -> GuestDriver:
        """Return the task of a guest, not yet begun; without an image it can still be deleted."""
        image = image or _lost_image(record)
        return GuestDriver(record, image, self._house, VM_SCRIPT, state, self._forget)

    def own(self, driver: GuestDriver) -> None:
        """Take a guest that is stored into the house, and begin its task."""
        self.by_id[driver.record.id] = driver
        self._house.supervisor.start(driver.run(), name=f"guest {driver.name}")

    def _forget(self, driver: GuestDriver) -> None:
        self.by_id.pop(driver.record.id, None)
        self._house.names.release(driver.name, driver.record.id)
        self._house.names.release_number(driver.record.number)
        self._house.fabric.release(driver.record.ports)
        self._house.fabric.forget_forwards(driver.record.id)

    def digests_in_use(self) -> set[str]:
        """Return the digests of the images that guests, snapshots and layers stand on."""
        house = self._house
        drivers = (*self.by_id.values(), *self.coming)
        used = {each.record.image_digest for each in drivers}
        used |= {each.guest.image_digest for each in house.shelf.snapshots.values()}
        records = [each.record for each in drivers]
        records += [each.guest for each in house.shelf.snapshots.values()]
        used |= {each.medium.digest for each in records if each.medium is not None}
        return used | {each.image_digest for each in house.shelf.layers.values()}


def _lost_image(record: GuestRecord) -> Image:
    """Stand in for an image whose files are gone: the guest is shown, and can be deleted."""
    return Image(
        name=record.spec.image,
        digest=record.image_digest,
        kind=ImageKind.DISK,
        created_at=record.created_at,
        size=0,
    )
