# Made of networks_async.py by scripts/make_blocking.py: change that file, then `make blocking`.
"""Networks, security groups and forwards, as the blocking SDK has them."""

from collections.abc import Iterable, Sequence
from typing import Any

from serai.client import network_calls
from serai.client.blocking import Connection
from serai.client.network_words import network_change_of, network_of, rules_of
from serai.client.words import choice_of
from serai.model.network import (
    Forward,
    ForwardSpec,
    Group,
    GroupChange,
    GroupSpec,
    Network,
    Protocol,
    Rule,
)


class NetworkShelf:
    """What an inn does with networks."""

    connection: Connection

    def networks(self) -> list[Network]:
        """Return all networks by name."""
        return self.connection.all_of(network_calls.list_networks)

    def network(self, name: str) -> Network:
        """Return a network; NotFound."""
        return self.connection.ask(network_calls.show_network(name))

    def create_network(self, name: str, **spec: Any) -> Network:
        """Make a network; ``spec``: mode ("nat", "bridge=br0", …), subnet, subnet6, dns, labels."""
        call = network_calls.create_network(network_of(name, **spec))
        return self.network(self.connection.make(call).results[0])

    def set_network(self, name: str, **change: Any) -> Network:
        """Change a network: dns, subnet6, labels."""
        call = network_calls.change_network(name, network_change_of(**change))
        return self.network(self.connection.finish(call).results[0])

    def delete_network(self, name: str) -> None:
        """Delete a network in which nobody is."""
        self.connection.finish(network_calls.delete_network(name))

    def groups(self) -> list[Group]:
        """Return all security groups by name."""
        return self.connection.all_of(network_calls.list_groups)

    def group(self, name: str) -> Group:
        """Return a security group; NotFound."""
        return self.connection.ask(network_calls.show_group(name))

    def create_group(
        self, name: str, *, inward: Sequence[str] = (), outward: Sequence[str] = (), note: str = ""
    ) -> Group:
        """Make a security group; rules are written like ``tcp:80`` or ``any@group:web``."""
        spec = GroupSpec(name=name, rules=rules_of(inward, outward), note=note)
        job = self.connection.make(network_calls.create_group(spec))
        return self.group(job.results[0])

    def change_group(
        self, name: str, *, add: Iterable[Rule] = (), remove: Iterable[Rule] = ()
    ) -> Group:
        """Let rules of a security group come and go, in one step, at all ports in it."""
        change = GroupChange(add=tuple(add), remove=tuple(remove))
        self.connection.finish(network_calls.change_group(name, change))
        return self.group(name)

    def delete_group(self, name: str) -> None:
        """Delete a security group that nothing uses."""
        self.connection.finish(network_calls.delete_group(name))

    def forwards(self) -> list[Forward]:
        """Return all forwards, by the host's port."""
        return self.connection.ask(network_calls.list_forwards()).items

    def add_forward(
        self,
        guest: str,
        host_port: int,
        guest_port: int = 0,
        *,
        protocol: str = "tcp",
        host_address: str = "",
        port: str = "",
    ) -> Forward:
        """Let a port of the host lead into a guest (the same number there, unless it is given)."""
        spec = ForwardSpec(
            guest=guest,
            host_port=host_port,
            guest_port=guest_port,
            protocol=choice_of(Protocol, protocol),
            host_address=host_address,
            port=port,
        )
        [made] = self.connection.finish(network_calls.add_forward(spec)).results
        return next(each for each in self.forwards() if each.id == made)

    def remove_forward(self, forward: str) -> None:
        """End a forward, given by its id."""
        self.connection.finish(network_calls.remove_forward(forward))
