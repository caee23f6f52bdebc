"""The keeper of layers: two are made one where that is possible, and each gets a digest.

A layer's digest is what later tells whether a bit of it has changed. It is taken once nobody writes to
the layer any more, outside the freeze, so that no guest and no fork waits for it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from serai.engine.house import House
from serai.errors import Code, HostFailure
from serai.model.snapshot import Layer
from serai.plan.layers import mergeable
from serai.store.changes import DropLayer, PutLayer


class LayerKeeper:
    """Merges and seals layers, one thing at a time."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._one = asyncio.Lock()
        self._unsound: set[str] = set()

    async def turn(self) -> str:
        """Merge two layers or, if none can be, seal one; return a sentence, or "" for nothing.

        What is found not to be sound is told of once, and left alone by later turns.
        """
        sentence = await self.merge_one()
        if sentence:
            return sentence
        for layer in list(self._house.shelf.layers.values()):
            if layer.digest or layer.id in self._unsound:
                continue
            with self._noting(layer.id):
                if await self.seal(layer.id):
                    return f"the layer {layer.id} has a digest now"
        return ""

    @contextmanager
    def _noting(self, *ids: str) -> Iterator[None]:
        """Note that one of these layers is not sound, when that is what is raised."""
        try:
            yield
        except HostFailure as error:
            if error.code is Code.SNAPSHOT_CORRUPT:
                self._unsound |= set(ids)
            raise

    async def merge_one(self) -> str:
        """Make one layer of two where that is possible; return a sentence, or "" if there is none."""
        async with self._one:
            shelf = self._house.shelf
            pairs = [
                pair
                for pair in mergeable(shelf.layers, shelf.tops())
                if not self._unsound.intersection(pair) and self._can_be_read(*pair)
            ]
            if not pairs or not shelf.is_whole:  # what can't be read may stand on any of them
                return ""
            child, parent = (shelf.layers[each] for each in pairs[0])
            with self._noting(child.id, parent.id), shelf.under_way.on(child.id, parent.id):
                return await self._merge(child, parent)

    async def _merge(self, child: Layer, parent: Layer) -> str:
        shelf, folder = self._house.shelf, self._house.pools.layers_of(child)
        digest = await folder.merge(child.id, parent.id)
        if shelf.layers.get(child.id) is not child or shelf.layers.get(parent.id) is not parent:
            await self._forget_merged(child, parent)
            return ""
        merged = msgspec.structs.replace(
            child,
            parent=parent.parent,
            image_digest=parent.image_digest,
            size=folder.size(child.id),
            digest=digest,
        )
        await self._house.journal.commit(PutLayer(merged), DropLayer(parent.id))
        shelf.layers[child.id] = merged
        shelf.layers.pop(parent.id, None)
        await shelf.openers.done()
        await asyncio.to_thread(folder.delete, parent.id)
        return f"the layers {child.id} and {parent.id} are one now"

    async def _forget_merged(self, *layers: Layer) -> None:
        """Nobody needs them any more since the merge began: their files are not to come back."""
        for layer in layers:
            if layer.id not in self._house.shelf.layers:
                await asyncio.to_thread(self._house.pools.layers_of(layer).delete, layer.id)

    def _can_be_read(self, *ids: str) -> bool:
        """Tell whether layers are there, and nobody writes to one: a guest does until it is frozen."""
        shelf = self._house.shelf
        return not shelf.under_way.ids().intersection(ids) and all(
            self._is_there(each) and self._house.pools.layers_of(each).is_settled(each.id)
            for each in (shelf.layers[layer_id] for layer_id in ids)
        )

    def _is_there(self, layer: Layer) -> bool:
        """Tell whether the pool that a layer lies in can be got at."""
        return self._house.pools.is_available(layer.pool)

    async def seal(self, layer_id: str) -> bool:
        """Look at a layer that has no digest, as at a stranger's image, and note its digest.

        False when it has one, is gone or may still be written to; then it is left for later. Raises
        HostFailure (``snapshot-corrupt``) when it is not sound.
        """
        async with self._one:
            shelf = self._house.shelf
            layer = shelf.layers.get(layer_id)
            if layer is None or layer.digest or layer_id in shelf.under_way.ids():
                return False
            if not self._is_there(layer):
                return False
            folder = self._house.pools.layers_of(layer)
            folder.file(layer)
            if not folder.is_settled(layer_id):
                return False
            await folder.inspect(layer_id)
            digest = await folder.hash(layer_id)
            if shelf.layers.get(layer_id) is not layer:
                return False
            sealed = msgspec.structs.replace(layer, digest=digest)
            await self._house.journal.commit(PutLayer(sealed, if_there=True))
            if shelf.layers.get(layer_id) is layer:
                shelf.layers[layer_id] = sealed
            return True
