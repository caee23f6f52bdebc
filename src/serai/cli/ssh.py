"""``serai ssh`` and ``serai ssh-proxy``: the system's own ssh, and the way for it into a guest.

The daemon leads to the guest's ssh server, so it does not matter where its network is, or whether it
has an address at all. The guest's host keys come from its agent, not from whoever answers.
"""

import os
import select
import shlex
import shutil
import sys

import click

from serai.cli.options import connection, guest_argument
from serai.cli.output import say, write_bytes
from serai.client.console import Console
from serai.client.guest_calls import show_guest, show_ssh, ssh_path
from serai.errors import Code, Conflict, HostFailure
from serai.model.guest import Guest
from serai.model.talk import SshAddress

CHUNK = 64 << 10


@click.command()
@click.option("-l", "--user", default="", metavar="USER", show_default="as the guest's image has it",
              help="As whom to log in.")  # fmt: skip
@click.option(
    "-i", "--identity", metavar="FILE", default="", help="The private key to log in with."
)
@click.option("-o", "--option", "options", multiple=True, metavar="K=V",
              help="An option for ssh, as in ssh_config; may be repeated.")  # fmt: skip
@guest_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
def ssh(
    user: str, identity: str, options: tuple[str, ...], guest: str, command: tuple[str, ...]
) -> None:
    """Log in to a guest by ssh, wherever its network is.

    This becomes the system's own ssh, with a way into the guest; CMD is run there. Its host keys
    are known from its agent: there is nothing to confirm. A key that may log in is given at the
    launch: serai launch debian web1 --ssh-key ~/.ssh/id_ed25519.pub. For scp, rsync and others:
    ssh -o 'ProxyCommand serai ssh-proxy %h' root@web1
    """
    program = shutil.which("ssh")
    if program is None:
        raise HostFailure(
            Code.TOOL_MISSING,
            "there is no ssh on this machine",
            hint="Install it: apt-get install openssh-client",
        )
    daemon = connection()
    view = daemon.ask(show_guest(guest))
    address = daemon.ask(show_ssh(view.id))
    if not address.is_known:
        say(
            f"note: the host keys of {view.name} are not known from its agent; the first ones are believed"
        )
    more = [word for option in options for word in ("-o", option)]
    more += ["-i", identity] if identity else []
    words = ssh_words(address, view.id, view.name, user or address.user, more)
    os.execv(program, ["ssh", *words, *command])  # noqa: S606 - we are to become it


def ssh_words(
    address: SshAddress, guest_id: str, name: str, user: str, more: list[str]
) -> list[str]:
    """Return the arguments for ssh up to the command."""
    proxy = shlex.join([sys.executable, "-m", "serai", "ssh-proxy", guest_id]).replace("%", "%%")
    options = {
        "ProxyCommand": proxy,
        "HostKeyAlias": address.alias,
        "UserKnownHostsFile": f'"{address.known_hosts}"'.replace("%", "%%"),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes" if address.is_known else "accept-new",
        "UpdateHostKeys": "no",
    }
    ours = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return [*more, *ours, "-l", user, "--", name]


@click.command(name="ssh-proxy")
@guest_argument
def ssh_proxy(guest: str) -> None:
    """Lead to a guest's ssh server: a ProxyCommand for ssh.

    Standard input and output are the connection. So for all that uses ssh: scp, rsync, ansible.
    """
    daemon = connection()
    view = daemon.ask(show_guest(guest))
    try:
        with Console(daemon.path, ssh_path(view.id), "way to the ssh server") as opened:
            _pass_on(opened)
    except Conflict as error:
        raise _explained(error, view) from error


def _explained(error: Conflict, guest: Guest) -> Conflict:
    """Return the error with a sentence of its own: a WebSocket can only name the problem's code."""
    if error.code is Code.SSH_UNREACHABLE:
        return Conflict(
            error.code,
            f"the ssh server of {guest.name} does not answer",
            hint=f"Does it run in the guest, and is that up yet? serai exec {guest.name} -- ss -tln",
        )
    if error.code is Code.GUEST_STATE:
        return Conflict(error.code, f"{guest.name} is {guest.state}: nobody can log in now")
    return error


def _pass_on(opened: Console) -> None:
    """Pass bytes both ways until either side ends."""
    source = sys.stdin.fileno()
    while opened.is_open:
        if opened.has_data:
            write_bytes(opened.receive())
        ready, _, _ = select.select([opened.fileno(), source], [], [])
        if opened.fileno() in ready:
            write_bytes(opened.receive())
        if source in ready:
            data = os.read(source, CHUNK)
            if not data:
                return
            opened.send(data)
    write_bytes(opened.receive())  # also tells why it is closed, if that was not to be expected
