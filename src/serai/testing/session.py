"""Guests for the tests of one process: what the fixtures of ``serai.pytest_plugin`` give out."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from serai.client import guest_calls
from serai.client.guests import Guest
from serai.client.inn import Inn
from serai.errors import Code, Invalid, NotFound, SeraiError
from serai.testing.evidence import Section, gather
from serai.testing.household import KEPT, OWNER, Household
from serai.testing.warmth import Warmth
from serai.testing.wishes import Setup, Wish, guest_name, read_wish

TEST = "pytest-test"
"""The label that says which test a guest is for, so that forks which the test made are found too."""

KEPT_TTL = "1d"
MOST = 100
AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was said on pytest's command line and in its settings."""

    home: str
    image: str
    ttl: str
    keeps: bool
    root: Path
    artifacts: Path
    files: Sequence[Path]


class Session:
    """The daemon and the warm images, for as long as one pytest process needs them."""

    def __init__(self, options: Options, setup: Setup | None) -> None:
        """Come into the household that ``options`` lead to; see ``Household``."""
        self.options = options
        self.house = Household.open(options.home, os.environ)
        self._warmth = Warmth(self.house, options.root, setup, options.files)
        self._images: dict[str, str] = {}
        self._failed: dict[str, Exception] = {}
        self._numbers = count(1)

    @property
    def inn(self) -> Inn:
        """The connection."""
        return self.house.inn

    def close(self) -> None:
        """Give everything back; ends the daemon if it was started for tests and nobody else uses it."""
        self.house.close()

    def begin(self, test: str, place: str, words: Sequence[Mapping[str, Any]]) -> "Guests":
        """Return what makes the guests of a test; ``place`` names its folder for artifacts."""
        return Guests(self, test, place, words, str(next(self._numbers)))

    def launch(self, wish: Wish, name: str, labels: Mapping[str, str]) -> Guest:
        """Make a guest, by a fork of a warm image if it can be."""
        ttl = KEPT_TTL if self.options.keeps else self.options.ttl
        for is_last in (False, True):
            image = self._image_for(wish)
            spec = wish.spec if image == wish.image else {}
            try:
                return self.inn.launch(image, name=name, labels=labels, ttl=ttl, **spec)
            except NotFound as error:
                if is_last or error.code is not Code.IMAGE_NOT_FOUND:
                    raise
                self._images.pop(wish.key, None)  # another session has made a newer one
        raise AssertionError

    def _image_for(self, wish: Wish) -> str:
        """Ask once for each wish; what could not be made is not tried again for each test."""
        if wish.key in self._failed:
            raise self._failed[wish.key].with_traceback(None)
        if wish.key not in self._images:
            try:
                self._images[wish.key] = self._warmth.image_for(wish)
            except Exception as error:
                self._failed[wish.key] = error
                raise
        return self._images[wish.key]


class Guests:
    """Makes guests for one test: ``guests()`` gives one, ``guests(3)`` a list of three.

    ``image``, ``memory``, ``cpus``, ``disk``, ``firmware`` and ``warm`` are as in the mark ``serai``, over what that
    says; ``name`` (``name-1``, … of several) instead of one made from the test's. When the test is over all of
    them are deleted, and the forks that it made of them.
    """

    def __init__(
        self,
        session: Session,
        test: str,
        place: str,
        words: Sequence[Mapping[str, Any]],
        number: str,
    ) -> None:
        self._session = session
        self._test = test
        self._folder = session.options.artifacts / re.sub(r"[^\w.\[\]-]+", "-", place)[-120:]
        self._words = words
        self._labels = {OWNER: session.house.owner, TEST: number}
        self._made: dict[str, Guest] = {}
        self._kept: list[str] = []
        self._names = count(1)

    def __call__(self, count: int | None = None, *, name: str = "", **words: Any) -> Any:
        wish = read_wish(self._session.options.image, [*self._words, words])
        if count is None:
            return self._one(wish, name)
        if not 1 <= count <= MOST:
            raise Invalid(Code.VALUE_INVALID, f"{count} guests: 1 to {MOST} can be asked for")
        names = [name and f"{name}-{each}" for each in range(1, count + 1)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda each: self._one(wish, each), names))

    def _one(self, wish: Wish, name: str) -> Guest:
        unique = f"{self._session.house.owner[:5]}{self._labels[TEST]}-{next(self._names)}"
        guest = self._session.launch(wish, name or guest_name(self._test, unique), self._labels)
        self._made[guest.id] = guest
        return guest

    def _all(self) -> list[Guest]:
        """Return all that are there: those that were made here, and forks of them."""
        inn = self._session.inn
        found = {each.id: each for each in inn.guests(self._labels)}
        for other in self._made.keys() - found.keys():  # the test may have changed their labels
            with suppress(NotFound):
                found[other] = inn.guest(other)
        return list(found.values())

    def evidence(self) -> list[Section]:
        """Return what tells why the test failed; never raises."""
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            inn = self._session.inn
            return [part for each in self._all() for part in gather(inn, each, self._folder)]
        except Exception as error:  # the test's own failure is not to be masked by any of ours
            return [Section("serai", f"its guests can't be asked: {type(error).__name__}: {error}")]

    def keep(self) -> list[str]:
        """Let all guests of the test stay; return the commands that enter them. Never raises."""
        commands = []
        try:
            for guest in self._all():
                labels = {**guest.info.labels, KEPT: self._test[:60]}
                del labels[OWNER]
                guest.set(labels=labels)
                self._kept.append(guest.id)
                commands.append(f"{self._session.house.command} console {guest.name}")
        except Exception as error:  # the test's own failure is not to be masked by any of ours
            commands.append(f"a guest could not be kept: {error}")
        return commands

    def end(self) -> None:
        """Delete what is not kept; raises what can't be deleted, after all the others are."""
        found = {each.id for each in self._session.inn.guests(self._labels)}
        gone = (found | self._made.keys()).difference(self._kept)
        wrong = self._session.inn.connection.finish_all(
            guest_calls.delete_guest(each, force=True) for each in gone
        )
        if wrong:
            raise wrong[0]


def explain(error: SeraiError) -> str:
    """Return what is to be told of an error, without the way that led to it."""
    return f"serai: {error.message}" + (f"\n{error.hint}" if error.hint else "")
