"""What reading OVF and libvirt's XML have in common: no document of a stranger does more than be read. Pure.

A document with a DTD is refused, so that there are no entities: none that grow without end, none
that name a file or an address. Elements are found by their local names, whatever the namespace.
"""

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from serai.errors import Code, Invalid
from serai.units import MAX_SIZE, MIB, shorten

MAX_XML = 1 << 20
MAX_TEXT = 4096
MAX_DISKS = 64
MAX_NICS = 64
MAX_NUMBER = 1 << 62

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.ASCII)


def definition_refused(reason: str, *, hint: str = "") -> Invalid:
    """Return the problem ``definition-refused`` with its reason."""
    return Invalid(Code.DEFINITION_REFUSED, f"the definition is refused: {reason}", hint=hint)


def read_xml(untrusted: bytes) -> Element:
    """Return the root of a document, or refuse it (``definition-refused``)."""
    if len(untrusted) > MAX_XML:
        raise definition_refused(f"it has more than {MAX_XML} bytes")
    try:
        root: Element = fromstring(untrusted, forbid_dtd=True)
    except DefusedXmlException as error:
        raise definition_refused(
            "it has a DTD or entities, which could read other files"
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise definition_refused(f"it is no XML: {error}") from error
    return root


def local(name: str) -> str:
    """Return the name of an element or attribute without its namespace."""
    return name.rpartition("}")[2]


def children(element: Element | None, name: str) -> Iterator[Element]:
    """Yield the children of that name, none where there is no element."""
    if element is not None:
        yield from (each for each in element if local(each.tag) == name)


def child(element: Element | None, *names: str) -> Element | None:
    """Return what a path of names leads to, the first of each; None where it ends."""
    for name in names:
        element = next(children(element, name), None)
    return element


def text(element: Element | None) -> str:
    """Return an element's text, short and printable, "" where there is none."""
    return plain(element.text or "") if element is not None else ""


def attribute(element: Element | None, name: str) -> str:
    """Return an attribute by its local name, "" where there is none."""
    if element is not None:
        for key, value in element.attrib.items():
            if local(key) == name:
                return plain(value)
    return ""


def plain(untrusted: str) -> str:
    """Return a text as it may stand in a message or be compared; refuse an absurd one."""
    found = untrusted.strip()
    if len(found) > MAX_TEXT:
        raise definition_refused("it has a text without an end")
    return found if found.isprintable() else "".join(c for c in found if c.isprintable())


def whole_number(untrusted: str, what: str) -> int:
    """Return a number from 1 on, or refuse it."""
    digits = untrusted.isascii() and untrusted.isdigit() and len(untrusted) < 20
    if not digits or not 0 < int(untrusted) <= MAX_NUMBER:
        raise definition_refused(f"its {what} is {shorten(untrusted)}")
    return int(untrusted)


def memory_of(count: str, factor: int) -> int:
    """Return a memory in bytes, in whole MiB, from 1 MiB to 64 TiB."""
    size = whole_number(count, "memory") * factor
    if size > MAX_SIZE:
        raise definition_refused(f"its memory is {shorten(count)} times {factor} bytes")
    return max(1, size // MIB) * MIB


def mac_of(untrusted: str) -> str:
    """Return a network card's address if it can be one, else ""; one of a group can't."""
    found = untrusted.lower().replace("-", ":")
    is_fit = _MAC.fullmatch(found) and not int(found[:2], 16) & 1 and found.strip("0:")
    return found if is_fit else ""


def listed(names: Iterator[str] | set[str]) -> str:
    """Return names for a sentence, each once, sorted, not endlessly many."""
    found = sorted({shorten(name, 40).strip("'") for name in names})
    return ", ".join(found[:20]) + (" and more" if len(found) > 20 else "")
