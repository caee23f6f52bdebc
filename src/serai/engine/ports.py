"""The keeper of ports: how guests are attached to networks, also while they run.

What is done to a running guest is done in its own task. A port is on the host before it is stored,
and gone from the store before it is gone from the host; what is left over in between is swept away
at the daemon's next start.
"""

import asyncio
import logging
import os
from collections.abc import Collection, Iterable

import msgspec

from serai.engine.carrying import Carrier
from serai.engine.driver import GuestDriver
from serai.engine.fabric import Fabric
from serai.engine.house import House
from serai.engine.jobs import LiveJob
from serai.engine.running import write_running
from serai.errors import Code, Conflict, Invalid, NotFound, SeraiError
from serai.model.actions import AddPort, RemovePort, SetPort
from serai.model.event import Event, EventKind
from serai.model.guest import GuestRecord
from serai.model.job import Job
from serai.model.lifecycle import Deny, Verb, admit
from serai.model.machine import Nic
from serai.model.network import Port, PortSpec, PortView
from serai.plan.admission import refusal
from serai.plan.network import check_limits, group_ids
from serai.store.changes import DropForward
from serai.units import shorten

log = logging.getLogger(__name__)

MOST_PORTS = 8
UNPLUG_TIMEOUT = 10.0


class PortKeeper:
    """All that is done with ports of guests that are there."""

    def __init__(self, house: House, carrier: Carrier) -> None:
        self._house = house
        self._carrier = carrier

    @property
    def _fabric(self) -> Fabric:
        return self._house.fabric

    async def all(self, guest: GuestRecord) -> list[PortView]:
        """Return the ports of a guest, with what has passed them until now."""
        if guest.ports:
            await self._house.cabling.count()
        return [self._fabric.show_port(guest, port) for port in guest.ports]

    def claim(self, guest_id: str, name: str, specs: tuple[PortSpec, ...]) -> tuple[Port, ...]:
        """Take the ports that a new guest is to have; all or none."""
        if not specs:
            return ()
        self._house.cabling.check()
        if len(specs) > MOST_PORTS:
            raise Invalid(Code.VALUE_INVALID, f"a guest has at most {MOST_PORTS} network ports")
        wanted = {self._house.new_id(): spec for spec in specs}
        return self._fabric.claim((guest_id, name), wanted)

    async def add(self, driver: GuestDriver, action: AddPort, key: str) -> Job:
        """Attach a guest to a network, as a job; on failure nothing has changed."""
        _check_admitted(driver)
        self._house.cabling.check()
        port = self._claim_another(driver, action.spec)

        async def work(job: LiveJob) -> None:
            await driver.do(Verb.SET, lambda: self._add(driver, job, port))

        async def undo() -> None:
            if all(each.id != port.id for each in driver.record.ports):
                self._fabric.release([port])
                await self._house.cabling.detach([port])

        return await self._carrier.begin(action, driver.name, "add", work, undo, key)

    def _claim_another(self, driver: GuestDriver, spec: PortSpec) -> Port:
        guest = driver.record
        held = [each for each in self._fabric.ports() if each.guest_id == guest.id]
        if len(held) >= MOST_PORTS:
            raise Invalid(Code.VALUE_INVALID, f"a guest has at most {MOST_PORTS} network ports")
        names = {each.port.name for each in held}
        if driver.instance is not None:
            names |= {nic.name for nic in driver.instance.machine.nics}
        owner, wanted = (guest.id, driver.name), {self._house.new_id(): spec}
        bubble = guest.ports[0].bubble if guest.ports else None
        [port] = self._fabric.claim(owner, wanted, names, bubble)
        return port

    async def _add(self, driver: GuestDriver, job: LiveJob, port: Port) -> None:
        await self._house.cabling.attach(driver.name, [port])
        if driver.instance is not None:
            await plug(driver, port)
        event = self._event(EventKind.PORT_ADDED, driver, port)
        before = driver.record
        change = driver.revise(ports=(*before.ports, port))
        try:
            await job.finish(change, events=(event,), results=(port.id,), message=port.address)
        except BaseException:
            driver.record = before
            driver.changed()
            if driver.instance is not None:
                await unplug(driver, port.name)
            raise

    async def change(self, driver: GuestDriver, action: SetPort, key: str) -> Job:
        """Change a port's groups or limits, as a job; on failure it is as before."""
        _check_admitted(driver)
        before, change = find_port(driver.record, action.port), action.change
        groups, limits = before.groups, before.limits
        if change.groups is not msgspec.UNSET:
            groups = group_ids(change.groups, self._fabric.group_ids())
        if change.limits is not msgspec.UNSET:
            limits = check_limits(change.limits)
        after = msgspec.structs.replace(before, groups=groups, limits=limits)

        async def work(job: LiveJob) -> None:
            await driver.do(Verb.SET, lambda: self._set(driver, job, after))

        async def undo() -> None:
            now = next((each for each in driver.record.ports if each.id == before.id), None)
            if now is not None:
                self._fabric.hold(driver.record.id, driver.name, [now])
                await self._house.cabling.refresh_rules(now)

        return await self._carrier.begin(action, driver.name, "set", work, undo, key)

    async def _set(self, driver: GuestDriver, job: LiveJob, after: Port) -> None:
        record = driver.record
        find_port(record, after.id)
        self._fabric.hold(record.id, driver.name, [after])
        await self._house.cabling.refresh_rules(after)
        ports = tuple(after if each.id == after.id else each for each in record.ports)
        event = self._event(EventKind.PORT_CHANGED, driver, after)
        try:
            await job.finish(driver.revise(ports=ports), events=(event,))
        except BaseException:
            driver.record = record
            driver.changed()
            raise

    async def remove(self, driver: GuestDriver, action: RemovePort, key: str) -> Job:
        """Take a port from a guest, as a job; its forwards go too."""
        _check_admitted(driver)
        port = find_port(driver.record, action.port)

        async def work(job: LiveJob) -> None:
            await driver.do(Verb.SET, lambda: self._remove(driver, job, port))

        async def undo() -> None:
            """Leave it as it is: it was pulled, or it was not."""

        return await self._carrier.begin(action, driver.name, "remove", work, undo, key)

    async def _remove(self, driver: GuestDriver, job: LiveJob, port: Port) -> None:
        find_port(driver.record, port.id)
        if driver.instance is not None:
            await unplug(driver, port.name)
        fabric, before = self._fabric, driver.record
        left = tuple(each for each in before.ports if each.id != port.id)
        forwards = [each.id for each in fabric.forwards.values() if each.port == port.id]
        event = self._event(EventKind.PORT_REMOVED, driver, port)

        def gone() -> None:
            fabric.release([port])
            for each in forwards:
                fabric.forwards.pop(each, None)

        try:
            drops = map(DropForward, forwards)
            await job.finish(driver.revise(ports=left), *drops, events=(event,), then=gone)
        except BaseException:
            driver.record = before
            driver.changed()
            raise
        await self._house.cabling.detach([port])
        if not left and driver.instance is not None:
            await driver.instance.set_user_links(True)

    def _event(self, kind: EventKind, driver: GuestDriver, port: Port) -> Event:
        name, guest_id = driver.name, driver.record.id
        network = self._fabric.name_of(port.network)
        return self._house.journal.event(kind, name, guest_id, port=port.name, network=network)

    async def replug(self, drivers: Iterable[GuestDriver], taps: Collection[str]) -> None:
        """Exchange the NICs of running guests whose taps somebody removed and we made anew."""
        for driver in drivers:
            for port in driver.record.ports:
                if port.tap in taps and driver.instance is not None:
                    await self._replug(driver, port)

    async def _replug(self, driver: GuestDriver, port: Port) -> None:
        try:
            await driver.do(Verb.SET, lambda: _exchange(driver, port))
        except SeraiError as error:
            log.warning("%s of %s has no cable: %s", port.name, driver.name, error.message)
        else:
            log.info("%s of %s was plugged in anew", port.name, driver.name)


async def _exchange(driver: GuestDriver, port: Port) -> None:
    await unplug(driver, port.name)
    await plug(driver, port)


async def plug(driver: GuestDriver, port: Port) -> None:
    """Plug a port's NIC into the running guest; its tap is there."""
    instance = driver.instance
    assert instance is not None
    nic = Nic(name=port.name, mac=port.mac, tap=port.tap)
    fd = await asyncio.to_thread(driver.house.cabling.open_tap, port)
    try:
        await instance.plug_nic(nic, fd)
    finally:
        os.close(fd)
    await instance.set_user_links(False)  # a guest of a network has no other way out
    write_running(driver, instance)


async def unplug(driver: GuestDriver, name: str) -> None:
    """Pull the NIC of a port from the running guest, if it has it."""
    instance = driver.instance
    assert instance is not None
    if any(nic.name == name and nic.place for nic in instance.machine.nics):
        await instance.unplug_nic(name, UNPLUG_TIMEOUT)
        write_running(driver, instance)


def find_port(guest: GuestRecord, name_or_id: str) -> Port:
    """Return a port of a guest; NotFound (``port-not-found``)."""
    for port in guest.ports:
        if name_or_id in (port.name, port.id):
            return port
    raise NotFound(
        Code.PORT_NOT_FOUND,
        f"{guest.spec.name} has no network port {shorten(name_or_id)}",
        hint=f"See which it has: serai port list {guest.spec.name}",
    )


def _check_admitted(driver: GuestDriver) -> None:
    admission = admit(driver.state, Verb.SET)
    if isinstance(admission, Deny):
        raise refusal(driver.name, driver.state, Verb.SET, admission.reason)
    if driver.record.coming:
        raise Conflict(Code.GUEST_STATE, f"{driver.name} is being forked", hint="Try again then.")
