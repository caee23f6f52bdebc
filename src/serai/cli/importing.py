"""``serai import``: guests that come from elsewhere."""

import click

from serai.cli.layout import size
from serai.cli.options import SIZE, connection, format_option, new_name_argument
from serai.cli.output import print_json, print_line
from serai.cli.progress import finish
from serai.client.definitions import import_call
from serai.client.guest_calls import show_guest
from serai.client.job_calls import guest_of


@click.command(name="import")
@click.argument("source", metavar="FILE|URL")
@new_name_argument("[NAME]")
@click.option(
    "--disk", default="", metavar="FILE", help="Where the root disk of a definition is here."
)
@click.option(
    "--cpus", type=int, default=0, show_default="as it was", metavar="N", help="Virtual CPUs."
)
@click.option("--memory", type=SIZE, default=0, show_default="as it was", help="Memory.")
@click.option("--root-only", is_flag=True, help="Take only the first disk where there are several.")
@click.option(
    "--sha256",
    default="",
    metavar="HEX",
    help="Refuse the OVA or the disk unless this is its digest.",
)
@format_option
def import_(
    source: str,
    name: str,
    disk: str,
    cpus: int,
    memory: int,
    root_only: bool,
    sha256: str,
    form: str,
) -> None:
    """Make a guest of an OVA or of a libvirt definition.

    An OVA is what VMware, VirtualBox and others export; a definition is what `virsh dumpxml` prints. The
    guest is defined, not started, with the CPUs, the memory, the firmware and the network card's address
    that it had. Its first disk becomes an image of its name, the others volumes (NAME-1, NAME-2, …) that are
    attached to it, after the strict parser has looked at each. What can't be taken over is said.
    """
    daemon = connection()
    call = import_call(
        source, name=name, disk=disk, cpus=cpus, memory=memory, root_only=root_only,
        sha256=sha256.lower(),
    )  # fmt: skip
    job = finish(daemon, call, cancel=True)
    guest = daemon.ask(show_guest(guest_of(job)))
    if form == "json":
        print_json({"guest": guest, "notes": job.message.split("; ")})
        return
    print_line(
        f"{guest.name} is defined: {guest.cpus} CPU{'s' if guest.cpus > 1 else ''}, {size(guest.memory)} of memory, "
        f"{guest.firmware}, a disk of {size(guest.disk)}, MAC {guest.mac}"
    )
    for note in job.message.split("; "):
        print_line(f"note: {note}")
