"""The volumes and pools of the engine in memory."""

from collections.abc import Callable

import msgspec

from serai.errors import Code, Conflict, NotFound
from serai.model.actions import (
    Action,
    AttachVolume,
    ChangeVolume,
    CloneVolume,
    CreatePool,
    CreateVolume,
    DeletePool,
    DeleteVolume,
    DeleteVolumeSnapshot,
    DetachVolume,
    ExportVolume,
    ImportVolume,
    ServeVolume,
    SnapshotVolume,
    VolumeAction,
)
from serai.model.guest import Guest
from serai.model.volume import (
    FEATURES,
    NO_LIMITS,
    Attachment,
    Pool,
    PoolKind,
    VolumeInfo,
    VolumeSnapshotInfo,
)
from serai.plan.volume import check_growth, check_limits, round_size
from serai.units import check_snapshot_name, check_volume_name, shorten

NOW = 1_700_000_000.5
OF_VOLUMES = VolumeAction | CreateVolume | ImportVolume | CreatePool | DeletePool


def make_volume(name: str, size: int = 1 << 30, **changes: object) -> VolumeInfo:
    """Return a volume as the engine would show it."""
    volume = VolumeInfo(
        name=name,
        id=f"volume-{name}",
        pool="default",
        size=size,
        own=1 << 20,
        shared=0,
        serial="0123456789abcdef0123",
        limits=NO_LIMITS,
        note="",
        created_at=NOW,
        version=1,
        attached=(),
        snapshots=(),
    )
    return msgspec.structs.replace(volume, **changes)


def make_pool(name: str) -> Pool:
    """Return a pool as the engine would show it."""
    return Pool(
        name=name,
        kind=PoolKind.DIRECTORY,
        path=f"/pools/{name}",
        available=True,
        size=1 << 40,
        free=1 << 39,
        virtual=0,
        used=0,
        volumes=0,
        features=FEATURES[PoolKind.DIRECTORY],
        created_at=NOW,
    )


class FakeVolumes:
    """All volumes and pools by name. ``find_guest`` gives a guest or raises."""

    def __init__(self, find_guest: Callable[[str], Guest]) -> None:
        self.volumes: dict[str, VolumeInfo] = {}
        self.pools: dict[str, Pool] = {"default": make_pool("default")}
        self._find_guest = find_guest

    def volume(self, name_or_id: str) -> VolumeInfo:
        for each in self.volumes.values():
            if name_or_id in (each.name, each.id):
                return each
        raise NotFound(Code.VOLUME_NOT_FOUND, f"there is no volume {shorten(name_or_id)}")

    def pool(self, name: str) -> Pool:
        if name not in self.pools:
            raise NotFound(Code.POOL_NOT_FOUND, f"there is no pool {shorten(name)}")
        return self.pools[name]

    def apply(self, action: Action) -> list[str]:
        """Do it; return the subject and the ids, or what else, it made."""
        match action:
            case CreateVolume(name=name, size=size):
                check_limits(action.limits)
                self.pool(action.pool)
                return self._add(name, round_size(size), limits=action.limits, note=action.note)
            case ImportVolume(name=name):
                self.pool(action.pool)
                return self._add(name, 1 << 20)
            case CreatePool(name=name):
                if check_volume_name(name) in self.pools:
                    raise Conflict(Code.POOL_EXISTS, f"there is a pool {name} already")
                self.pools[name] = make_pool(name)
                return [name]
            case DeletePool(pool=name):
                if self.pool(name).name == "default":
                    raise Conflict(Code.POOL_IN_USE, "the pool default is always there")
                del self.pools[name]
                return [name]
        assert isinstance(action, VolumeAction)
        return self._change(self.volume(action.volume), action)

    def _add(self, name: str, size: int, **changes: object) -> list[str]:
        if check_volume_name(name) in self.volumes:
            raise Conflict(Code.VOLUME_EXISTS, f"there is a volume {name} already")
        self.volumes[name] = make_volume(name, size, **changes)
        return [name, self.volumes[name].id]

    def _change(self, volume: VolumeInfo, action: VolumeAction) -> list[str]:
        changes: dict[str, object] = {}
        made: list[str] = []
        match action:
            case AttachVolume(guest=guest):
                if volume.attached:
                    raise Conflict(Code.VOLUME_IN_USE, "somebody has it")
                found = self._find_guest(guest)
                one = Attachment(
                    guest=found.name,
                    guest_id=found.id,
                    read_only=action.read_only,
                    boot=action.boot,
                )
                changes["attached"] = (one,)
            case DetachVolume():
                if not volume.attached:
                    raise Conflict(Code.VOLUME_NOT_ATTACHED, "nobody has it")
                changes["attached"] = ()
            case ChangeVolume(size=size, limits=limits):
                if size is not msgspec.UNSET:
                    check_growth(volume.name, volume.size, round_size(size))
                    changes["size"] = round_size(size)
                if limits is not msgspec.UNSET:
                    changes["limits"] = check_limits(limits)
            case CloneVolume(name=name):
                return [volume.name, self._add(name, volume.size)[1]]
            case SnapshotVolume():
                name = check_snapshot_name(action.name or "snap-1")
                new = VolumeSnapshotInfo(
                    name=name,
                    id=f"{volume.id}-{name}",
                    created_at=NOW,
                    size=1,
                    own=0,
                    note=action.note,
                )
                changes["snapshots"] = (*volume.snapshots, new)
                made = [new.id]
            case DeleteVolumeSnapshot(snapshot=name):
                if name not in {each.name for each in volume.snapshots}:
                    raise NotFound(Code.SNAPSHOT_NOT_FOUND, "there is none")
                changes["snapshots"] = tuple(each for each in volume.snapshots if each.name != name)
            case ExportVolume(path=path):
                made = ["sha256:00", path]
            case ServeVolume():
                pass
            case DeleteVolume():
                del self.volumes[volume.name]
                return [volume.name]
        self.volumes[volume.name] = msgspec.structs.replace(volume, **changes)
        return [volume.name, *made]
