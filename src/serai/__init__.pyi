from serai import aio as aio
from serai import errors as errors
from serai.client.guests import Guest as Guest
from serai.client.guests import Snapshot as Snapshot
from serai.client.inn import Inn as Inn
from serai.client.inn import connect as connect
from serai.client.schedules import Schedule as Schedule
from serai.client.volumes import Volume as Volume
from serai.client.words import Result as Result
from serai.errors import SeraiError as SeraiError
from serai.model.schedule import Keep as Keep

__all__ = [
    "Guest",
    "Inn",
    "Keep",
    "Result",
    "Schedule",
    "SeraiError",
    "Snapshot",
    "Volume",
    "aio",
    "connect",
    "errors",
]
