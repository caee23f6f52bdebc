"""The files of layers: immutable qcow2 files, one a layer, named by its id.

    layers/
      ID.qcow2       complete and never written to again by us; mode 0400
      ID.digest      after a merge: the digest of the file, while the store still has the old one
      .ID.…          being made: nobody's yet

A head becomes a layer by getting a second name here (a hard link), while a QEMU may still write to
it; it is one from the moment on that QEMU writes to another head. Two layers are made one by
``merge``: the new file takes the child's name by one rename, whoever has the old ones open keeps them,
and what is read through the new file never comes from the parent, whether the store knows of that
yet or not. Not for: deciding what may be merged or deleted (``plan.layers``).
"""

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from serai.disk.digests import tree_digest
from serai.disk.files import naming_disk_problems, sync_file, sync_folder, write_durably
from serai.disk.merging import check_layer, write_merged
from serai.disk.qcow2 import is_empty, read_head
from serai.disk.work import Progress, Pulse, no_progress, run_in_thread
from serai.errors import Bug, Code, HostFailure, Invalid
from serai.model.image import DiskFormat
from serai.model.machine import LayerFile
from serai.model.snapshot import Layer

LAYER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", re.ASCII)
NODE_DIGITS = 16
DIGEST_LIMIT = 200

Stamp = tuple[int, ...]


def layer_node(kind: str, name: str) -> str:
    """Return the name of the node that a layer or an image's disk is in QEMU."""
    return kind + name.replace("-", "")[:NODE_DIGITS]


class LayerFolder:
    """The folder of all layers. ``path`` is made when it is missing, for us alone (0700).

    All but ``merge``, ``hash``, ``inspect`` and ``verify`` is blocking and quick.
    """

    def __init__(self, path: Path) -> None:
        self.path_of_all = path
        self._found: dict[str, tuple[Stamp, str]] = {}
        self._merging = asyncio.Lock()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, layer_id: str) -> Path:
        """Return where the file of a layer is, or would be."""
        if not LAYER_ID.fullmatch(layer_id):
            raise Bug(Code.BUG, f"a layer can't be called {layer_id!r}")
        return self.path_of_all / f"{layer_id}.qcow2"

    def file(self, layer: Layer) -> LayerFile:
        """Return the layer as a part of a chain; its header is read as strictly as a stranger's.

        Raises HostFailure (``snapshot-corrupt``) when it is gone, unsound or of another size.
        """
        path = self.path(layer.id)
        try:
            found = read_head(path).virtual_size
        except (Invalid, OSError) as error:
            raise _corrupt(layer, _why(error)) from error
        if found != layer.virtual_size:
            raise _corrupt(layer, f"its disk has {found} bytes instead of {layer.virtual_size}")
        return LayerFile(
            path=str(path), format=DiskFormat.QCOW2, read_only=True, node=layer_node("l", layer.id)
        )

    def freeze_head(self, head: Path, layer_id: str) -> None:
        """Give a head its second name, as a layer; durable, with what is in it so far.

        A QEMU that has it open may go on writing to it. ``delete`` is the undo, and the caller removes
        the first name when nothing writes to it any more. Doing it again changes nothing.
        """
        target = self.path(layer_id)
        with naming_disk_problems(f"freezing the disk {head}"):
            sync_file(head)
            with contextlib.suppress(FileExistsError):
                os.link(head, target, follow_symlinks=False)
            target.chmod(0o400)
            sync_folder(self.path_of_all)

    def drop_head(self, head: Path) -> None:
        """Remove the name that a frozen head had with its guest (done already: fine); durable."""
        with naming_disk_problems(f"removing {head}"):
            head.unlink(missing_ok=True)
            sync_folder(head.parent)

    def delete(self, layer_id: str) -> None:
        """Delete a layer (done already: fine). A head that still has its own name becomes writable."""
        path = self.path(layer_id)
        self._found.pop(layer_id, None)
        with naming_disk_problems(f"deleting the layer {layer_id}"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_nlink > 1:
                    path.chmod(0o600)
                path.unlink()
            _digest_path(path).unlink(missing_ok=True)
            sync_folder(self.path_of_all)

    def size(self, layer_id: str) -> int:
        """Return the bytes that a layer takes on the disk; 0 when it is not there."""
        try:
            return self.path(layer_id).stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def is_empty(self, layer_id: str) -> bool:
        """Tell whether nothing was ever written to a layer: what is read through it is its parent's."""
        with naming_disk_problems("reading a disk"):
            return is_empty(self.path(layer_id))

    def stored(self) -> set[str]:
        """Return the ids of all layers that have a file."""
        return {
            path.stem for path in self.path_of_all.glob("*.qcow2") if LAYER_ID.fullmatch(path.stem)
        }

    def orphans(self, known: Collection[str]) -> list[str]:
        """Return the ids of files that belong to no layer in ``known``, sorted."""
        return sorted(self.stored() - set(known))

    def sweep(self, known: Collection[str] | None = None) -> list[str]:
        """Remove what an interrupted merge left and, given ``known``, the orphans; return names.

        Call it when nothing is being frozen or merged: when the daemon starts.
        """
        with naming_disk_problems("sweeping the layers"):
            left = [path for path in self.path_of_all.iterdir() if _is_left_over(path)]
            for path in left:
                path.unlink()
        gone = [] if known is None else self.orphans(known)
        for layer_id in gone:
            self.delete(layer_id)
        return sorted(path.name for path in left) + gone

    async def hash(self, layer_id: str, *, progress: Progress = no_progress) -> str:
        """Return the digest of a layer's file (``digests.tree_digest``).

        Raises HostFailure (``snapshot-corrupt``) when there is none.
        """
        path = self.path(layer_id)
        try:
            stamp = _stamp(path)
            digest = await run_in_thread(lambda pulse: _hash(path, pulse), _telling(progress))
            if _stamp(path) == stamp:
                self._found[layer_id] = (stamp, digest)
        except OSError as error:
            raise _corrupt(layer_id, _why(error)) from error
        return digest

    def is_settled(self, layer_id: str) -> bool:
        """Tell whether nobody writes to a layer: it is no guest's head any more."""
        try:
            return self.path(layer_id).stat().st_nlink == 1
        except FileNotFoundError:
            return False

    async def inspect(self, layer_id: str) -> None:
        """Look at all tables of a layer, as at a stranger's; HostFailure (``snapshot-corrupt``)."""
        path = self.path(layer_id)
        try:
            await run_in_thread(lambda pulse: check_layer(path, pulse))
        except (Invalid, OSError) as error:
            raise _corrupt(layer_id, _why(error)) from error

    async def verify(
        self, layer: Layer, *, progress: Progress = no_progress, again: bool = False
    ) -> None:
        """Check that a layer's file is what was stored, once in a daemon's life and file.

        With ``again`` it is read whether or not it was before. Without a digest in ``layer`` only its
        header is checked. Raises HostFailure (``snapshot-corrupt``) that names the layer.
        """
        path = self.path(layer.id)
        self.file(layer)
        if not layer.digest:
            return
        stamp, digest = self._found.get(layer.id, ((), ""))
        if again or stamp != _stamp(path):
            digest = await self.hash(layer.id, progress=progress)
        if digest not in (layer.digest, _read_digest(path)):
            raise _corrupt(layer, "its content is not what was stored")

    async def merge(
        self, child_id: str, parent_id: str, *, progress: Progress = no_progress
    ) -> str:
        """Put what shows through the child of the parent into a new file for the child.

        Returns the digest of the new file; durable when it returns. Guests may have both open: they
        keep what they have. The parent's file stays and is the caller's to delete, once its own
        list says that the child stands on what the parent stood on. Until then ``verify`` takes the
        new digest as well as the stored one. One at a time; done again it changes nothing. On failure
        both are as they were. Raises HostFailure: ``snapshot-corrupt`` for what can't be read or is
        not sound, ``disk-full``.
        """
        child, parent = self.path(child_id), self.path(parent_id)
        async with self._merging:
            try:
                return await run_in_thread(
                    lambda pulse: self._merge(child, parent, pulse), _telling(progress)
                )
            except Invalid as error:
                raise _corrupt(f"{child_id} or {parent_id}", error.message) from error

    def _merge(self, child: Path, parent: Path, pulse: Pulse) -> str:
        made = child.with_name(f".{child.stem}.new")
        with naming_disk_problems(f"merging the layers {child.stem} and {parent.stem}"):
            made.unlink(missing_ok=True)
            try:
                write_merged(made, child, parent, pulse)
                digest = _hash(made, pulse)
                _write_digest(child, digest)
                made.chmod(0o400)
                made.rename(child)
            finally:
                made.unlink(missing_ok=True)
            sync_folder(self.path_of_all)
        return digest


def _telling(progress: Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress("layers", done, total, "reading layers")


def _is_left_over(path: Path) -> bool:
    """Tell whether this belongs to work that was interrupted, or to no layer any more."""
    lost = path.suffix == ".digest" and not path.with_suffix(".qcow2").exists()
    return path.name.startswith(".") or lost


def _hash(path: Path, pulse: Pulse) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return tree_digest(descriptor, os.fstat(descriptor).st_size, pulse)
    finally:
        os.close(descriptor)


def _stamp(path: Path) -> Stamp:
    facts = path.stat(follow_symlinks=False)
    return (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".digest")


def _write_digest(path: Path, digest: str) -> None:
    """Note what a merged file's digest is, durably and before the file has its name."""
    temporary = path.with_name(f".{path.stem}.digest")
    temporary.unlink(missing_ok=True)
    try:
        write_durably(temporary, digest.encode())
        temporary.rename(_digest_path(path))
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _read_digest(path: Path) -> str:
    try:
        with _digest_path(path).open("rb") as file:
            return file.read(DIGEST_LIMIT).decode("ascii", "replace")
    except FileNotFoundError:
        return ""


def _why(error: Exception) -> str:
    match error:
        case Invalid():
            return error.message
        case FileNotFoundError():
            return "its file is gone"
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error)


def _corrupt(layer: Layer | str, reason: str) -> HostFailure:
    layer_id = layer if isinstance(layer, str) else layer.id
    return HostFailure(
        Code.SNAPSHOT_CORRUPT,
        f"the layer {layer_id} can't be used: {reason}",
        hint="See what is damaged: serai check",
        details={"layer": layer_id},
    )
