"""``serai pool`` and ``serai medium``."""

import os

import click

from serai.cli.layout import size
from serai.cli.options import complete_guest, complete_image, connection, format_option
from serai.cli.output import print_facts, print_json, print_line, print_table
from serai.cli.progress import finish
from serai.cli.verbs import Verb, do_to_all
from serai.client import guest_calls, volume_calls
from serai.client.calls import Call
from serai.model.job import Job
from serai.model.volume import Pool

COLUMNS = ("NAME", "KIND", "PATH", "SIZE", "FREE", "VOLUMES", "VIRTUAL", "USED")


@click.group()
def pool() -> None:
    """The places where volumes lie.

    A pool is a folder, on whatever disk; the pool `default` is always there.
    """


@pool.command()
@click.argument("name", metavar="NAME")
@click.argument("path", metavar="FOLDER")
@format_option
def create(name: str, path: str, form: str) -> None:
    """Make a pool of an empty or new folder."""
    daemon = connection()
    finish(daemon, volume_calls.create_pool(name, os.path.abspath(path)))
    shown = daemon.ask(volume_calls.show_pool(name))
    if form == "json":
        print_json(shown)
    else:
        print_line(f"{name} is there: {size(shown.free)} free in {shown.path}")


@pool.command(name="list")
@format_option
def list_pools(form: str) -> None:
    """List pools.

    FREE is what may still be written; VIRTUAL is what the volumes in it say that they have, USED what
    they take.
    """
    found = connection().ask(volume_calls.list_pools()).items
    if form == "json":
        print_json(found)
    else:
        print_table(COLUMNS, [_row(each) for each in found])


def _row(each: Pool) -> tuple[str, ...]:
    free = size(each.free) if each.available else "not there"
    return (
        each.name, str(each.kind), each.path, size(each.size), free,
        str(each.volumes), size(each.virtual), size(each.used),
    )  # fmt: skip


@pool.command()
@click.argument("name", metavar="POOL")
@format_option
def show(name: str, form: str) -> None:
    """Show all that is known of a pool."""
    each = connection().ask(volume_calls.show_pool(name))
    if form == "json":
        print_json(each)
        return
    able = each.features
    can = [word for word in able.__struct_fields__ if getattr(able, word)]
    print_facts(
        [
            ("name", each.name),
            ("kind", str(each.kind)),
            ("path", each.path),
            ("there", "yes" if each.available else "no"),
            ("size", size(each.size)),
            ("free", size(each.free)),
            ("volumes", f"{each.volumes} of {size(each.virtual)}, taking {size(each.used)}"),
            ("can", ", ".join(can)),
        ]
    )


@pool.command()
@click.argument("names", metavar="POOL...", nargs=-1, required=True)
@format_option
def delete(names: tuple[str, ...], form: str) -> int:
    """Delete pools that nothing lies in.

    The folder itself stays.
    """
    return do_to_all(names, Verb(volume_calls.delete_pool, "is deleted"), form)


@click.group()
def medium() -> None:
    """Put a medium into a guest's CD drive, or take it out.

    A medium is an image of the kind cdrom: `serai image import FILE.iso`.
    """


FORCE = click.option("--force", is_flag=True, help="Even if the guest has locked the drive.")


@medium.command()
@click.argument("guest", metavar="GUEST", shell_complete=complete_guest)
@click.argument("image", metavar="IMAGE", shell_complete=complete_image)
@FORCE
@format_option
def insert(guest: str, image: str, force: bool, form: str) -> None:
    """Put a medium into a guest's CD drive.

    What is in it comes out first. A guest without a drive gets one while it is stopped.
    """
    _change(guest, volume_calls.insert_medium(guest, image, force=force), form)


@medium.command()
@click.argument("guest", metavar="GUEST", shell_complete=complete_guest)
@FORCE
@format_option
def eject(guest: str, force: bool, form: str) -> None:
    """Take what is in a guest's CD drive out."""
    _change(guest, volume_calls.eject_medium(guest, force=force), form)


def _change(guest: str, call: Call[Job], form: str) -> None:
    daemon = connection()
    job = finish(daemon, call)
    if form == "json":
        print_json(daemon.ask(guest_calls.show_guest(guest)))
    else:
        print_line(f"{guest}: {job.message}")
