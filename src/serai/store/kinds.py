"""What is kept whole, kind by kind: where it is, what names it, in which order it is read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
import sqlalchemy as sa

from serai.store.records import (
    FORWARD_BODY,
    GROUP_BODY,
    GUEST_BODY,
    IMAGE_BODY,
    JOB_BODY,
    LAYER_BODY,
    NETWORK_BODY,
    POOL_BODY,
    SCHEDULE_BODY,
    SNAPSHOT_BODY,
    USAGE_BODY,
    VOLUME_BODY,
    Damaged,
    decode,
)
from serai.store.schema import (
    FORWARDS,
    GROUPS,
    GUESTS,
    IMAGES,
    JOBS,
    LAYERS,
    NETWORKS,
    POOLS,
    SCHEDULES,
    SNAPSHOTS,
    USAGE,
    VOLUMES,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of thing. ``key`` names one of them, and ``order`` is in which they are read."""

    table: sa.Table
    key: sa.Column[str]
    order: sa.Column[Any]
    decoder: msgspec.json.Decoder[T]

    def read(self, connection: sa.Connection) -> list[T]:
        """Return all that can be read."""
        return [each for each in self._decoded(connection) if not isinstance(each, Damaged)]

    def read_damaged(self, connection: sa.Connection) -> list[Damaged]:
        """Return all that can't be read."""
        return [each for each in self._decoded(connection) if isinstance(each, Damaged)]

    def _decoded(self, connection: sa.Connection) -> Iterator[T | Damaged]:
        query = sa.select(self.key, self.table.c.body).order_by(self.order)
        for key, body in connection.execute(query):
            row: T | Damaged = decode(self.table, key, body, self.decoder)
            yield row


GUEST = Kind(GUESTS, GUESTS.c.id, GUESTS.c.number, GUEST_BODY)
IMAGE = Kind(IMAGES, IMAGES.c.name, IMAGES.c.name, IMAGE_BODY)
SNAPSHOT = Kind(SNAPSHOTS, SNAPSHOTS.c.id, SNAPSHOTS.c.id, SNAPSHOT_BODY)
SCHEDULE = Kind(SCHEDULES, SCHEDULES.c.id, SCHEDULES.c.id, SCHEDULE_BODY)
LAYER = Kind(LAYERS, LAYERS.c.id, LAYERS.c.id, LAYER_BODY)
VOLUME = Kind(VOLUMES, VOLUMES.c.id, VOLUMES.c.name, VOLUME_BODY)
POOL = Kind(POOLS, POOLS.c.name, POOLS.c.name, POOL_BODY)
NETWORK = Kind(NETWORKS, NETWORKS.c.id, NETWORKS.c.name, NETWORK_BODY)
GROUP = Kind(GROUPS, GROUPS.c.id, GROUPS.c.name, GROUP_BODY)
FORWARD = Kind(FORWARDS, FORWARDS.c.id, FORWARDS.c.outside, FORWARD_BODY)
JOB = Kind(JOBS, JOBS.c.id, JOBS.c.seq, JOB_BODY)
PORT_USAGE = Kind(USAGE, USAGE.c.id, USAGE.c.id, USAGE_BODY)

KINDS: tuple[Kind[Any], ...] = (
    *(GUEST, IMAGE, SNAPSHOT, SCHEDULE, LAYER, VOLUME, POOL),
    *(NETWORK, GROUP, FORWARD, JOB),
)
"""All but ``PORT_USAGE``: nobody is told when that is damaged, it is counted anew."""
