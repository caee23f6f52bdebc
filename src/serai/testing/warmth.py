"""The warm image that tests are forked from: made by one process, once, and kept for later sessions.

Its name tells what it was made from: the image's content, the wish, the setup with its files, and
what has to be the same for memory to be taken up again. When a part changes, a new one is made and
the older ones of the same wish go.
"""

from collections.abc import Sequence
from pathlib import Path

from serai.errors import Code, Conflict, NotFound, SeraiError
from serai.model.image import Expect, Image
from serai.testing.household import OWNER, Household
from serai.testing.wishes import Setup, Wish, family_of, guest_name, print_of, warm_name

RECIPES = ("tiny", "debian")
MAKING_TTL = "1h"
"""When a machine that is being prepared goes, if whoever prepared it was killed."""


class SetupFailed(Exception):
    """The project's own ``serai_setup`` raised; the cause says what."""


class Warmth:
    """Finds and makes warm images, for the project in the folder ``root``."""

    def __init__(
        self, house: Household, root: Path, setup: Setup | None, files: Sequence[Path]
    ) -> None:
        self._house = house
        self._root = root
        self._setup = setup
        self._files = files

    def image_for(self, wish: Wish) -> str:
        """Return the name of an image whose guests are what is wished for: warm, if it can be.

        Raises what making it raises; SetupFailed if the setup of the project does.
        """
        image = self._base(wish.image)
        if not wish.warm or image.agent is Expect.NO:
            return image.name
        if image.warm and self._setup is None:
            _refuse_sizes(wish)
            return image.name
        family = family_of(wish, self._root)
        name = warm_name(family, [image.digest, image.snapshot, *self._host(), self._print()])
        if not self._has(name):
            with self._house.making(family.rstrip("-")):
                if not self._has(name):
                    self._make(wish, image, name)
                    self._remove_older(family, name)
        return name

    def _base(self, name: str) -> Image:
        """Return the image of this name; one of our recipes is built if it is not there yet."""
        inn = self._house.inn
        try:
            return inn.image(name)
        except NotFound as error:
            if error.code is not Code.IMAGE_NOT_FOUND:
                raise
            if name not in RECIPES:
                raise NotFound(
                    Code.IMAGE_NOT_FOUND,
                    f"the guests of tests are to be made of the image {name}, which is not there",
                    hint=f"Import or publish it: {self._house.command} image import --help; "
                    f"or name one that is built by itself: {', '.join(RECIPES)}.",
                ) from error
        with self._house.making(f"image-{name}"):
            if not self._has(name):
                inn.build_image(name)
        return inn.image(name)

    def _has(self, name: str) -> bool:
        return any(each.name == name for each in self._house.inn.images())

    def _host(self) -> tuple[str, ...]:
        can = self._house.status.capabilities
        return (self._house.status.version, can.qemu_version, can.accel, can.processor)

    def _print(self) -> str:
        return print_of(self._setup, self._files)

    def _make(self, wish: Wish, image: Image, name: str) -> None:
        labels = {OWNER: self._house.owner}
        source = self._house.inn.launch(
            image.name,
            name=guest_name("warm", self._house.owner),
            ttl=MAKING_TTL,
            labels=labels,
            **({} if image.warm else wish.spec),
        )
        with source:
            if self._setup is not None:
                try:
                    self._setup(source)
                except Exception as error:
                    raise SetupFailed(f"serai_setup failed in a guest of {image.name}") from error
            source.publish(name)

    def _remove_older(self, family: str, name: str) -> None:
        """Remove what this wish was warm as before; one that is in use goes another time."""
        for each in self._house.inn.images():
            if each.name.startswith(family) and each.name != name:
                try:
                    self._house.inn.delete_image(each.name)
                except SeraiError as error:
                    if error.code not in (Code.IMAGE_IN_USE, Code.IMAGE_NOT_FOUND):
                        raise


def _refuse_sizes(wish: Wish) -> None:
    if wish.spec:
        raise Conflict(
            Code.IMAGE_UNFIT,
            f"{wish.image} is a warm image: its guests have the {', '.join(wish.spec)} it was frozen with",
            hint="Leave that out, or name the image that it was made from.",
        )
