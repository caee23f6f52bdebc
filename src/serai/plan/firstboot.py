"""What a guest is told at its first boot, as cloud-init's NoCloud takes it: pure.

Three documents. ``meta-data`` says who it is: the instance id is the guest's id, so that a fork which
boots anew is a new instance; host name and keys stand there too, so that the user's own data needs
no rewriting. ``user-data`` is the user's, as it came. ``network-config`` (version 2) finds each port by
its MAC address. JSON is written where YAML is read, which holds it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serai.errors import Code, Conflict, Invalid
from serai.model.actions import CreateGuest, LaunchGuest
from serai.model.firstboot import FirstBoot, WaitFor
from serai.model.guest import GuestRecord
from serai.model.image import Expect, Image
from serai.model.network import NetworkMode, NetworkSpec, Port
from serai.plan.network import gateway6_of, gateway_of
from serai.plan.resolver import domain_of
from serai.plan.ssh_keys import check_ssh_keys
from serai.plan.user_data import check_user_data
from serai.units import shorten

NOTHING = "#cloud-config\n{}\n"
HOST_NAME_LIMIT = 253

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedPort:
    """A port as the guest is told of it. Addresses have their prefix (``10.1.0.5/24``).

    Without an address of a family the guest asks for one (DHCP, or a router's advertisement). Names
    without a dot are looked for in the domain ``search``.
    """

    mac: str
    address: str = ""
    address6: str = ""
    gateway: str = ""
    gateway6: str = ""
    dns: tuple[str, ...] = ()
    search: str = ""


def check_first_boot(untrusted: FirstBoot) -> FirstBoot:
    """Return it checked, keys in their plain form; raises what is wrong, before anything is made."""
    return FirstBoot(
        hostname=check_host_name(untrusted.hostname) if untrusted.hostname else "",
        ssh_keys=check_ssh_keys(untrusted.ssh_keys),
        user_data=check_user_data(untrusted.user_data) if untrusted.user_data else "",
    )


def check_told(action: LaunchGuest | CreateGuest, image: Image) -> None:
    """Raise Conflict (``image-unfit``) where a guest of the image can't be told or waited for so."""
    seed = action.seed
    wait_for = action.wait_for if isinstance(action, LaunchGuest) and action.wait else None
    if seed and image.warm:
        raise Conflict(
            Code.IMAGE_UNFIT,
            f"{image.name} is a warm image: its guests run on, and have no first boot",
            hint="Leave keys, host name and user data out, or publish it with --no-memory.",
        )
    if seed and image.cloud_init is Expect.NO:
        raise Conflict(
            Code.IMAGE_UNFIT,
            f"the image {image.name} has no cloud-init that would take keys, a host name or user data",
            hint="Use an image that has it, like debian; or do it later: serai exec",
        )
    if wait_for is WaitFor.CLOUD_INIT and image.cloud_init is Expect.NO:
        raise Conflict(
            Code.IMAGE_UNFIT,
            f"the image {image.name} has no cloud-init to wait for",
            hint="Use --wait-for agent.",
        )
    if wait_for is WaitFor.CLOUD_INIT and image.agent is Expect.NO:
        raise Conflict(
            Code.IMAGE_UNFIT,
            f"the image {image.name} has no agent that could tell how cloud-init fares",
            hint="Use --wait-for ssh.",
        )


def check_host_name(name: str) -> str:
    """Return ``name`` if it can be a host name, with or without a domain (RFC 1123)."""
    labels = name.split(".")
    if len(name) > HOST_NAME_LIMIT or not all(map(_LABEL.fullmatch, labels)):
        raise Invalid(
            Code.NAME_INVALID,
            f"{shorten(name)} cannot be a host name",
            hint="Use letters, digits and '-', in parts of at most 63 with a dot between them.",
        )
    return name


def seed_ports(record: GuestRecord, networks: Mapping[str, NetworkSpec]) -> tuple[SeedPort, ...]:
    """Return the guest's ports as it is told of them; ``networks`` are what theirs are, by id.

    A port with an address has it told; any other asks by DHCP. Out of them all the first leads away.
    """
    if not record.ports:
        return (SeedPort(mac=record.mac),)
    return tuple(
        _seed_port(port, networks.get(port.network), is_first=index == 0)
        for index, port in enumerate(record.ports)
    )


def _seed_port(port: Port, spec: NetworkSpec | None, *, is_first: bool) -> SeedPort:
    if spec is None or not port.address:
        return SeedPort(mac=port.mac)
    leads_away = is_first and spec.mode in (NetworkMode.NAT, NetworkMode.ROUTED)
    with_prefix6 = f"{port.address6}/{spec.subnet6.partition('/')[2]}" if spec.subnet6 else ""
    return SeedPort(
        mac=port.mac,
        address=f"{port.address}/{spec.subnet.partition('/')[2]}",
        address6=with_prefix6 if port.address6 else "",
        gateway=gateway_of(spec) if leads_away else "",
        gateway6=gateway6_of(spec) if leads_away else "",
        dns=(gateway_of(spec),),
        search=domain_of(spec.name),
    )


def plan_documents(
    first_boot: FirstBoot, *, instance_id: str, hostname: str, ports: Sequence[SeedPort]
) -> Mapping[str, bytes]:
    """Return the documents of the seed by their names, the same for the same arguments."""
    about = {
        "instance-id": instance_id,
        "local-hostname": hostname,
        "public-keys": list(first_boot.ssh_keys),
    }
    return {
        "meta-data": _json(about),
        "network-config": _json(_network_config(ports)),
        "user-data": (first_boot.user_data or NOTHING).encode(),
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _network_config(ports: Sequence[SeedPort]) -> dict[str, object]:
    return {
        "version": 2,
        "ethernets": {f"net{index}": _ethernet(port) for index, port in enumerate(ports)},
    }


def _ethernet(port: SeedPort) -> dict[str, object]:
    addresses = [each for each in (port.address, port.address6) if each]
    found: dict[str, object] = {
        "match": {"macaddress": port.mac},
        "dhcp4": not port.address,
    }
    found |= {"addresses": addresses} if addresses else {}
    found |= {"routes": [{"to": "0.0.0.0/0", "via": port.gateway}]} if port.gateway else {}
    # no route to ::/0: cloud-init 22.4, Debian 12's, makes ::/64 of it
    found |= {"gateway6": port.gateway6} if port.gateway6 else {}
    search = {"search": [port.search]} if port.search else {}
    return found | ({"nameservers": {"addresses": list(port.dns), **search}} if port.dns else {})


# -- asking the guest ------------------------------------------------------------------------------

LOOK = """
tries=0
while :; do
    if [ -e /run/cloud-init/result.json ]; then echo ended; cat /run/cloud-init/result.json; exit; fi
    if [ -e /run/cloud-init/disabled ]; then echo disabled; exit; fi
    command -v cloud-init >/dev/null || { echo missing; exit; }
    stage=$(sed -n 's/^ *"stage": "\\([a-z-]*\\)".*/\\1/p' /run/cloud-init/status.json 2>/dev/null)
    if [ "${stage:-begin}" != "$1" ] || [ $tries -ge 20 ]; then echo "${stage:-begin}"; exit; fi
    tries=$((tries + 1))
    sleep 0.5
done
"""
STAGES = ("begin", "init-local", "init", "modules-config", "modules-final")
"""What ``LOOK`` tells while cloud-init is at work, in their order."""


def look_words(stage: str) -> list[str]:
    """Return the command that tells of cloud-init as soon as it has gone on from ``stage``.

    It waits ten seconds at most. A first line is one of ``STAGES``, or ``ended`` (then its result
    follows), ``disabled`` or ``missing``.
    """
    return ["/bin/sh", "-c", LOOK, "look", stage]


WHO = """
left=50
while [ -e /run/sshd.reborn ] && [ $((left -= 1)) -gt 0 ]; do sleep 0.2; done
cat /etc/ssh/ssh_host_*_key.pub 2>/dev/null
user=root
if [ -r /etc/cloud/cloud.cfg ]; then
    closed=$(cat /etc/cloud/cloud.cfg /etc/cloud/cloud.cfg.d/*.cfg | sed -n 's/^disable_root: *//p' | tail -n 1)
    name=$(sed -n '/^ *default_user:/,$s/^ *name: *//p' /etc/cloud/cloud.cfg | head -n 1)
    case $closed in [Ff]alse | 0 | no) ;; *) user=${name:-root} ;; esac
fi
echo "user $user"
"""
_USER = re.compile(r"^user ([a-z_][a-z0-9_-]{0,31})$", re.MULTILINE)


def who_words() -> list[str]:
    """Return the command that tells the guest's host keys and as whom to log in."""
    return ["/bin/sh", "-c", WHO]


def user_in(untrusted: str) -> str:
    """Return as whom to log in, from what the guest told; root if it told nobody."""
    match = _USER.search(untrusted)
    return match[1] if match else "root"
