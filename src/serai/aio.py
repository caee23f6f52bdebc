"""The async SDK: ``async with serai.aio.connect() as inn:``. See ``serai.client.inn_async``."""

from serai.client.guests_async import AsyncGuest, AsyncSnapshot
from serai.client.inn_async import AsyncInn, connect
from serai.client.schedules_async import AsyncSchedule
from serai.client.volumes_async import AsyncVolume

__all__ = ["AsyncGuest", "AsyncInn", "AsyncSchedule", "AsyncSnapshot", "AsyncVolume", "connect"]
