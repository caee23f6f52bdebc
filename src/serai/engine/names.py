"""Names and numbers of guests: claimed in one step that nothing can interrupt.

Of a hundred clients who want the same name one wins, and the others are told before anything is
written. A number is small and unique on this host while its guest exists; its uid comes from it.
"""

from serai.errors import Code, Conflict
from serai.store.changes import free_number

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "iris", "juniper",
         "kite", "larch", "maple", "north", "opal", "pine", "quartz", "river", "sage", "tern",
         "umber", "vale", "willow", "yarrow", "zephyr")  # fmt: skip


class Names:
    """Which names and numbers are taken, and by which guest (its id)."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}
        self._numbers: set[int] = set()

    def owner(self, name: str) -> str | None:
        """Return the id of the guest that has ``name``."""
        return self._owners.get(name)

    def claim(self, name: str, guest_id: str) -> None:
        """Take ``name``; Conflict (``guest-exists``) when another guest has it."""
        if self._owners.setdefault(name, guest_id) != guest_id:
            raise Conflict(
                Code.GUEST_EXISTS,
                f"there is a guest {name} already",
                hint=f"Choose another name, or delete that one: serai delete {name}",
            )

    def release(self, name: str, guest_id: str) -> None:
        """Free ``name`` if that guest has it."""
        if self._owners.get(name) == guest_id:
            del self._owners[name]

    def claim_number(self) -> int:
        """Take the smallest free number."""
        number = free_number(self._numbers)
        self._numbers.add(number)
        return number

    def keep_number(self, number: int) -> None:
        """Take the number that an existing guest has."""
        self._numbers.add(number)

    def release_number(self, number: int) -> None:
        """Free a number."""
        self._numbers.discard(number)

    def pick(self, seed: int) -> str:
        """Return a free name for a guest whose owner gave none."""
        word = WORDS[seed % len(WORDS)]
        count = 1
        while f"{word}-{count}" in self._owners:
            count += 1
        return f"{word}-{count}"
