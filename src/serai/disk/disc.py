"""The disc that tells a guest its first boot: an ISO 9660 image, the same for the same files.

Imported when one is made, not before: see ``seeds``.
"""

import io
from collections.abc import Mapping

import pycdlib

LABEL = "CIDATA"
SECTOR = 2048
FIRST_DESCRIPTOR = 16
END_OF_DESCRIPTORS = 255
ROOT_RECORD = 156
VOLUME_DATES = slice(813, 881)
NO_VOLUME_DATE = b"0" * 16 + b"\0"
A_DATE = bytes((123, 1, 1, 0, 0, 0, 0))
"""The first second of 2023: a disc says nothing of when it was made."""


def make_disc(documents: Mapping[str, bytes]) -> bytes:
    """Return an ISO 9660 image with these files, in which the same files give the same bytes."""
    disc = pycdlib.PyCdlib()
    disc.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    for index, (name, content) in enumerate(sorted(documents.items())):
        disc.add_fp(
            io.BytesIO(content),
            len(content),
            f"/FILE{index}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
            file_mode=0o100400,
        )
    image = io.BytesIO()
    disc.write_fp(image)
    disc.close()
    return _without_dates(bytearray(image.getvalue()))


def _without_dates(image: bytearray) -> bytes:
    """Put one date into all places where ISO 9660 has one (ECMA-119: 8.4.26 to 8.4.29, 9.1.5)."""
    sector = FIRST_DESCRIPTOR
    while (kind := image[sector * SECTOR]) != END_OF_DESCRIPTORS:
        start = sector * SECTOR
        if kind in (1, 2):
            dates = slice(start + VOLUME_DATES.start, start + VOLUME_DATES.stop)
            image[dates] = NO_VOLUME_DATE * 4
            _date_record(image, start + ROOT_RECORD)
            extent = int.from_bytes(image[start + ROOT_RECORD + 2 :][:4], "little")
            _date_folder(image, extent * SECTOR)
        sector += 1
    return bytes(image)


def _date_folder(image: bytearray, at: int) -> None:
    end = at + SECTOR
    while at < end and image[at]:
        _date_record(image, at)
        at += image[at]


def _date_record(image: bytearray, at: int) -> None:
    """Date one record of a folder, and what Rock Ridge says of it (RRIP 1.09, 4.1.6)."""
    length, name = image[at], image[at + 32]
    image[at + 18 : at + 25] = A_DATE
    place = at + 33 + name + (name + 1) % 2
    while place + 4 <= at + length and image[place + 2]:
        if image[place : place + 2] == b"TF":
            dates = (image[place + 2] - 5) // len(A_DATE)
            image[place + 5 : place + 5 + dates * len(A_DATE)] = A_DATE * dates
        place += image[place + 2]
