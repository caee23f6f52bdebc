"""Networks, ports, groups and forwards in the store: kept, unique, gone with their guest."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from store_samples import a_guest

from serai.errors import Code, Conflict
from serai.model.network import (
    ForwardRecord,
    GroupRecord,
    GroupSpec,
    NetworkRecord,
    NetworkSpec,
    Port,
    PortCounters,
    PortUsage,
    Protocol,
)
from serai.store.changes import (
    DropForward,
    DropGroup,
    DropGuest,
    DropNetwork,
    PutForward,
    PutGroup,
    PutGuest,
    PutNetwork,
    PutUsage,
)
from serai.store.database import Store, open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "serai.db") as opened:
        yield opened


def a_network(number: int, name: str = "") -> NetworkRecord:
    spec = NetworkSpec(name=name or f"n{number}", subnet=f"10.{number}.0.0/24")
    return NetworkRecord(id=f"network-{number}", version=1, created_at=1.0, spec=spec)


def a_group(number: int, name: str = "") -> GroupRecord:
    spec = GroupSpec(name=name or f"s{number}")
    return GroupRecord(id=f"group-{number}", version=1, created_at=1.0, spec=spec)


def a_port(number: int, **more: str) -> Port:
    given = {"network": "network-1", "mac": f"02:00:00:00:00:{number:02x}", "tap": f"st{number}"}
    return Port(id=f"port-{number}", name="net0", **{**given, **more})


def a_forward(number: int, guest: str, host_port: int) -> ForwardRecord:
    return ForwardRecord(
        id=f"forward-{number}", guest_id=guest, port="", protocol=Protocol.TCP, host_address="",
        host_port=host_port, guest_port=80, created_at=1.0,
    )  # fmt: skip


async def test_all_comes_back_as_it_was_and_goes_without_complaint(tmp_path: Path):
    path = tmp_path / "serai.db"
    async with open_store(path) as store:
        await store.commit(PutNetwork(a_network(2)), PutNetwork(a_network(1)), PutGroup(a_group(1)))
        await store.commit(PutForward(a_forward(1, "g", 80)))
    async with open_store(path) as store:
        assert await store.networks() == [a_network(1), a_network(2)]
        assert await store.groups() == [a_group(1)]
        assert await store.forwards() == [a_forward(1, "g", 80)]
        for _ in range(2):
            await store.commit(
                DropNetwork("network-1"), DropGroup("group-1"), DropForward("forward-1")
            )
        assert [each.id for each in await store.networks()] == ["network-2"]
        assert (await store.groups(), await store.forwards()) == ([], [])


async def test_names_and_ports_of_the_host_are_unique(store: Store):
    await store.commit(PutNetwork(a_network(1)), PutGroup(a_group(1)))
    await store.commit(PutForward(a_forward(1, "g", 80)))
    wrong = {
        Code.NETWORK_EXISTS: PutNetwork(a_network(2, "n1")),
        Code.GROUP_EXISTS: PutGroup(a_group(2, "s1")),
        Code.FORWARD_EXISTS: PutForward(a_forward(2, "h", 80)),
    }
    for code, change in wrong.items():
        with pytest.raises(Conflict) as raised:
            await store.commit(change)
        assert raised.value.code is code


@pytest.mark.parametrize(
    "same",
    [
        {"address": "10.1.0.2"},
        {"address6": "fd00::2"},
        {"mac": "02:00:00:00:00:77"},
    ],
)
async def test_of_a_hundred_who_want_an_address_one_has_it(store: Store, same: dict[str, str]):
    async def take(number: int) -> bool:
        try:
            await store.commit(PutGuest(a_guest(number, ports=(a_port(number, **same),))))
        except Conflict as error:
            assert error.code is Code.ADDRESS_TAKEN
            return False
        return True

    assert sum(await asyncio.gather(*map(take, range(1, 101)))) == 1
    [winner] = await store.guests()
    other = a_port(200, **{**same, "network": "network-2"})
    await store.commit(PutGuest(a_guest(200, ports=(other,))), PutGuest(winner))
    await store.commit(DropGuest(winner.id))
    await store.commit(PutGuest(a_guest(201, ports=(a_port(201, **same),))))


async def test_what_passed_goes_with_its_port_and_forwards_with_their_guest(store: Store):
    one, two = a_port(1, address="10.1.0.2"), a_port(2, address="10.1.0.3")
    guest = a_guest(1, ports=(one, two))
    usage = [
        PortUsage(port=port.id, guest_id=guest.id, total=PortCounters(bytes_in=7), generation="b")
        for port in (one, two)
    ]
    await store.commit(PutGuest(guest), *map(PutUsage, usage))
    await store.commit(PutForward(a_forward(1, guest.id, 80)))
    assert await store.usage() == usage
    await store.commit(PutGuest(a_guest(1, ports=(two,))))
    assert await store.usage() == usage[1:]
    await store.commit(DropGuest(guest.id))
    assert (await store.usage(), await store.forwards()) == ([], [])
