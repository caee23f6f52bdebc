"""The keeper of networks: the jobs that make, change and delete them.

A network is on the host before it is stored: what is stored works, or ``problem`` says what does
not any more. What an interrupted job has left on the host is swept away at the daemon's next start.
"""

import msgspec

from serai.engine.cabling import Cabling
from serai.engine.carrying import Carrier
from serai.engine.fabric import Fabric
from serai.engine.house import House
from serai.engine.jobs import LiveJob
from serai.errors import Code, Conflict
from serai.model.actions import CreateNetwork, DeleteNetwork, SetNetwork
from serai.model.event import Event, EventKind
from serai.model.job import Job
from serai.model.network import Network, NetworkMode, NetworkRecord
from serai.plan.network import change_network, check_network, check_removal
from serai.store.changes import DropNetwork, PutNetwork


class NetworkKeeper:
    """All that is done with networks."""

    def __init__(self, house: House, carrier: Carrier) -> None:
        self._house = house
        self._carrier = carrier

    @property
    def _fabric(self) -> Fabric:
        return self._house.fabric

    @property
    def _cabling(self) -> Cabling:
        return self._house.cabling

    def all(self) -> list[Network]:
        """Return all networks."""
        return [self._fabric.show_network(each) for each in self._fabric.networks.values()]

    def one(self, name_or_id: str) -> Network:
        """Return one; NotFound (``network-not-found``)."""
        return self._fabric.show_network(self._fabric.network(name_or_id))

    async def create(self, action: CreateNetwork, key: str) -> Job:
        """Make a network, as a job. Nobody else gets its name or its addresses from here on."""
        routes = await self._cabling.routes()
        if action.spec.mode is NetworkMode.BRIDGE:
            await self._cabling.check_bridge(action.spec.bridge)
        fabric = self._fabric
        fabric.check_free(action.spec.name)
        spec = check_network(action.spec, others=fabric.specs(), routes=routes)
        record = NetworkRecord(
            id=self._house.new_id(), version=1, created_at=self._house.journal.now(), spec=spec
        )
        fabric.coming[record.id] = record

        async def work(job: LiveJob) -> None:
            await self._cabling.put_up(record)
            await job.finish(
                PutNetwork(record),
                events=(self._event(EventKind.NETWORK_CREATED, record),),
                results=(record.id,),
                message=spec.subnet,
                then=there,
            )

        def there() -> None:
            fabric.coming.pop(record.id, None)
            fabric.networks[record.id] = record

        async def undo() -> None:
            fabric.coming.pop(record.id, None)
            if record.id not in fabric.networks:
                await self._cabling.take_down(record)

        return await self._carrier.begin(action, spec.name, "create", work, undo, key)

    async def change(self, action: SetNetwork, key: str) -> Job:
        """Change a network, as a job; on failure it is as before."""
        routes = await self._cabling.routes()
        fabric, before = self._fabric, self._fabric.network(action.network)
        if action.version and action.version != before.version:
            raise version_conflict(before.spec.name, before.version, action.version)
        spec = change_network(
            before.spec,
            action.change,
            others=fabric.specs(but=before.id),
            routes=routes,
            ports=len(fabric.ports_in(before.id)),
        )
        after = msgspec.structs.replace(before, spec=spec, version=before.version + 1)
        fabric.networks[before.id] = after

        async def work(job: LiveJob) -> None:
            await self._cabling.change(before, after)
            event = self._event(EventKind.NETWORK_CHANGED, after)
            await job.finish(PutNetwork(after), events=(event,), results=(after.id,))

        async def undo() -> None:
            fabric.networks[before.id] = before
            await self._cabling.change(after, before)

        return await self._carrier.begin(action, before.spec.name, "set", work, undo, key)

    async def delete(self, action: DeleteNetwork, key: str) -> Job:
        """Delete a network in which nobody is, as a job; nobody gets in from here on."""
        fabric, record = self._fabric, self._fabric.network(action.network)
        check_removal(record.spec.name, {each.guest for each in fabric.ports_in(record.id)})
        self._cabling.check()
        del fabric.networks[record.id]

        async def work(job: LiveJob) -> None:
            await self._cabling.take_down(record)
            event = self._event(EventKind.NETWORK_DELETED, record)
            await job.finish(DropNetwork(record.id), events=(event,))

        async def undo() -> None:
            fabric.networks[record.id] = record
            await self._cabling.put_up(record)

        return await self._carrier.begin(action, record.spec.name, "delete", work, undo, key)

    def _event(self, kind: EventKind, record: NetworkRecord) -> Event:
        return self._house.journal.event(kind, record.spec.name, record.id)


def version_conflict(name: str, version: int, wanted: int) -> Conflict:
    """Return the error for a change of what is not as its caller knows it."""
    return Conflict(
        Code.VERSION_CONFLICT,
        f"{name} is at version {version}, not {wanted}",
        hint="Somebody changed it meanwhile: read it again, then decide.",
    )
