"""Networks, the ports of guests at them, security groups, and forwards."""

from litestar.types import ASGIApp

from serai.api.answers import answer_json
from serai.api.bodies import NoBody, NoQuery, PageQuery, WaitQuery
from serai.api.calls import Call
from serai.api.decoding import read_version
from serai.api.paging import page_by_name, page_in_order
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
from serai.model.network import (
    ForwardSpec,
    GroupChange,
    GroupSpec,
    NetworkChange,
    NetworkSpec,
    PortChange,
    PortSpec,
)


async def list_networks(call: Call[PageQuery, NoBody]) -> ASGIApp:
    """List networks.

    Sorted by name.
    """
    networks = call.room.engine.networks()
    return answer_json(page_by_name(networks, call.query.limit, call.query.cursor))


async def show_network(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Show a network.

    The ETag is its version: send it as If-Match with a change. `problem` says what of it could not
    be put up on this host.
    """
    network = call.room.engine.network(call.subject)
    return answer_json(network, headers={"etag": f'"{network.version}"'})


def create_network(call: Call[WaitQuery, NetworkSpec]) -> CreateNetwork:
    """Create a network.

    Without a subnet a free one is picked. The job's `results` hold the network's id.
    """
    return CreateNetwork(spec=call.body)


def change_network(call: Call[WaitQuery, NetworkChange]) -> SetNetwork:
    """Change a network.

    What is not named stays as it is. With If-Match, the network must still be at that version.
    """
    version = read_version(call.request)
    return SetNetwork(network=call.subject, change=call.body, version=version)


def delete_network(call: Call[WaitQuery, NoBody]) -> DeleteNetwork:
    """Delete a network.

    No guest may have a port there. Nothing of it is left on the host.
    """
    return DeleteNetwork(network=call.subject)


async def list_ports(call: Call[PageQuery, NoBody]) -> ASGIApp:
    """List the ports of a guest.

    With what has passed each of them. A guest without any has QEMU's own network.
    """
    ports = await call.room.engine.ports(call.subject)
    return answer_json(page_in_order(ports, call.query.limit, call.query.cursor))


async def show_port(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Show a port of a guest."""
    return answer_json(await call.room.engine.port(call.subject, call.part))


def add_port(call: Call[WaitQuery, PortSpec]) -> AddPort:
    """Add a port to a guest.

    At once, also while it runs. Addresses that are not given are picked. The job's `results` hold the
    port's id.
    """
    return AddPort(guest=call.subject, spec=call.body)


def change_port(call: Call[WaitQuery, PortChange]) -> SetPort:
    """Change a port of a guest.

    Its security groups and limits, at once. What is not named stays as it is.
    """
    return SetPort(guest=call.subject, port=call.part, change=call.body)


def remove_port(call: Call[WaitQuery, NoBody]) -> RemovePort:
    """Remove a port from a guest.

    At once, also while it runs: the guest is asked to let go of it. Its forwards go too.
    """
    return RemovePort(guest=call.subject, port=call.part)


async def list_groups(call: Call[PageQuery, NoBody]) -> ASGIApp:
    """List security groups.

    Sorted by name.
    """
    groups = call.room.engine.groups()
    return answer_json(page_by_name(groups, call.query.limit, call.query.cursor))


async def show_group(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Show a security group.

    The ETag is its version: send it as If-Match with a change.
    """
    group = call.room.engine.group(call.subject)
    return answer_json(group, headers={"etag": f'"{group.version}"'})


def create_group(call: Call[WaitQuery, GroupSpec]) -> CreateGroup:
    """Create a security group.

    A port in it lets in what a rule allows, and answers to what the guest began; with no rule for
    what goes out, everything may. The job's `results` hold the group's id.
    """
    return CreateGroup(spec=call.body)


def change_group(call: Call[WaitQuery, GroupChange]) -> ChangeGroup:
    """Change a security group.

    Rules come and go in one step, at all ports in it. With If-Match, it must still be at that
    version.
    """
    version = read_version(call.request)
    return ChangeGroup(group=call.subject, change=call.body, version=version)


def delete_group(call: Call[WaitQuery, NoBody]) -> DeleteGroup:
    """Delete a security group.

    No port may be in it, and no rule of another name it.
    """
    return DeleteGroup(group=call.subject)


async def list_forwards(call: Call[PageQuery, NoBody]) -> ASGIApp:
    """List forwards.

    Sorted by the host's port. `problem` says why one does not work, if so.
    """
    forwards = call.room.engine.forwards()
    return answer_json(page_in_order(forwards, call.query.limit, call.query.cursor))


def add_forward(call: Call[WaitQuery, ForwardSpec]) -> AddForward:
    """Add a forward.

    A port of the host leads to one of a guest. The job's `results` hold the forward's id.
    """
    return AddForward(spec=call.body)


def remove_forward(call: Call[WaitQuery, NoBody]) -> RemoveForward:
    """Remove a forward."""
    return RemoveForward(forward=call.subject)
