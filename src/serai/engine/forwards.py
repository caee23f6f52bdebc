"""The keeper of forwards: ports of the host that lead into guests.

To a port of a network the firewall forwards; to a guest with QEMU's own network QEMU does, as long
as it runs (``leading``).
"""

from serai.engine.carrying import Carrier
from serai.engine.driver import GuestDriver
from serai.engine.fabric import Fabric
from serai.engine.house import House
from serai.engine.jobs import LiveJob
from serai.engine.leading import close_one, open_one
from serai.engine.ports import find_port
from serai.errors import Code, Conflict
from serai.model.actions import AddForward, RemoveForward
from serai.model.event import Event, EventKind
from serai.model.job import Job
from serai.model.lifecycle import Verb
from serai.model.network import Forward, ForwardRecord, NetworkMode, Port
from serai.plan.rules import check_forward
from serai.store.changes import DropForward, PutForward


class ForwardKeeper:
    """All that is done with forwards."""

    def __init__(self, house: House, carrier: Carrier) -> None:
        self._house = house
        self._carrier = carrier

    @property
    def _fabric(self) -> Fabric:
        return self._house.fabric

    def all(self, names: dict[str, str]) -> list[Forward]:
        """Return all forwards, by the host's port; ``names`` are the guests' by id."""
        found = sorted(self._fabric.forwards.values(), key=lambda each: (each.host_port, each.id))
        return [self._fabric.show_forward(each, names.get(each.guest_id, "")) for each in found]

    def guest_of(self, forward: str) -> str:
        """Return the id of the guest that a forward leads into; NotFound (``forward-not-found``)."""
        return self._fabric.forward(forward).guest_id

    async def add(self, driver: GuestDriver, action: AddForward, key: str) -> Job:
        """Let a port of the host lead into a guest, as a job. Nobody else gets it from here on."""
        fabric, guest = self._fabric, driver.record
        port = _port_of(driver, action.spec.port)
        self._check_reachable(driver.name, port)
        spec = check_forward(action.spec, fabric.forwards.values())
        record = ForwardRecord(
            id=self._house.new_id(),
            guest_id=guest.id,
            port=port.id if port else "",
            protocol=spec.protocol,
            host_address=spec.host_address,
            host_port=spec.host_port,
            guest_port=spec.guest_port or spec.host_port,
            created_at=self._house.journal.now(),
        )
        fabric.forwards[record.id] = record

        async def work(job: LiveJob) -> None:
            await self._open(driver, record, port)
            event = self._event(EventKind.FORWARD_ADDED, driver, record)
            await job.finish(PutForward(record), events=(event,), results=(record.id,))

        async def undo() -> None:
            fabric.forwards.pop(record.id, None)
            await self._close(driver, record, port)

        return await self._carrier.begin(action, driver.name, "forward", work, undo, key)

    async def remove(self, driver: GuestDriver, action: RemoveForward, key: str) -> Job:
        """End a forward, as a job."""
        fabric, record = self._fabric, self._fabric.forward(action.forward)
        port = next((each for each in driver.record.ports if each.id == record.port), None)
        del fabric.forwards[record.id]

        async def work(job: LiveJob) -> None:
            await self._close(driver, record, port)
            event = self._event(EventKind.FORWARD_REMOVED, driver, record)
            await job.finish(DropForward(record.id), events=(event,))

        async def undo() -> None:
            fabric.forwards[record.id] = record

        return await self._carrier.begin(action, driver.name, "forward", work, undo, key)

    def _check_reachable(self, guest: str, port: Port | None) -> None:
        """Raise Conflict (``guest-in-bubble``) for a port in a bubble that has no way to it."""
        network = self._fabric.networks.get(port.network) if port and port.bubble else None
        if network is not None and network.spec.mode is NetworkMode.BRIDGE:
            raise Conflict(
                Code.GUEST_IN_BUBBLE,
                f"{guest} is in a bubble, and {network.spec.name} leads nowhere from there",
                hint=f"Use what needs no forward: serai ssh {guest}, serai exec {guest}; or forward to "
                "a port of it at another network.",
            )

    async def _open(self, driver: GuestDriver, record: ForwardRecord, port: Port | None) -> None:
        if port is not None:
            await self._house.cabling.refresh_forwards(port)
        elif driver.instance is not None:
            await driver.do(Verb.SET, lambda: open_one(driver, record))

    async def _close(self, driver: GuestDriver, record: ForwardRecord, port: Port | None) -> None:
        self._fabric.forward_problems.pop(record.id, None)
        if port is not None:
            await self._house.cabling.refresh_rules()
        elif driver.instance is not None:
            await driver.do(Verb.SET, lambda: close_one(driver, record))

    def _event(self, kind: EventKind, driver: GuestDriver, record: ForwardRecord) -> Event:
        outside = f"{record.protocol} {record.host_port}"
        return self._house.journal.event(kind, driver.name, driver.record.id, outside=outside)


def _port_of(driver: GuestDriver, name: str) -> Port | None:
    """Return the port that is meant, the first if none is; None for QEMU's own network."""
    if name:
        return find_port(driver.record, name)
    return driver.record.ports[0] if driver.record.ports else None
