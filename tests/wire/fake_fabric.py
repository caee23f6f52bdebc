"""The networks of the engine in memory: the real bookkeeping (``engine.fabric``), and no host."""

import itertools

import msgspec

from serai.engine.fabric import Fabric
from serai.engine.ports import find_port
from serai.model.actions import (
    AddForward,
    AddPort,
    ChangeGroup,
    CreateGroup,
    CreateNetwork,
    DeleteGroup,
    DeleteNetwork,
    RemoveForward,
    RemovePort,
    SetNetwork,
    SetPort,
)
from serai.model.guest import ExitReason, Guest, GuestRecord, GuestSpec
from serai.model.network import ForwardRecord, GroupRecord, NetworkRecord, Port, PortSpec
from serai.plan.network import change_network, check_network, check_removal, group_ids
from serai.plan.rules import check_forward, check_group

MADE_AT = 1_700_000_000.5
OfNetworks = (
    CreateNetwork | SetNetwork | DeleteNetwork | AddPort | SetPort | RemovePort | CreateGroup
    | ChangeGroup | DeleteGroup | AddForward | RemoveForward
)  # fmt: skip


class FakeFabric(Fabric):
    """All networks, and the ports of the guests."""

    def __init__(self) -> None:
        super().__init__()
        self._ids = (f"{number:08x}-0000-4000-8000-000000000000" for number in itertools.count(1))

    def new_id(self) -> str:
        return next(self._ids)

    def of(self, guest: Guest) -> GuestRecord:
        """Return a record of a guest that has its ports."""
        held = [each.port for each in self.ports() if each.guest_id == guest.id]
        return GuestRecord(
            id=guest.id, number=1, version=1, created_at=MADE_AT, mac=guest.mac, genid="",
            spec=GuestSpec(image=guest.image, name=guest.name), image_digest="", machine_type="",
            last_exit=ExitReason.NEVER_STARTED, ports=tuple(held),
        )  # fmt: skip

    def attach(self, guest: Guest, specs: tuple[PortSpec, ...]) -> tuple[Port, ...]:
        names = [port.name for port in self.of(guest).ports]
        wanted = {self.new_id(): spec for spec in specs}
        return self.claim((guest.id, guest.name), wanted, names)

    def apply(self, action: OfNetworks, guest: Guest | None) -> list[str]:
        """Do it; return its subject and the ids of what it made."""
        match action:
            case CreateNetwork(spec=spec):
                self.check_free(spec.name)
                made = NetworkRecord(
                    id=self.new_id(), version=1, created_at=MADE_AT,
                    spec=check_network(spec, others=self.specs()),
                )  # fmt: skip
                self.networks[made.id] = made
                return [spec.name, made.id]
            case SetNetwork(change=change):
                before = self.network(action.network)
                spec = change_network(before.spec, change, others=self.specs(but=before.id))
                self.networks[before.id] = msgspec.structs.replace(before, spec=spec)
                return [spec.name, before.id]
            case DeleteNetwork():
                gone = self.network(action.network)
                check_removal(gone.spec.name, {each.guest for each in self.ports_in(gone.id)})
                del self.networks[gone.id]
                return [gone.spec.name]
            case CreateGroup(spec=group):
                new = self.new_id()
                spec_ = check_group(group, {**self.group_ids(), group.name: new})
                self.groups[new] = GroupRecord(id=new, version=1, created_at=MADE_AT, spec=spec_)
                return [group.name, new]
            case ChangeGroup(change=change):
                old = self.group(action.group)
                rules = [rule for rule in old.spec.rules if rule not in change.remove]
                after = msgspec.structs.replace(old.spec, rules=(*rules, *change.add))
                self.groups[old.id] = msgspec.structs.replace(old, spec=after)
                return [after.name, old.id]
            case DeleteGroup():
                record = self.group(action.group)
                del self.groups[record.id]
                return [record.spec.name]
            case RemoveForward():
                del self.forwards[self.forward(action.forward).id]
                return ["", action.forward]
            case _:
                assert guest is not None
                return [guest.name, *self._apply_to_guest(action, guest)]

    def _apply_to_guest(self, action: OfNetworks, guest: Guest) -> list[str]:
        match action:
            case AddPort(spec=spec):
                return [self.attach(guest, (spec,))[0].id]
            case SetPort(change=change):
                port = find_port(self.of(guest), action.port)
                if change.groups is not msgspec.UNSET:
                    ids = group_ids(change.groups, self.group_ids())
                    port = msgspec.structs.replace(port, groups=ids)
                if change.limits is not msgspec.UNSET:
                    port = msgspec.structs.replace(port, limits=change.limits)
                self.hold(guest.id, guest.name, [port])
            case RemovePort():
                self.release([find_port(self.of(guest), action.port)])
            case AddForward(spec=forward):
                spec_ = check_forward(forward, self.forwards.values())
                ports = self.of(guest).ports
                made = ForwardRecord(
                    id=self.new_id(), guest_id=guest.id, port=ports[0].id if ports else "",
                    protocol=spec_.protocol, host_address=spec_.host_address,
                    host_port=spec_.host_port, guest_port=spec_.guest_port, created_at=MADE_AT,
                )  # fmt: skip
                self.forwards[made.id] = made
                return [made.id]
            case _:
                pass
        return []
