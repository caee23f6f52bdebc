"""``serai image``: build, pull, import, list, show, export, delete, and making an index."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from serai.cli.indexing import index, key
from serai.cli.layout import age, size
from serai.cli.options import complete_image, complete_source, connection, format_option
from serai.cli.output import print_facts, print_json, print_line, print_table, say, write_bytes
from serai.cli.progress import finish
from serai.client import image_calls
from serai.client.calls import Call
from serai.client.copying import written_whole
from serai.model.catalogue import IndexEntry
from serai.model.image import Expect, Image
from serai.model.job import Job
from serai.units import split_source

F = TypeVar("F", bound=Callable[..., Any])

OFFERED = ("NAME", "SYSTEM", "SIZE", "LEAST MEMORY", "USER", "FIRMWARE", "PINNED", "ALSO")
MAX_KEY = 4096
NOT_EXPORTED = (
    "note: {name} was published from a guest; its memory, and what that guest had written to its disks, "
    "are not in the export"
)
COLUMNS = ("NAME", "KIND", "SIZE", "DISK", "AGENT", "FIRMWARE", "DIGEST", "AGE")


@click.group()
def image() -> None:
    """Build, pull, import and manage images.

    Images are what guests are made of. They are read-only: a guest's own disk lies over its image.
    """


image.add_command(index)
image.add_command(key)

image_argument = click.argument("name", metavar="NAME", shell_complete=complete_image)


@image.command()
@click.argument("recipe", type=click.Choice(["tiny", "debian"]))
@click.option("--name", default="", metavar="NAME", help="Another name than the recipe's.")
@click.option(
    "--suite", default="", metavar="SUITE", help="debian: which release; default: this host's."
)
@click.option("--include", multiple=True, metavar="PACKAGE", help="debian: more packages.")
@click.option("--replace", is_flag=True, help="Give an existing name to the new image.")
@format_option
def build(
    recipe: str, name: str, suite: str, include: tuple[str, ...], replace: bool, form: str
) -> None:
    """Build an image from Debian packages.

    tiny: kernel, busybox and guest agent in 25 MB, up in about 3 s. debian: a full system with
    systemd, cloud-init and ssh, for BIOS and UEFI.
    """
    packages = tuple(each for word in include for each in word.split(",") if each)
    call = image_calls.build_image(
        recipe, name=name, suite=suite, include=packages, replace=replace
    )
    _made(call, form)


@image.command(name="import")
@click.argument("source", metavar="FILE|URL")
@click.option("--name", default="", metavar="NAME", help="Its name; default: from the file's.")
@click.option("--sha256", default="", metavar="HEX", help="Refuse it unless this is its digest.")
@click.option("--sha512", default="", metavar="HEX", help="The same, where that is what is known.")
@click.option("--kernel", is_flag=True, help="It is a kernel that QEMU loads itself.")
@click.option("--initrd", default="", metavar="FILE|URL", help="With --kernel: its initramfs.")
@click.option(
    "--append", "cmdline", default="", metavar="TEXT", help="With --kernel: its command line."
)
@click.option("--agent", type=click.Choice([*map(str, Expect)]), default="unknown",
              help="Whether a guest agent is in it; launch waits for it unless no.")  # fmt: skip
@format_option
def import_(
    source: str,
    name: str,
    sha256: str,
    sha512: str,
    kernel: bool,
    initrd: str,
    cmdline: str,
    agent: str,
    form: str,
) -> None:
    """Import a disk, an ISO, a kernel or an exported image.

    A disk is raw, qcow2 or VMDK. FILE is on the daemon's host, and may be compressed (gz, xz, zst,
    bz2). It is looked at by a strict parser before any other program touches it, and refused with
    the reason if it refers to anything outside itself.
    """
    call = image_calls.import_image(
        _place(source), name=name, sha256=sha256.lower(), sha512=sha512.lower(),
        kernel=kernel, initrd=_place(initrd) if initrd else "", cmdline=cmdline, agent=agent,
    )  # fmt: skip
    _made(call, form)


def _index_options(function: F) -> F:
    """Which index, and what it must be."""
    for option in (
        click.option("--key", "key_file", default="", metavar="FILE",
                     help="The public key that must have signed the index."),
        click.option("--index-sha256", default="", metavar="HEX",
                     help="Refuse the index unless this is its digest."),
        click.option("--index", "index_place", default="", metavar="FILE|URL",
                     show_default="serai's own list of official images", help="Another index."),
    ):  # fmt: skip
        function = option(function)
    return function


@image.command()
@click.argument("wanted", metavar="NAME[:VERSION]")
@_index_options
@click.option("--name", default="", metavar="LOCAL", help="Its name here; default: NAME-VERSION.")
@click.option("--replace", is_flag=True, help="Give an existing name to the new image.")
@format_option
def pull(
    wanted: str,
    index_place: str,
    index_sha256: str,
    key_file: str,
    name: str,
    replace: bool,
    form: str,
) -> None:
    """Pull an image by its name in an index.

    Without --index from serai's own list, which names the official cloud images of the large
    distributions and has the publishers' digests checked; see `serai image catalogue`. An index from
    elsewhere must be signed by a trusted key, have the digest that is given, come over https, or be a
    file here. Without VERSION the newest is meant. What was pulled before is not pulled again.
    """
    call = image_calls.pull_image(
        wanted, index=_place(index_place) if index_place else "", index_sha256=index_sha256.lower(),
        key=_text_of(key_file), name=name, replace=replace,
    )  # fmt: skip
    _made(call, form)


def _text_of(file: str) -> str:
    return Path(file).read_text("ascii", "replace")[:MAX_KEY] if file else ""


@image.command()
@click.argument("word", metavar="[WORD]", required=False, default="")
@_index_options
@format_option
def catalogue(word: str, index_place: str, index_sha256: str, key_file: str, form: str) -> None:
    """List what can be pulled.

    With WORD only what has it in its name or system. PINNED says how it is made sure that the right file
    comes: by a digest in the index, or by the publisher's file of digests, fetched over https.
    """
    found = connection().ask(
        image_calls.show_catalogue(
            index=_place(index_place) if index_place else "",
            sha256=index_sha256.lower(),
            key=_text_of(key_file),
        )
    )
    entries = [each for each in found.entries if _has_word(each, word.lower())]
    if form == "json":
        print_json({**msgspec.to_builtins(found), "entries": entries})
        return
    print_table(OFFERED, [_offer(each) for each in entries])
    print_line(f"{found.title or found.source}: {found.trust}")


def _has_word(each: IndexEntry, word: str) -> bool:
    return any(word in text.lower() for text in (each.full_name, each.os, *each.aliases))


def _offer(each: IndexEntry) -> tuple[str, ...]:
    pinned = "digest" if each.sha256 or each.sha512 else "publisher"
    return (
        each.full_name,
        each.os or "-",
        size(each.size),
        size(each.min_memory),
        each.user or "-",
        "+".join(each.firmware) or "-",
        pinned,
        ", ".join(each.aliases) or "-",
    )


def _place(source: str) -> str:
    """Return a URL as it is and a file by its absolute path: the daemon is elsewhere."""
    return source if "://" in source else str(Path(source).absolute())


@image.command()
@click.argument("source", metavar="SOURCE[@SNAPSHOT]", shell_complete=complete_source)
@click.argument("name", metavar="IMAGE")
@click.option("--memory/--no-memory", default=True, show_default="memory",
              help="With the memory of a guest that runs or a snapshot that has it, or disks only.")  # fmt: skip
@click.option("--replace", is_flag=True, help="Give an existing name to the new image.")
@format_option
def publish(source: str, name: str, memory: bool, replace: bool, form: str) -> None:
    """Make an image of a guest or of a snapshot.

    With memory it is a warm image: `serai launch` of it is a fork, booted already. A guest that runs
    goes on. Guests of the image are born again: what the guest inside knows of itself becomes
    theirs; but keys, passwords and files that are in it are in each of them.
    """
    guest, snapshot = split_source(source)
    call = image_calls.publish_image(guest, name, snapshot=snapshot, memory=memory, replace=replace)
    _made(call, form, name)


def _made(call: Call[Job], form: str, name: str = "") -> None:
    daemon = connection()
    job = finish(daemon, call, cancel=True)
    made = daemon.ask(image_calls.show_image(name or (job.results or (job.subject,))[0]))
    if form == "json":
        print_json(made)
    elif job.kind == "image-pull" and job.message.endswith("there already"):
        print_line(f"{job.message}: nothing was pulled")
    else:
        print_line(f"{made.name} is there: {_kind(made)}, {size(made.size)}, {made.digest[:19]}")


@image.command(name="list")
@format_option
def list_images(form: str) -> None:
    """List all images."""
    images = connection().all_of(image_calls.list_images)
    if form == "json":
        print_json(images)
    else:
        print_table(COLUMNS, [_row(each) for each in images])


def _kind(each: Image) -> str:
    """Return how a guest starts from it; a warm one runs on from where it was frozen."""
    return f"{each.kind}, warm" if each.warm else str(each.kind)


def _row(each: Image) -> tuple[str, ...]:
    return (
        each.name,
        _kind(each),
        size(each.size),
        size(each.virtual_size),
        str(each.agent),
        "+".join(each.firmware),
        each.digest[:19],
        age(each.created_at, time.time()),
    )


@image.command()
@image_argument
@format_option
def show(name: str, form: str) -> None:
    """Show all that is known of an image."""
    each = connection().ask(image_calls.show_image(name))
    if form == "json":
        print_json(each)
        return
    print_facts([
        ("name", each.name),
        ("kind", _kind(each)),
        ("digest", each.digest),
        ("size", size(each.size)),
        ("disk", f"{size(each.virtual_size)}, {each.disk_format}" if each.virtual_size else "-"),
        ("agent", str(each.agent)),
        ("firmware", ", ".join(each.firmware)),
        ("least memory", size(each.min_memory)),
        ("command line", each.cmdline or "-"),
        ("source", each.source or "-"),
        *sorted(each.details.items()),
    ])  # fmt: skip


@image.command()
@image_argument
@click.option("-o", "--output", default="", metavar="FILE", help="Where to; - is standard output.")
@click.option("--file", type=click.Choice(["all", "disk", "kernel", "initrd"]), default="all",
              show_default=True, help="All as a tar that can be imported again, or one file.")  # fmt: skip
@format_option
def export(name: str, output: str, file: str, form: str) -> None:
    """Export an image.

    To NAME.tar in this folder, or NAME.disk and so on for one file, unless -o names another place.

    Of a published image, also of a warm one, it is the image that it was published over: neither memory nor
    what its guest had written is in the export, and guests of what is imported from it boot anew.
    """
    daemon = connection()
    if daemon.ask(image_calls.show_image(name)).snapshot and file in ("all", "disk"):
        say(NOT_EXPORTED.format(name=name))
    chunks = daemon.stream(image_calls.export_image(name, file))
    target = output or (f"{name}.tar" if file == "all" else f"{name}.{file}")
    if target == "-":
        for chunk in chunks:
            write_bytes(chunk)
        return
    with written_whole(Path(target)) as written:
        length = sum(written.write(chunk) for chunk in chunks)
    if form == "json":
        print_json({"file": target, "size": length})
    else:
        print_line(f"{target}: {size(length)}")


@image.command()
@image_argument
@format_option
def delete(name: str, form: str) -> None:
    """Delete an image that no guest is built on."""
    finish(connection(), image_calls.delete_image(name))
    message = f"{name} is deleted"
    if form == "json":
        print_json([{"name": name, "ok": True, "message": message, "code": ""}])
    else:
        print_line(message)
