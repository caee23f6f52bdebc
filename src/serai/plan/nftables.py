"""A ruleset of nftables as plain data, and the commands that make one of another. Pure.

    Ruleset ─┬─ sets    name → kind and elements: a map's element leads to a chain
             └─ chains  name → hook (for a base chain) and lines

A line knows a digest of what it says and carries it as its comment, so that what the kernel holds
can be read back and compared without understanding it: libnftables prints rules in other words than
it was given. ``difference`` is small when the change is: elements that come and go, and the lines of
chains that changed; counters of elements that stay go on. Words of the JSON: libnftables-json(5).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

Json = Mapping[str, object]
Name = tuple[str, str]
"""Family (``bridge``, ``inet``) and name."""
Key = tuple[str, ...]
"""An element: the parts of a concatenation; a prefix is written with its length."""

FAMILIES = ("bridge", "inet")


@dataclass(frozen=True, slots=True)
class Line:
    """One rule. Two are equal when they say the same; one read back has no ``words``."""

    digest: str
    words: tuple[Json, ...] = field(compare=False)


def line(*words: Json) -> Line:
    """Return the rule of these expressions and statements."""
    return Line(hashlib.sha256(msgspec.json.encode(words)).hexdigest()[:16], words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """Where a base chain is hung up; smaller priorities come first."""

    type: str
    hook: str
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A list of lines; without a hook it is reached by jumping only."""

    lines: tuple[Line, ...] = ()
    hook: Hook | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a set holds. ``leads``: a verdict map. ``size`` over 0: filled by rules, with timeouts."""

    type: tuple[str, ...]
    counts: bool = False
    leads: bool = False
    intervals: bool = False
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """A set with its elements; in a map each leads to a verdict like ``goto CHAIN``, else to ""."""

    kind: Kind
    elements: Mapping[Key, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """All that one table of each family holds; ``table`` is the name of both."""

    table: str
    sets: Mapping[Name, Set] = field(default_factory=dict)
    chains: Mapping[Name, Chain] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        """Return a sign for what can't be changed in place: the kinds of sets, the hooks."""
        kinds = sorted((name, msgspec.json.encode(each.kind)) for name, each in self.sets.items())
        hooks = sorted(
            (name, msgspec.json.encode(each.hook))
            for name, each in self.chains.items()
            if each.hook
        )
        return hashlib.sha256(repr((kinds, hooks)).encode()).hexdigest()[:8]


def difference(before: Ruleset | None, after: Ruleset) -> list[Json]:
    """Return the commands, for one transaction, that make ``after`` of ``before``.

    None: there is nothing yet, not even tables. Sets of one name have one kind in both; whoever
    reads back another kind begins anew (``anew``).
    """
    if before is None:
        tables = [_command("add", "table", family, after.table) for family in FAMILIES]
        return tables + difference(Ruleset(table=after.table), after)
    return [*_new_names(before, after), *_elements(before, after), *_lines(before, after),
            *_old_names(before, after)]  # fmt: skip


def anew(after: Ruleset) -> list[Json]:
    """Return the commands that make ``after`` whatever there is; all counters begin anew."""
    return [*removal(after.table), *difference(None, after)]


def removal(table: str) -> list[Json]:
    """Return the commands that remove both tables, also where they are not there."""
    commands = []
    for family in FAMILIES:
        commands += [_command(verb, "table", family, table) for verb in ("add", "delete")]
    return commands


def _command(verb: str, what: str, family: str, table: str, **more: object) -> Json:
    if what == "table":
        return {verb: {"table": {"family": family, "name": table}}}
    return {verb: {what: {"family": family, "table": table, **more}}}


def _new_names(before: Ruleset, after: Ruleset) -> Iterator[Json]:
    for (family, name), each in after.sets.items():
        if (family, name) not in before.sets:
            yield _add_set(after.table, family, name, each.kind)
    for (family, name), chain in after.chains.items():
        if (family, name) not in before.chains:
            yield _add_chain(after.table, family, name, chain.hook)


def _add_set(table: str, family: str, name: str, kind: Kind) -> Json:
    more: dict[str, object] = {}
    if kind.counts:
        more["stmt"] = [{"counter": None}]
    if kind.leads:
        more["map"] = "verdict"
    if kind.intervals:
        more["flags"] = ["interval"]
    if kind.size:
        more |= {"flags": ["timeout"], "size": kind.size}
    type_ = kind.type[0] if len(kind.type) == 1 else list(kind.type)
    what = "map" if kind.leads else "set"
    return _command("add", what, family, table, name=name, type=type_, **more)


def _add_chain(table: str, family: str, name: str, hook: Hook | None) -> Json:
    more: dict[str, object] = {}
    if hook is not None:
        more = {"type": hook.type, "hook": hook.hook, "prio": hook.priority, "policy": "accept"}
    return _command("add", "chain", family, table, name=name, **more)


def _elements(before: Ruleset, after: Ruleset) -> Iterator[Json]:
    """Yield what goes before what comes: an element of a map that leads elsewhere is both."""
    comes = []
    for (family, name), each in after.sets.items():
        old = before.sets.get((family, name), each if each.kind.size else Set(kind=each.kind))
        if old.elements == each.elements:
            continue
        gone = [item for item in old.elements.items() if each.elements.get(item[0]) != item[1]]
        new = [item for item in each.elements.items() if old.elements.get(item[0]) != item[1]]
        if gone:
            yield _change("delete", after.table, family, name, each.kind, gone)
        if new:
            comes.append(_change("add", after.table, family, name, each.kind, new))
    yield from comes


def _change(
    verb: str, table: str, family: str, name: str, kind: Kind, items: Sequence[tuple[Key, str]]
) -> Json:
    elements = [_element(key, target, kind) for key, target in items]
    return _command(verb, "element", family, table, name=name, elem=elements)


def _element(key: Key, target: str, kind: Kind) -> object:
    parts = [_part(part, kind) for part in key]
    value: object = parts[0] if len(parts) == 1 else {"concat": parts}
    if not kind.leads:
        return value
    verb, _, chain = target.partition(" ")
    return [value, {verb: {"target": chain}}]


def _part(part: str, kind: Kind) -> object:
    address, slash, length = part.partition("/")
    if kind.intervals and slash:
        return {"prefix": {"addr": address, "len": int(length)}}
    return part


def _lines(before: Ruleset, after: Ruleset) -> Iterator[Json]:
    for (family, name), chain in after.chains.items():
        old = before.chains.get((family, name), Chain())
        if old.lines == chain.lines:
            continue
        if old.lines:
            yield _command("flush", "chain", family, after.table, name=name)
        for each in chain.lines:
            yield _command(
                "add", "rule", family, after.table,
                chain=name, comment=each.digest, expr=each.words,
            )  # fmt: skip


def _old_names(before: Ruleset, after: Ruleset) -> Iterator[Json]:
    """Empty all chains that go before the first goes: they may lead to each other."""
    gone = [name for name in before.chains if name not in after.chains]
    for verb in ("flush", "delete"):
        for family, name in gone:
            yield _command(verb, "chain", family, after.table, name=name)
    for family, name in before.sets:
        if (family, name) not in after.sets:
            what = "map" if before.sets[family, name].kind.leads else "set"
            yield _command("delete", what, family, after.table, name=name)


# -- words of rules --------------------------------------------------------------------------------

ACCEPT: Json = {"accept": None}
DROP: Json = {"drop": None}
RETURN: Json = {"return": None}
IIF: Json = {"meta": {"key": "iifname"}}
OIF: Json = {"meta": {"key": "oifname"}}
L4: Json = {"meta": {"key": "l4proto"}}


def payload(protocol: str, name: str) -> Json:
    """Return a field of a packet."""
    return {"payload": {"protocol": protocol, "field": name}}


def raw(offset: int, length: int, base: str = "th") -> Json:
    """Return bits of a packet, counted from its transport header (``base`` nh: from its network header)."""
    return {"payload": {"base": base, "offset": offset, "len": length}}


def concat(*parts: Json) -> Json:
    """Return several fields as one key."""
    return {"concat": list(parts)}


def match(left: object, right: object, op: str = "==") -> Json:
    """Return a comparison; a rule goes on only where it holds."""
    return {"match": {"op": op, "left": left, "right": right}}


def one_of(left: object, values: Sequence[object]) -> Json:
    """Return a comparison with any of ``values``."""
    return match(left, values[0] if len(values) == 1 else {"set": list(values)})


def none_of(left: object, values: Sequence[object]) -> Json:
    """Return a comparison with none of ``values``."""
    return match(left, values[0] if len(values) == 1 else {"set": list(values)}, "!=")


def lead(key: Json, mapping: str) -> Json:
    """Go where the map says, if it says anything."""
    return {"vmap": {"key": key, "data": f"@{mapping}"}}


def goto(chain: str) -> Json:
    """Go to a chain and never come back."""
    return {"goto": {"target": chain}}


def jump(chain: str) -> Json:
    """Go through a chain, and on here if it decided nothing."""
    return {"jump": {"target": chain}}


def remember(op: str, name: str, key: Json, timeout: int) -> Json:
    """Put what the packet has into a set: ``add`` leaves what is there, ``update`` winds it up."""
    return {
        "set": {"op": op, "elem": {"elem": {"val": key, "timeout": timeout}}, "set": f"@{name}"}
    }
