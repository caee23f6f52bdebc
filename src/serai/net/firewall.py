"""Our two nftables tables in a namespace: changed by differences, read back, compared.

``nft`` (libnftables) is asked through its JSON interface, one transaction a change. It is kept
running, as if somebody typed: starting it, and its end, which waits for the kernel to have let go of
the old rules, take longer than the change. What the kernel
holds is read back into the same data that was wanted (``plan.nftables``), by the digest that each
rule carries as its comment: so a new daemon changes only what differs and counters go on, and
meddling is mended by the same difference.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from serai.errors import Code, HostFailure
from serai.host.namespaces import namespace_words
from serai.host.process import Completed, Conversation, run, start_conversation, tool_failed
from serai.model.network import PortCounters
from serai.plan.firewall import BRIDGE_SETS, INET_SETS, table_of
from serai.plan.nftables import (
    FAMILIES,
    Chain,
    Hook,
    Json,
    Key,
    Kind,
    Line,
    Name,
    Ruleset,
    Set,
    anew,
    difference,
    removal,
)

TIMEOUT = 20.0
COUNTING = [
    *(("bridge", name) for name, kind in BRIDGE_SETS.items() if kind.counts),
    *(("inet", name) for name, kind in INET_SETS.items() if kind.counts),
]
NO_HISTORY = {"HOME": "/nonexistent"}
TYPED_LIMIT = 32 << 10
END = b"describe tcp dport\n"
"""Answered in words, not JSON, and without asking the kernel: all before was answered then."""
END_ANSWER = b"payload expression"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the kernel has counted, by tap. ``generation`` changes when all began anew."""

    generation: str
    ports: Mapping[str, PortCounters]


class Firewall:
    """The tables of one daemon in one namespace; changes wait for each other."""

    def __init__(self, owner: str, *, namespace: str = "") -> None:
        self._table = table_of(owner)
        self._prefix = namespace_words(namespace)
        self._applied: Ruleset | None = None
        self._lock = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._talk: Conversation | None = None

    async def apply(self, after: Ruleset) -> int:
        """Make it so in one transaction, by difference to what was applied last.

        Return the number of commands, 0 if nothing was to change. The first call, and the one after
        a failure, compares with what the kernel holds. On failure nothing has changed. Raises
        HostFailure: ``tool-missing``, ``tool-failed``.
        """
        async with self._lock:
            if self._applied is None:
                commands = _commands(await self._read_back(), after)
            else:
                commands = _commands(self._applied, after)
            self._applied = None
            if commands and not await self._try(commands):
                commands = _commands(await self._read_back(), after)
                await self._do(commands)
            self._applied = after
            return len(commands)

    async def mend(self) -> str:
        """Compare the kernel's rules with those applied last, and make them so again.

        Return a sentence that says what differed; "" when all is well, or nothing was applied yet.
        """
        async with self._lock:
            if self._applied is None:
                return ""
            found = await self._read_back()
            commands = _commands(found, self._applied)
            if not commands:
                return ""
            await self._do(commands)
            return _sentence(found, self._applied)

    async def read_counters(self, addresses: Mapping[str, Sequence[str]]) -> Reading:
        """Return the counters of all ports, in one call; ``addresses`` of each tap (v4 and v6).

        What the host routed is told from what stayed within by these addresses.
        """
        sets = (f"list set {family} {self._table} {name}" for family, name in COUNTING)
        answer, _ = await self._ask(_typed(["list tables", *sets]))
        counts = dict(_counted(answer))
        handles = [
            str(each["table"]["handle"])
            for each in answer
            if "table" in each and each["table"]["name"] == self._table
        ]
        boot = BOOT_ID.read_text().strip()
        ports = {tap: _port_counters(counts, tap, own) for tap, own in addresses.items()}
        return Reading(generation=" ".join([boot, *handles]), ports=ports)

    async def remove(self) -> None:
        """Remove our tables; fine if there are none."""
        async with self._lock:
            self._applied = None
            await self._do(removal(self._table))

    async def close(self) -> None:
        """Let go of the kernel's door; the rules stay."""
        talk, self._talk = self._talk, None
        if talk is not None:
            await talk.close()

    async def _read_back(self) -> Ruleset | None:
        """Return what there is, without what rules remembered, which may be very much."""
        listed = await run(
            [*self._prefix, "nft", "-j", "-t", "-i"],
            timeout=TIMEOUT,
            input=_typed(f"list table {family} {self._table}" for family in FAMILIES),
            env=NO_HISTORY,
        )
        answer = [each for text in listed.stdout.splitlines() for each in _objects(text)]
        there = sum("table" in each for each in answer)
        if not there:
            return None
        if there < len(FAMILIES):
            return Ruleset(table="")
        sets = [
            f"list {what} {body['family']} {self._table} {body['name']}"
            for each in answer
            for what, body in each.items()
            if what in ("set", "map") and "timeout" not in body.get("flags", [])
        ]
        return _ruleset(self._table, [*answer, *(await self._ask(_typed(sets)))[0]])

    async def _do(self, commands: Sequence[Json]) -> None:
        untrusted_said = await self._change(commands)
        if untrusted_said:
            raise tool_failed(Completed((*self._prefix, "nft"), 1, b"", untrusted_said))

    async def _try(self, commands: Sequence[Json]) -> bool:
        return not await self._change(commands)

    async def _change(self, commands: Sequence[Json]) -> bytes:
        """Do a transaction; return why it was refused, nothing when it was done.

        A large one has an ``nft`` of its own: it reads what is typed byte by byte.
        """
        data = msgspec.json.encode({"nftables": commands}) + b"\n"
        if len(data) <= TYPED_LIMIT:
            untrusted_said = (await self._ask(data))[1]
            return untrusted_said if b"Error:" in untrusted_said else b""
        words = [*self._prefix, "nft", "-j", "-f", "-"]
        done = await run(words, timeout=TIMEOUT, input=data, ok=range(-64, 256))
        return (done.stderr or b"failed") if done.code else b""

    async def _ask(self, lines: bytes) -> tuple[list[dict[str, Any]], bytes]:
        """Return the objects of all answers, and what was said of errors.

        A command that fails, such as a list of what is not there, has no answer. One after the other;
        broken off in between, the next one finds another ``nft``.
        """
        async with self._asking:
            talk, self._talk = self._talk, None
            if talk is None or talk.has_ended:
                # each line as it is written, not when there is a block of them
                words = [*self._prefix, "stdbuf", "--output=L", "nft", "-j", "-i"]
                talk = start_conversation(words, env=NO_HISTORY)
            try:
                async with asyncio.timeout(TIMEOUT):
                    answer = await _converse(talk, lines)
            except TimeoutError as error:
                await talk.close()
                raise HostFailure(Code.TIMEOUT, f"nft: not within {TIMEOUT:g} s") from error
            except BaseException:
                await talk.close()
                raise
            self._talk = talk
            return answer


async def _converse(talk: Conversation, lines: bytes) -> tuple[list[dict[str, Any]], bytes]:
    await talk.write(lines + END)
    found: list[dict[str, Any]] = []
    while not (text := await talk.read_line()).startswith(END_ANSWER):
        found += _objects(text)
    return found, talk.read_errors().strip()


def _typed(commands: Iterable[str]) -> bytes:
    return "".join(f"{command}\n" for command in commands).encode()


def _objects(text: bytes) -> list[dict[str, Any]]:
    if not text.startswith(b"{"):
        return []
    found: list[dict[str, Any]] = msgspec.json.decode(text)["nftables"]
    return found


def _commands(before: Ruleset | None, after: Ruleset) -> list[Json]:
    """Return the difference; all anew where what there is is only half or can't be changed in place."""
    if before is not None and (before.table != after.table or not _fits(before, after)):
        return anew(after)
    return difference(before, after)


def _fits(before: Ruleset, after: Ruleset) -> bool:
    kinds = all(
        before.sets[name].kind == each.kind
        for name, each in after.sets.items()
        if name in before.sets
    )
    hooks = all(
        before.chains[name].hook == each.hook
        for name, each in after.chains.items()
        if name in before.chains
    )
    return kinds and hooks


def _sentence(found: Ruleset | None, wanted: Ruleset) -> str:
    if found is None or not found.table:
        return "the firewall's tables were gone, and were made anew"
    names = {
        name
        for mine, theirs in ((wanted.sets, found.sets), (wanted.chains, found.chains))
        for name in {*mine, *theirs}
        if mine.get(name) != theirs.get(name)
    }
    some = ", ".join(sorted(name for _, name in names)[:4])
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"the firewall was changed by somebody else, and mended: {some}{more}"


# -- reading what nft prints -----------------------------------------------------------------------


def _ruleset(table: str, answer: Sequence[Mapping[str, Any]]) -> Ruleset:
    sets: dict[Name, Set] = {}
    chains: dict[Name, Chain] = {}
    lines: dict[Name, list[Line]] = {}
    for each in answer:
        for what, body in each.items():
            name = (body.get("family", ""), body.get("name", ""))
            if what in ("set", "map"):  # the second time with its elements
                sets[name] = _set(body, what == "map")
            elif what == "chain":
                chains[name] = Chain(hook=_hook(body))
            elif what == "rule":
                rule = Line(body.get("comment", ""), ())
                lines.setdefault((body["family"], body["chain"]), []).append(rule)
    for name, there in lines.items():
        chains[name] = Chain(hook=chains[name].hook, lines=tuple(there))
    return Ruleset(table=table, sets=sets, chains=chains)


def _hook(body: Mapping[str, Any]) -> Hook | None:
    if "hook" not in body:
        return None
    return Hook(type=body["type"], hook=body["hook"], priority=body["prio"])


def _set(body: Mapping[str, Any], leads: bool) -> Set:
    type_ = body["type"]
    flags = body.get("flags", [])
    kind = Kind(
        type=(type_,) if isinstance(type_, str) else tuple(type_),
        counts=bool(body.get("stmt")),
        leads=leads,
        intervals="interval" in flags,
        size=body.get("size", 0) if "timeout" in flags else 0,
    )
    if kind.size:
        return Set(kind=kind)
    return Set(kind=kind, elements=dict(_element(each) for each in body.get("elem", [])))


def _element(element: Any) -> tuple[Key, str]:
    target = ""
    if isinstance(element, list):
        element, verdict = element
        target = next(f"{verb} {to['target']}" for verb, to in verdict.items())
    if isinstance(element, dict) and "elem" in element:
        element = element["elem"]["val"]
    if isinstance(element, dict) and "concat" in element:
        return tuple(_part(part) for part in element["concat"]), target
    return (_part(element),), target


def _part(part: Any) -> str:
    if isinstance(part, dict) and "prefix" in part:
        return f"{part['prefix']['addr']}/{part['prefix']['len']}"
    return str(part)


Counts = Mapping[str, tuple[int, int]]


def _counted(answer: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Counts]]:
    """Yield each counting set: bytes and packets by element."""
    for each in answer:
        body = each.get("set")
        if body is None or not body.get("stmt"):
            continue
        yield (
            body["name"],
            {
                _part(item["elem"]["val"]): (
                    item["elem"]["counter"]["bytes"],
                    item["elem"]["counter"]["packets"],
                )
                for item in body.get("elem", [])
            },
        )


def _port_counters(counts: Mapping[str, Counts], tap: str, own: Sequence[str]) -> PortCounters:
    def count(name: str, *keys: str) -> tuple[int, int]:
        found = [counts.get(name, {}).get(key, (0, 0)) for key in keys]
        return sum(each[0] for each in found), sum(each[1] for each in found)

    bytes_in, packets_in = count("received", tap)
    bytes_out, packets_out = count("sent", tap)
    routed_in = count("in4", *own)[0] + count("in6", *own)[0]
    routed_out = count("out4", *own)[0] + count("out6", *own)[0]
    return PortCounters(
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        packets_in=packets_in,
        packets_out=packets_out,
        local_bytes_in=max(0, bytes_in - routed_in),
        local_bytes_out=max(0, bytes_out - routed_out),
        refused_in=count("refused_in", tap)[1],
        refused_out=count("refused_out", tap)[1],
        spoofed=count("spoofed", tap)[1],
    )
