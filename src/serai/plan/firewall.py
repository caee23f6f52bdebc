"""What may pass at each port: from networks, ports, groups and forwards to nftables, as data. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from serai.model.network import (
    ForwardRecord,
    ForwardSpec,
    GroupRecord,
    GroupSpec,
    NetworkRecord,
    Port,
    Rule,
)

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """Everything that nftables holds for one daemon in one namespace; ``difference`` compares two."""

    owner: str
    sets: Mapping[object, object] = field(default_factory=dict)
    chains: Mapping[object, object] = field(default_factory=dict)


def check_rule(rule: Rule) -> Rule:
    """Return ``rule`` in normal form; Invalid (``rule-invalid``). Groups are not looked up."""
    raise NotImplementedError


def check_group(spec: GroupSpec, groups: Mapping[str, str]) -> GroupSpec:
    """Return ``spec`` as it is stored: rules checked, ``group:NAME`` turned into ``group:ID``.

    ``groups`` are the ids of all groups by name, its own included. Raises Invalid
    (``rule-invalid``), NotFound (``group-not-found``).
    """
    raise NotImplementedError


def check_forward(spec: ForwardSpec, others: Iterable[ForwardRecord]) -> ForwardSpec:
    """Return ``spec`` complete; Invalid (``value-invalid``), Conflict (``forward-exists``)."""
    raise NotImplementedError


def build_ruleset(
    owner: str,
    *,
    networks: Iterable[NetworkRecord],
    ports: Iterable[Port],
    groups: Iterable[GroupRecord] = (),
    forwards: Iterable[ForwardRecord] = (),
    uplinks: Iterable[str] = (),
) -> Ruleset:
    """Return the whole ruleset. ``uplinks`` are the transfer subnets of bubbles, let out by NAT.

    Only ports that are up need be in it, but all of them may: a rule for a tap that is not there
    costs nothing.
    """
    raise NotImplementedError


def difference(before: Ruleset | None, after: Ruleset) -> list[Json]:
    """Return the nftables commands that make ``after`` of ``before``; None: of nothing at all."""
    raise NotImplementedError
