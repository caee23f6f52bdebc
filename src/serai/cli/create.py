"""``serai launch``."""

import time

import click

from serai.cli.options import DURATION, SIZE, complete_image, connection, format_option, pairs_from
from serai.cli.output import print_json, print_line
from serai.cli.progress import finish
from serai.client.calls import guest_of, launch_guest, show_guest
from serai.client.network_words import ports_of
from serai.client.words import parse_wish
from serai.model.guest import Firmware, Guest, GuestSpec, RestartPolicy
from serai.units import format_duration

TTL = click.option("--ttl", type=DURATION, default=0.0, show_default="never",
                   help="Delete it by itself after so long, like 2h.")  # fmt: skip


@click.command()
@click.argument("image", metavar="IMAGE", shell_complete=complete_image)
@click.argument("name", metavar="[NAME]", required=False, default="")
@click.option("--cpus", type=int, default=1, show_default=True, metavar="N", help="Virtual CPUs.")
@click.option("--memory", type=SIZE, default="256MiB", show_default=True, help="Memory.")
@click.option(
    "--disk", type=SIZE, default=0, show_default="the image's own", help="Size of the disk."
)
@click.option(
    "--firmware",
    type=click.Choice([*map(str, Firmware)]),
    default="bios",
    show_default=True,
    help="What the machine starts with.",
)
@click.option(
    "--restart",
    type=click.Choice([*map(str, RestartPolicy)]),
    default="no",
    show_default=True,
    help="When it is started again after it ended by itself.",
)
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label; may be repeated.")
@click.option("--volume", "volumes", multiple=True, metavar="VOLUME",
              help="A volume: NAME, NAME,read-only or size=10GiB; ,boot=N to boot from it. May be repeated.")  # fmt: skip
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NAME[,address=A][,address6=A][,mac=M][,group=G]",
    show_default="QEMU's own",
    help="Attach it to a network; may be repeated.",
)
@TTL
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default="wait",
    help="Wait until the guest's agent answers, or only until the guest is started.",
)
@format_option
def launch(
    image: str,
    name: str,
    cpus: int,
    memory: int,
    disk: int,
    firmware: str,
    restart: str,
    labels: tuple[str, ...],
    volumes: tuple[str, ...],
    networks: tuple[str, ...],
    ttl: float,
    wait: bool,
    form: str,
) -> None:
    """Make a guest of an image and start it.

    Waits until the guest's agent answers, if the image has one. Without NAME the daemon picks one.
    Interrupted by ctrl-C it is cancelled: before the guest runs nothing is left of it, else it is
    said how to remove it. A size is written like 512MiB or 2GiB.
    """
    spec = GuestSpec(
        image=image,
        name=name,
        cpus=cpus,
        memory=memory,
        disk=disk,
        firmware=Firmware(firmware),
        restart=RestartPolicy(restart),
        labels=pairs_from(labels, "--label"),
    )
    began = time.monotonic()
    daemon = connection()
    wishes = [parse_wish(each) for each in volumes]
    ports = ports_of(networks)
    call = launch_guest(spec, ports=ports, wait_agent=wait, ttl=ttl, volumes=wishes)
    job = finish(daemon, call, cancel=True)
    guest = daemon.ask(show_guest(guest_of(job)))
    if form == "json":
        print_json(guest)
        return
    print_line(summary(guest, wait, time.monotonic() - began))


def summary(guest: Guest, waited: bool, seconds: float) -> str:
    """Return what is said of a new guest."""
    answers = ", its agent answers" if waited and guest.agent == "answering" else ""
    at = ", ".join(filter(None, (each.address or each.address6 for each in guest.ports)))
    where = f" at {at}" if at else ""
    return (
        f"{guest.name} is {guest.state}{where}{answers} ({guest.accel}, {format_duration(seconds)})"
    )
