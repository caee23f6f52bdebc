"""The async SDK: ``async with serai.aio.connect() as inn:``. See ``serai.client.asynchronous``."""

from serai.client.asynchronous import AsyncGuest, AsyncInn, AsyncSchedule, AsyncSnapshot, connect
from serai.client.volumes_async import AsyncVolume

__all__ = ["AsyncGuest", "AsyncInn", "AsyncSchedule", "AsyncSnapshot", "AsyncVolume", "connect"]
