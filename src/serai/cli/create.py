"""``serai launch``."""

import sys
import time
from pathlib import Path

import click

from serai.cli.options import (
    LIFETIME,
    SIZE,
    complete_image,
    connection,
    format_option,
    new_name_argument,
    pairs_from,
)
from serai.cli.output import print_json, print_line
from serai.cli.progress import finish
from serai.client.guest_calls import launch_guest, show_guest
from serai.client.job_calls import guest_of
from serai.client.network_words import ports_of
from serai.client.words import first_boot_of, parse_wish
from serai.model.firstboot import WaitFor
from serai.model.guest import Firmware, Guest, GuestSpec, RestartPolicy
from serai.units import format_duration

DONE = {WaitFor.SSH: ", ssh answers", WaitFor.CLOUD_INIT: ", cloud-init is done"}

TTL = click.option("--ttl", type=LIFETIME, default=0.0, show_default="never",
                   help="Delete it by itself after so long, like 2h.")  # fmt: skip


@click.command()
@click.argument("image", metavar="IMAGE", shell_complete=complete_image)
@new_name_argument("[NAME]")
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
@click.option(
    "--ssh-key",
    "ssh_keys",
    multiple=True,
    metavar="FILE|KEY",
    help="A public key that may log in: a .pub file, or the key itself; may be repeated.",
)
@click.option(
    "--user-data",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="What cloud-init in the guest is to do: a cloud-config, a script, a MIME multi-part; - is standard input.",
)
@click.option(
    "--hostname",
    default="",
    metavar="NAME",
    show_default="the guest's name with --ssh-key or --user-data, else the image's",
    help="What cloud-init is to call the guest inside.",
)
@TTL
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default="wait",
    help="Wait until the guest's agent answers, or only until the guest is started.",
)
@click.option(
    "--wait-for",
    type=click.Choice([*map(str, WaitFor)]),
    default="agent",
    show_default=True,
    help="What to wait for.",
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
    ssh_keys: tuple[str, ...],
    user_data: Path | None,
    hostname: str,
    ttl: float,
    wait: bool,
    wait_for: str,
    form: str,
) -> None:
    """Make a guest of an image and start it.

    Waits until the guest's agent answers, if the image has one. Without NAME the daemon picks one.
    Interrupted by ctrl-C it is cancelled: before the guest runs nothing is left of it, else it is
    said how to remove it. A size is written like 512MiB or 2GiB.

    Keys, user data and host name are for cloud-init, which the image must have: debian has it, tiny has
    not. Nothing shows them again. Without any of them the guest calls itself as the image does. With --wait-for cloud-init the launch lasts until all that is done,
    and fails where that did. Then: serai ssh NAME

    A guest of a published image begins as that was frozen: it has its CPUs, memory, disk and firmware, and
    others are refused. From a warm one it runs on, is told nothing by cloud-init, and calls itself NAME.
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
    told = first_boot_of(
        hostname=hostname,
        ssh_keys=[key_from(word) for word in ssh_keys],
        user_data=_user_data_from(user_data),
    )
    began = time.monotonic()
    daemon = connection()
    call = launch_guest(
        spec,
        ports=ports_of(networks),
        volumes=[parse_wish(each) for each in volumes],
        first_boot=told,
        wait_agent=wait,
        wait_for=WaitFor(wait_for),
        ttl=ttl,
    )
    job = finish(daemon, call, cancel=True)
    guest = daemon.ask(show_guest(guest_of(job)))
    if form == "json":
        print_json(guest)
        return
    print_line(summary(guest, wait, time.monotonic() - began, WaitFor(wait_for)))


def key_from(word: str) -> Path | str:
    """Return a key that was written out as it is, and anything else as a path."""
    if " " in word.strip() and word.startswith(("ssh-", "ecdsa-", "sk-")):
        return word
    return Path(word).expanduser()


def _user_data_from(path: Path | None) -> Path | bytes | str:
    if path is None:
        return ""
    return sys.stdin.buffer.read() if str(path) == "-" else path


def summary(guest: Guest, waited: bool, seconds: float, wait_for: WaitFor = WaitFor.AGENT) -> str:
    """Return what is said of a new guest."""
    answers = ", its agent answers" if guest.agent == "answering" else ""
    if wait_for is not WaitFor.AGENT:
        answers = DONE[wait_for]
    answers = answers if waited else ""
    at = ", ".join(filter(None, (each.address or each.address6 for each in guest.ports)))
    where = f" at {at}" if at else ""
    return (
        f"{guest.name} is {guest.state}{where}{answers} ({guest.accel}, {format_duration(seconds)})"
    )
