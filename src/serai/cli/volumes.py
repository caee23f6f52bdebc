"""``serai volume``: disks that live by themselves."""

import os
import time
from collections.abc import Sequence
from functools import partial

import click

from serai.cli.layout import age, ago, size
from serai.cli.options import SIZE, complete_guest, complete_volume, connection, format_option
from serai.cli.output import print_facts, print_json, print_line, print_table, say
from serai.cli.progress import finish
from serai.cli.verbs import Verb, do_to_all
from serai.client import job_calls, volume_calls
from serai.client.blocking import Connection
from serai.client.calls import Call
from serai.errors import Code, HostFailure
from serai.model.job import Job
from serai.model.volume import DEFAULT_POOL, NO_LIMITS, DiskFile, Limits, VolumeInfo
from serai.units import split_source

COLUMNS = ("NAME", "POOL", "SIZE", "OWN", "SHARED", "SNAPSHOTS", "GUESTS", "AGE")
ADDRESS_TIMEOUT = 60.0
LOOK_EVERY = 0.05


@click.group()
def volume() -> None:
    """Disks that live by themselves: make, attach, grow, copy them.

    A volume stays when its guest goes. One guest may write to it, or any number may read it. It takes
    only the space of what was written to it, and gives back what a guest discards.
    """


one_volume = click.argument("name", metavar="VOLUME", shell_complete=complete_volume)
source = click.argument("source", metavar="VOLUME[@SNAPSHOT]", shell_complete=complete_volume)
IOPS = click.option("--iops", type=click.IntRange(0), default=None, metavar="N",
                    help="At most so many operations a second; 0: any number.")  # fmt: skip
IOPS_BURST = click.option("--iops-burst", type=click.IntRange(0), default=0, metavar="N",
                          help="So many for a while, after it was less.")  # fmt: skip
BPS = click.option(
    "--bps", type=SIZE, default=None, help="At most so many bytes a second, like 50MiB."
)
BPS_BURST = click.option(
    "--bps-burst", type=SIZE, default=0, help="So many for a while, after it was less."
)
BURST = click.option("--burst-seconds", type=click.IntRange(1, 3600), default=1, show_default=True,
                     metavar="N", help="How long a burst may last.")  # fmt: skip


@volume.command()
@click.argument("name", metavar="NAME")
@click.argument("size_", metavar="SIZE", type=SIZE)
@click.option("--pool", default=DEFAULT_POOL, show_default=True, help="Where it lies.")
@click.option("--serial", default="", show_default="one of its own", help="Its serial number.")
@click.option("--note", default="", metavar="TEXT", help="A note, shown with it.")
@IOPS
@IOPS_BURST
@BPS
@BPS_BURST
@BURST
@format_option
def create(
    name: str,
    size_: int,
    pool: str,
    serial: str,
    note: str,
    iops: int | None,
    iops_burst: int,
    bps: int | None,
    bps_burst: int,
    burst_seconds: int,
    form: str,
) -> None:
    """Make an empty volume.

    SIZE is what a guest sees, like 10GiB. It takes only what is written to it, but the pool must have
    room for all of it.
    """
    limits = Limits(
        iops=iops or 0,
        iops_burst=iops_burst,
        bps=bps or 0,
        bps_burst=bps_burst,
        burst_seconds=burst_seconds,
    )
    call = volume_calls.create_volume(
        name, size_, pool=pool, serial=serial, limits=limits, note=note
    )
    _made(connection(), call, name, form)


def _made(daemon: Connection, call: Call[Job], name: str, form: str) -> None:
    finish(daemon, call, cancel=True)
    shown = daemon.ask(volume_calls.show_volume(name))
    if form == "json":
        print_json(shown)
    else:
        print_line(f"{shown.name} is there: {size(shown.size)} in the pool {shown.pool}")


@volume.command(name="list")
@click.option("--pool", default="", metavar="POOL", help="Only those of this pool.")
@click.option("--guest", default="", metavar="GUEST", shell_complete=complete_guest,
              help="Only those that this guest has.")  # fmt: skip
@format_option
def list_volumes(pool: str, guest: str, form: str) -> None:
    """List volumes.

    OWN is what would be free without it, SHARED what it uses together with snapshots, guests and other
    volumes. The disk that a guest was made with is none of them.
    """
    wanted = partial(volume_calls.list_volumes, pool=pool, guest=guest)
    found = connection().all_of(wanted)
    if form == "json":
        print_json(found)
        return
    if not found:
        say("there are no volumes; to make one: serai volume create NAME SIZE")
    print_table(COLUMNS, rows_of(found, time.time()))


def rows_of(found: Sequence[VolumeInfo], now: float) -> list[tuple[str, ...]]:
    """Return volumes as rows under ``COLUMNS``."""
    return [
        (
            each.name,
            each.pool,
            size(each.size),
            size(each.own),
            size(each.shared),
            str(len(each.snapshots) or "-"),
            ", ".join(_holder(one.guest, one.read_only) for one in each.attached) or "-",
            age(each.created_at, now),
        )
        for each in found
    ]


def _holder(guest: str, read_only: bool) -> str:
    return f"{guest} (reads)" if read_only else guest


@volume.command()
@one_volume
@format_option
def show(name: str, form: str) -> None:
    """Show all that is known of a volume."""
    each = connection().ask(volume_calls.show_volume(name))
    if form == "json":
        print_json(each)
        return
    print_facts(facts_of(each, time.time()))
    if each.snapshots:
        columns = ("SNAPSHOT", "SIZE", "OWN", "AGE", "NOTE")
        print_line("")
        rows = [
            (one.name, size(one.size), size(one.own), age(one.created_at, time.time()), one.note)
            for one in each.snapshots
        ]
        print_table(columns, rows)


def facts_of(each: VolumeInfo, now: float) -> list[tuple[str, str]]:
    """Return what is shown of a volume, in order."""
    guests = [
        _holder(one.guest, one.read_only)
        + (f", boots from it at place {one.boot}" if one.boot else "")
        for one in each.attached
    ]
    return [
        ("name", each.name),
        ("id", each.id),
        ("pool", each.pool),
        ("size", size(each.size)),
        ("own size", size(each.own)),
        ("shared", size(each.shared)),
        ("serial", each.serial),
        ("limits", limits_shown(each.limits)),
        ("guests", "; ".join(guests) or "-"),
        ("made", ago(each.created_at, now)),
        ("note", each.note or "-"),
    ]


def limits_shown(limits: Limits) -> str:
    """Return limits as a few words."""
    if limits == NO_LIMITS:
        return "none"
    words = []
    if limits.iops:
        burst = f" ({limits.iops_burst} in a burst)" if limits.iops_burst else ""
        words.append(f"{limits.iops} operations/s{burst}")
    if limits.bps:
        burst = f" ({size(limits.bps_burst)}/s in a burst)" if limits.bps_burst else ""
        words.append(f"{size(limits.bps)}/s{burst}")
    if limits.iops_burst or limits.bps_burst:
        words.append(f"bursts of {limits.burst_seconds} s")
    return ", ".join(words)


@volume.command()
@one_volume
@click.argument("guest", metavar="GUEST", shell_complete=complete_guest)
@click.option("--read-only", is_flag=True, help="The guest only reads it, and others may too.")
@click.option("--boot", type=click.IntRange(0, 99), default=0, metavar="N", show_default="none",
              help="Its place in the order of booting: 1 comes before the guest's own disk.")  # fmt: skip
@format_option
def attach(name: str, guest: str, read_only: bool, boot: int, form: str) -> None:
    """Attach a volume to a guest.

    A guest that runs sees it at once, under its serial number: /dev/disk/by-id/virtio-SERIAL where its
    system has such names. It keeps it over restarts, until it is detached.
    """
    daemon = connection()
    call = volume_calls.attach_volume(name, guest, read_only=read_only, boot=boot)
    _changed(daemon, finish(daemon, call), name, form)


def _changed(daemon: Connection, job: Job, name: str, form: str) -> None:
    if form == "json":
        print_json(daemon.ask(volume_calls.show_volume(name)))
    else:
        print_line(f"{name}: {job.message}" if job.message else f"{name} is changed")


@volume.command()
@one_volume
@click.argument(
    "guest", metavar="[GUEST]", required=False, default="", shell_complete=complete_guest
)
@format_option
def detach(name: str, guest: str, form: str) -> None:
    """Detach a volume from its guest.

    Unmount it inside first. A guest that runs is asked to let it go, for ten seconds. GUEST is needed
    where several have it.
    """
    daemon = connection()
    _changed(daemon, finish(daemon, volume_calls.detach_volume(name, guest)), name, form)


@volume.command()
@one_volume
@click.argument("size_", metavar="SIZE", type=SIZE)
@format_option
def resize(name: str, size_: int, form: str) -> None:
    """Make a volume larger.

    A guest that runs sees it at once; its file system has to be grown inside. It never gets smaller.
    """
    daemon = connection()
    finish(daemon, volume_calls.change_volume(name, size=size_))
    shown = daemon.ask(volume_calls.show_volume(name))
    if form == "json":
        print_json(shown)
    else:
        print_line(f"{name} has {size(shown.size)}")


@volume.command(name="set")
@one_volume
@IOPS
@IOPS_BURST
@BPS
@BPS_BURST
@BURST
@click.option("--note", default=None, metavar="TEXT", help="A note, shown with it.")
@format_option
def set_volume(
    name: str,
    iops: int | None,
    iops_burst: int,
    bps: int | None,
    bps_burst: int,
    burst_seconds: int,
    note: str | None,
    form: str,
) -> None:
    """Limit a volume, or note something.

    Limits hold at once, also for a guest that runs. Those that are not named are none.
    """
    given = iops is not None or bps is not None or iops_burst or bps_burst
    limits = Limits(
        iops=iops or 0,
        iops_burst=iops_burst,
        bps=bps or 0,
        bps_burst=bps_burst,
        burst_seconds=burst_seconds,
    )
    daemon = connection()
    finish(daemon, volume_calls.change_volume(name, limits=limits if given else None, note=note))
    shown = daemon.ask(volume_calls.show_volume(name))
    if form == "json":
        print_json(shown)
    else:
        print_line(f"{name} is changed; limits: {limits_shown(shown.limits)}")


@volume.command()
@source
@click.argument("new", metavar="NEW")
@format_option
def clone(source: str, new: str, form: str) -> None:
    """Make a new volume of a volume as it is now, or of its snapshot.

    Nothing is copied: both stand on the same layers, and each takes only what it changes.
    """
    name, snapshot = split_source(source)
    _made(connection(), volume_calls.clone_volume(name, new, snapshot=snapshot), new, form)


@volume.command()
@click.argument("name", metavar="VOLUME[@SNAPSHOT]", shell_complete=complete_volume)
@click.option("--note", default="", metavar="TEXT", help="A note, shown with it.")
@click.option("--delete", is_flag=True, help="Delete this snapshot instead.")
@format_option
def snapshot(name: str, note: str, delete: bool, form: str) -> None:
    """Make a snapshot of a volume, or delete one.

    What is in it now is kept; a guest that writes to it goes on. Without a name the snapshot gets one.
    `serai volume show VOLUME` lists them, and `serai volume clone VOLUME@SNAPSHOT NEW` makes a volume.
    """
    name, word = split_source(name)
    daemon = connection()
    if delete:
        if not word:
            raise click.UsageError("Which snapshot? Write VOLUME@SNAPSHOT.")
        finish(daemon, volume_calls.delete_volume_snapshot(name, word))
        said = f"{name}@{word} is deleted"
    else:
        job = finish(daemon, volume_calls.snapshot_volume(name, snapshot=word, note=note))
        said = f"{name}@{job.message} is there"
    if form == "json":
        print_json(daemon.ask(volume_calls.show_volume(name)))
    else:
        print_line(said)


@volume.command(name="import")
@click.argument("source", metavar="FILE|URL")
@click.argument("name", metavar="NAME")
@click.option("--pool", default=DEFAULT_POOL, show_default=True, help="Where it lies.")
@click.option("--sha256", default="", metavar="HEX", help="What the file must have.")
@format_option
def import_volume(source: str, name: str, pool: str, sha256: str, form: str) -> None:
    """Make a volume of a disk image.

    Raw, qcow2 or VMDK, also compressed. It is looked at as strictly as an image before any other
    program sees it.
    """
    place = source if "://" in source else os.path.abspath(source)
    _made(
        connection(), volume_calls.import_volume(place, name, pool=pool, sha256=sha256), name, form
    )


@volume.command()
@source
@click.argument("file", metavar="[FILE]", required=False, default="")
@click.option("--as", "kind", type=click.Choice([*map(str, DiskFile)]), default="qcow2",
              show_default=True, help="What to write.")  # fmt: skip
@click.option("--nbd", is_flag=True, help="Serve it by NBD instead, until ctrl-C.")
@format_option
def export(source: str, file: str, kind: str, nbd: bool, form: str) -> None:
    """Write a volume as it is now, or its snapshot, to a new file, or serve it by NBD.

    Prints the file's checksum. With --nbd it prints an address for `nbdinfo` and `nbdcopy`, and serves
    until it is interrupted: one moment of the volume, which can only be read.
    """
    name, word = split_source(source)
    if nbd == bool(file):
        raise click.UsageError("Give either FILE or --nbd.")
    daemon = connection()
    if nbd:
        _serve(daemon, name, word, form)
        return
    path = os.path.abspath(file)
    call = volume_calls.export_volume(name, path, form=kind, snapshot=word)
    digest, written = finish(daemon, call, cancel=True).results
    if form == "json":
        print_json({"path": written, "digest": digest})
    else:
        print_line(f"{digest}  {written}")


def _serve(daemon: Connection, name: str, snapshot: str, form: str) -> None:
    """Have it served until we are interrupted, or somebody cancels the job."""
    job = daemon.ask(volume_calls.serve_volume(name, snapshot=snapshot))
    try:
        address = _wait_address(daemon, job)
        if form == "json":
            print_json({"address": address, "job": job.id})
        else:
            print_line(address)
        say("serving; ctrl-C ends it")
        while not (job := daemon.ask(job_calls.waiting(job_calls.show_job(job.id), 30.0))).is_final:
            pass
        job_calls.outcome(job)
    except KeyboardInterrupt:
        daemon.ask(job_calls.cancel_job(job.id))


def _wait_address(daemon: Connection, job: Job) -> str:
    until = time.monotonic() + ADDRESS_TIMEOUT
    while time.monotonic() < until:
        job = daemon.ask(job_calls.show_job(job.id))
        if job.message.startswith("nbd"):
            return job.message
        job_calls.outcome(job)
        time.sleep(LOOK_EVERY)  # the address comes with the job's progress, which is no event
    raise HostFailure(Code.TIMEOUT, "the volume is not served yet", hint="See: serai job list")


@volume.command()
@click.argument(
    "names", metavar="VOLUME...", nargs=-1, required=True, shell_complete=complete_volume
)
@format_option
def delete(names: tuple[str, ...], form: str) -> int:
    """Delete volumes that no guest has, with their snapshots.

    There is no way back. Clones keep what they stand on.
    """
    return do_to_all(names, Verb(volume_calls.delete_volume, "is deleted"), form)
