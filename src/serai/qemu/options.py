"""QEMU's options as values, rendered once.

Where QEMU takes JSON (``-blockdev``, ``-device``, ``-object``, ``-netdev``) an option is JSON, and
no character in a value can mean anything. Elsewhere it is ``key=value`` with commas doubled
(qemu-options(7); QEMU's util/keyval.c and qemu-option.c).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

JSON_FLAGS = frozenset({"blockdev", "device", "object", "netdev"})

PLAIN_FLAGS = frozenset({"append", "kernel", "initrd", "uuid", "display", "vnc"})
"""These take one plain string: no keys, so a comma is a comma."""

Value = str | int | bool | None | Mapping[str, "Value"]


@dataclass(frozen=True, slots=True)
class Option:
    """One option: ``first`` is the value that stands before all keys (``-machine TYPE,…``)."""

    flag: str
    values: Mapping[str, Value] = field(default_factory=dict)
    first: str = ""

    def argv(self) -> list[str]:
        """Return the option as it stands on the command line."""
        if self.flag in JSON_FLAGS:
            return [f"-{self.flag}", json.dumps(self.values, separators=(",", ":"))]
        if self.flag in PLAIN_FLAGS:
            return [f"-{self.flag}", self.first]
        words = [escape(self.first)] if self.first else []
        words += [f"{key}={escape(_plain(value))}" for key, value in self.values.items()]
        return [f"-{self.flag}", ",".join(words)] if words else [f"-{self.flag}"]


def escape(text: str) -> str:
    """Double the commas, so that a value ends where it ends."""
    return text.replace(",", ",,")


def _plain(value: Value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
