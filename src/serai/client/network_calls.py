"""The requests about networks, ports, security groups and forwards as values."""

from serai.client.calls import Call, Page, get, guest_path, page, patch, post, segment
from serai.model.job import Job
from serai.model.network import (
    Forward,
    ForwardSpec,
    Group,
    GroupChange,
    GroupSpec,
    Network,
    NetworkChange,
    NetworkSpec,
    PortChange,
    PortSpec,
    PortView,
)


def _network(name: str) -> str:
    return f"/v1/networks/{segment(name)}"


def _port(guest: str, name: str) -> str:
    return f"{guest_path(guest)}/ports/{segment(name)}"


def _group(name: str) -> str:
    return f"/v1/groups/{segment(name)}"


def list_networks(cursor: str = "") -> Call[Page[Network]]:
    """Networks by name."""
    return page("/v1/networks", Page[Network], cursor)


def show_network(name: str) -> Call[Network]:
    """One network."""
    return get(_network(name), Network)


def create_network(spec: NetworkSpec) -> Call[Job]:
    """Make a network."""
    return post("/v1/networks", Job, spec)


def change_network(name: str, change: NetworkChange) -> Call[Job]:
    """Change a network."""
    return patch(_network(name), change)


def delete_network(name: str) -> Call[Job]:
    """Delete a network in which nobody is."""
    return Call(method="DELETE", path=_network(name), kind=Job)


def list_ports(guest: str, cursor: str = "") -> Call[Page[PortView]]:
    """The ports of a guest."""
    return page(f"{guest_path(guest)}/ports", Page[PortView], cursor)


def show_port(guest: str, port: str) -> Call[PortView]:
    """One port of a guest."""
    return get(_port(guest, port), PortView)


def add_port(guest: str, spec: PortSpec) -> Call[Job]:
    """Attach a guest to a network."""
    return post(f"{guest_path(guest)}/ports", Job, spec)


def change_port(guest: str, port: str, change: PortChange) -> Call[Job]:
    """Change groups or limits of a port."""
    return patch(_port(guest, port), change)


def remove_port(guest: str, port: str) -> Call[Job]:
    """Take a port from a guest."""
    return Call(method="DELETE", path=_port(guest, port), kind=Job)


def list_groups(cursor: str = "") -> Call[Page[Group]]:
    """Security groups by name."""
    return page("/v1/groups", Page[Group], cursor)


def show_group(name: str) -> Call[Group]:
    """One security group."""
    return get(_group(name), Group)


def create_group(spec: GroupSpec) -> Call[Job]:
    """Make a security group."""
    return post("/v1/groups", Job, spec)


def change_group(name: str, change: GroupChange) -> Call[Job]:
    """Change the rules of a security group, in one step."""
    return patch(_group(name), change)


def delete_group(name: str) -> Call[Job]:
    """Delete a security group that nothing uses."""
    return Call(method="DELETE", path=_group(name), kind=Job)


def list_forwards(cursor: str = "") -> Call[Page[Forward]]:
    """Forwards by the host's port."""
    return page("/v1/forwards", Page[Forward], cursor)


def add_forward(spec: ForwardSpec) -> Call[Job]:
    """Let a port of the host lead into a guest."""
    return post("/v1/forwards", Job, spec)


def remove_forward(forward: str) -> Call[Job]:
    """End a forward."""
    return Call(method="DELETE", path=f"/v1/forwards/{segment(forward)}", kind=Job)
