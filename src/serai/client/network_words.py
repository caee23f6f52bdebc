"""How people write ports, limits and rules, and what the API takes: pure.

NETWORK[,address=A][,address6=A][,mac=M][,group=G]…     a port
PROTOCOL[:PORTS][@REMOTE]                                a rule: ``tcp:80``, ``any@group:web``
HOST_PORT[:GUEST_PORT]                                   a forward
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import msgspec

from serai.client.words import Size, choice_of, size_of
from serai.errors import Code, Invalid
from serai.model.network import (
    Direction,
    NetworkChange,
    NetworkMode,
    NetworkSpec,
    PortChange,
    PortLimits,
    PortSpec,
    Protocol,
    Rule,
)
from serai.units import shorten

PORT_HINT = "Write NETWORK[,address=A][,address6=A][,mac=M][,group=G], like web,address=10.20.0.10."
RULE_HINT = "Write PROTOCOL[:PORTS][@REMOTE], like tcp:80, udp:5000-5100@10.0.0.0/8, any@group:web."
NO_LIMIT = "none"


def network_of(
    name: str,
    *,
    mode: str = "nat",
    subnet: str = "",
    subnet6: str = "",
    dns: Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
) -> NetworkSpec:
    """Return the spec of a network; ``mode`` may be ``bridge=INTERFACE``."""
    word, _, bridge = mode.partition("=")
    return NetworkSpec(
        name=name,
        mode=choice_of(NetworkMode, word),
        subnet=subnet,
        subnet6=subnet6,
        bridge=bridge,
        dns=tuple(dns),
        labels=dict(labels or {}),
    )


def network_change_of(
    *,
    dns: Iterable[str] | None = None,
    subnet6: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> NetworkChange:
    """Return a change of what is given; the rest stays."""
    unset = msgspec.UNSET
    return NetworkChange(
        dns=unset if dns is None else tuple(dns),
        subnet6=unset if subnet6 is None else subnet6,
        labels=unset if labels is None else dict(labels),
    )


def port_of(text: str, limits: PortLimits | None = None) -> PortSpec:
    """Read a port as people write it; Invalid (``value-invalid``)."""
    network, *words = text.split(",")
    given: dict[str, Any] = {"groups": ()}
    for word in words:
        key, _, value = word.partition("=")
        if key == "group" and value:
            given["groups"] += (value,)
        elif key in ("address", "address6", "mac") and value and key not in given:
            given[key] = value
        else:
            raise Invalid(
                Code.VALUE_INVALID, f"{shorten(word)} says nothing of a port", hint=PORT_HINT
            )
    if not network or "=" in network:
        raise Invalid(Code.VALUE_INVALID, f"{shorten(text)} names no network", hint=PORT_HINT)
    return PortSpec(network=network, limits=limits or PortLimits(), **given)


def ports_of(networks: Iterable[str | PortSpec]) -> tuple[PortSpec, ...]:
    """Return ports that are given as people write them, or as they are."""
    return tuple(each if isinstance(each, PortSpec) else port_of(each) for each in networks)


class Limits(TypedDict, total=False):
    """Limits as people write them; ``none`` or 0 lifts one."""

    rate_in: Size
    rate_out: Size
    burst_in: Size
    burst_out: Size


def limits_of(limits: Limits, before: PortLimits | None = None) -> PortLimits | None:
    """Return limits with those that are given changed; None if none is."""
    given = {name: _limit(value) for name, value in limits.items() if isinstance(value, int | str)}
    return msgspec.structs.replace(before or PortLimits(), **given) if given else None


def _limit(value: Size) -> int:
    return 0 if value in (NO_LIMIT, 0, "0") else size_of(value)


def port_change_of(
    groups: Iterable[str] | None = None, limits: PortLimits | None = None
) -> PortChange:
    """Return a change of what is given; the rest stays."""
    return PortChange(
        groups=msgspec.UNSET if groups is None else tuple(groups),
        limits=msgspec.UNSET if limits is None else limits,
    )


def rule_of(direction: Direction, text: str) -> Rule:
    """Read a rule as people write it; Invalid (``rule-invalid``)."""
    what, at, remote = text.partition("@")
    word, colon, ports = what.partition(":")
    if word not in list(Protocol) or (colon and not ports) or (at and not remote):
        raise Invalid(Code.RULE_INVALID, f"{shorten(text)} is no rule", hint=RULE_HINT)
    return Rule(direction=direction, protocol=Protocol(word), ports=ports, remote=remote)


def rules_of(inward: Sequence[str], outward: Sequence[str]) -> tuple[Rule, ...]:
    """Return rules that are given as people write them."""
    return (
        *(rule_of(Direction.IN, text) for text in inward),
        *(rule_of(Direction.OUT, text) for text in outward),
    )


def rule_text(rule: Rule) -> str:
    """Return a rule as people write it, without its direction."""
    ports = f":{rule.ports}" if rule.ports else ""
    return f"{rule.protocol}{ports}{f'@{rule.remote}' if rule.remote else ''}"


def forwarded_ports(text: str) -> tuple[int, int]:
    """Read ``HOST_PORT[:GUEST_PORT]``; Invalid (``value-invalid``)."""
    host, colon, guest = text.partition(":")
    if (
        not host.isascii()
        or not host.isdigit()
        or (colon and not (guest.isascii() and guest.isdigit()))
    ):
        raise Invalid(
            Code.VALUE_INVALID,
            f"{shorten(text)} names no port to forward",
            hint="Write HOST_PORT or HOST_PORT:GUEST_PORT, like 8080:80.",
        )
    return int(host[:9]), int(guest[:9] or 0)
