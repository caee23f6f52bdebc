"""The async SDK: ``async with serai.aio.connect() as inn:``. See ``serai.client.asynchronous``."""

from serai.client.asynchronous import AsyncGuest, AsyncInn, AsyncSchedule, AsyncSnapshot, connect

__all__ = ["AsyncGuest", "AsyncInn", "AsyncSchedule", "AsyncSnapshot", "connect"]
