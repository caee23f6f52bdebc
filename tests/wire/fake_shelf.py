"""The snapshots of the engine in memory: names, a tree, the one that a guest stands on."""

import msgspec

from serai.errors import Code, Conflict, NotFound
from serai.model.actions import ChangeSnapshot, CreateSnapshot, DeleteSnapshot, RestoreSnapshot
from serai.model.guest import Guest
from serai.model.lifecycle import ON_STATES
from serai.model.snapshot import Snapshot, SnapshotState
from serai.units import check_snapshot_name, shorten

MADE_AT = 1_700_000_000.5
OWN, SHARED = 3 << 20, 40 << 20


class FakeShelf:
    """All snapshots by id, and for each guest the one that it stands on."""

    def __init__(self) -> None:
        self.all: dict[str, Snapshot] = {}
        self.current: dict[str, str] = {}
        self._made = 0

    def of(self, guest: Guest) -> list[Snapshot]:
        return [each for each in self.all.values() if each.guest_id == guest.id]

    def tree(self, guest: Guest) -> list[Snapshot]:
        """Return a guest's snapshots, each after its parent."""
        found: list[Snapshot] = []

        def walk(parent: str, depth: int) -> None:
            for each in self.of(guest):
                if each.parent == parent:
                    current = self.current.get(guest.id) == each.id
                    found.append(
                        msgspec.structs.replace(
                            each, depth=depth, is_current=current, guest=guest.name
                        )
                    )
                    walk(each.id, depth + 1)

        walk("", 0)
        return found

    def find(self, guest: Guest, name_or_id: str) -> Snapshot:
        for each in self.tree(guest):
            if name_or_id in (each.name, each.id):
                return each
        raise NotFound(
            Code.SNAPSHOT_NOT_FOUND,
            f"{guest.name} has no snapshot {shorten(name_or_id)}",
            hint=f"See which it has: serai snapshot list {guest.name}",
        )

    def count_forks(self, snapshot_id: str, more: int) -> None:
        snapshot = self.all[snapshot_id]
        self.all[snapshot_id] = msgspec.structs.replace(snapshot, forks=snapshot.forks + more)

    def apply(
        self,
        guest: Guest,
        action: CreateSnapshot | ChangeSnapshot | DeleteSnapshot | RestoreSnapshot,
    ) -> list[str]:
        """Do it; return the id of what was made."""
        if isinstance(action, CreateSnapshot):
            return [self._create(guest, action)]
        snapshot = self.find(guest, action.snapshot)
        match action:
            case RestoreSnapshot():
                self._restore(guest, snapshot, action.force)
            case ChangeSnapshot():
                self._change(guest, snapshot, action)
            case DeleteSnapshot():
                self._delete(guest, snapshot)
        return []

    def _check_free(self, guest: Guest, name: str) -> str:
        if check_snapshot_name(name) in {each.name for each in self.of(guest)}:
            raise Conflict(Code.SNAPSHOT_EXISTS, f"{guest.name} has a snapshot {name} already")
        return name

    def _create(self, guest: Guest, action: CreateSnapshot) -> str:
        name = self._check_free(guest, action.name or f"snap-{len(self.of(guest)) + 1}")
        self._made += 1
        made = Snapshot(
            name=name, id=f"5a{self._made:030x}", guest=guest.name, guest_id=guest.id,
            state=SnapshotState.READY, created_at=MADE_AT + self._made,
            parent=self.current.get(guest.id, ""), depth=0, is_current=True,
            with_memory=action.memory and guest.state in ON_STATES, quiesced=action.quiesce,
            note=action.note, schedule="", own=OWN, shared=SHARED, forks=0,
        )  # fmt: skip
        self.all[made.id] = made
        self.current[guest.id] = made.id
        return made.id

    def _restore(self, guest: Guest, snapshot: Snapshot, force: bool) -> None:
        if guest.state in ON_STATES and not force:
            raise Conflict(
                Code.UNSAVED_WORK,
                f"what {guest.name} did since its last snapshot would be lost",
                hint="Make a snapshot of it first, or restore with --force.",
            )
        self.current[guest.id] = snapshot.id

    def _change(self, guest: Guest, snapshot: Snapshot, action: ChangeSnapshot) -> None:
        changes: dict[str, str] = {}
        if action.name is not msgspec.UNSET:
            changes["name"] = self._check_free(guest, action.name)
        if action.note is not msgspec.UNSET:
            changes["note"] = action.note
        self.all[snapshot.id] = msgspec.structs.replace(self.all[snapshot.id], **changes)

    def _delete(self, guest: Guest, snapshot: Snapshot) -> None:
        for each in self.of(guest):
            if each.parent == snapshot.id:
                self.all[each.id] = msgspec.structs.replace(each, parent=snapshot.parent)
        if self.current.get(guest.id) == snapshot.id:
            self.current[guest.id] = snapshot.parent
        del self.all[snapshot.id]
