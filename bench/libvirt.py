"""libvirt's own daemon in a private corner: its folders are mounts that nobody else sees.

Needs root, ``libvirtd`` and ``virsh``; where one is missing, ``open_libvirt`` says which. Guests are
the tiny image with the same kind of devices, through the default driver and its default confinement.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from serai.model.machine import Machine

PRIVATE = ("/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
START_LIMIT = 60.0
APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
"""The shell is the first process of a namespace, and reaps: libvirt waits for QEMUs that nobody reaps."""

SCRIPT = """
mount --make-rprivate / || exit 1
for folder in {folders}; do mkdir -p "$folder" && mount -t tmpfs bench "$folder" || exit 1; done
cp -a /etc/libvirt {home}/etc && mount --bind {home}/etc /etc/libvirt || exit 1
virtlogd & logging=$!
libvirtd -f {home}/libvirtd.conf & main=$!
trap 'kill $main; wait $main; kill $logging; wait' TERM
wait $main
"""

DOMAIN = """
<domain type='{kind}'>
  <name>{name}</name>
  <memory unit='b'>{memory}</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>{cpus}</vcpu>
  <os><type arch='x86_64' machine='{machine_type}'>hvm</type>
    <kernel>{home}/kernel</kernel><initrd>{home}/initrd</initrd><cmdline>{cmdline}</cmdline></os>
  <features><acpi/><apic/></features>
  <cpu mode='maximum'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <serial type='pty'><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <interface type='user'><model type='virtio'/><rom enabled='no'/></interface>
    <video><model type='vga'/></video>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='virtio' freePageReporting='on'/>
  </devices>
</domain>
"""


class Libvirt:
    """A running libvirtd and its ``virsh``."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._uri = f"qemu:///system?socket={home}/libvirt-sock"

    def virsh(self, *words: str) -> str:
        """Run one virsh command and return what it prints."""
        done = subprocess.run(
            ["virsh", "--quiet", "--connect", self._uri, *words],
            capture_output=True, text=True, timeout=START_LIMIT, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"virsh {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def begin(self, *words: str) -> "subprocess.Popen[bytes]":
        """Begin one virsh command."""
        return subprocess.Popen(
            ["virsh", "--quiet", "--connect", self._uri, *words], stdout=subprocess.DEVNULL
        )

    def version(self) -> str:
        """Return libvirt's version."""
        return self.virsh("version").split("library: libvirt ", 1)[1].split()[0]

    def define(self, name: str, machine: Machine) -> None:
        """Define a guest like ``machine``."""
        file = self._home / f"{name}.xml"
        file.write_text(
            DOMAIN.format(
                kind="kvm" if machine.accel == "kvm" else "qemu",
                name=name, memory=machine.memory, cpus=machine.cpus, home=self._home,
                machine_type=machine.machine_type, cmdline=machine.cmdline,
            )
        )  # fmt: skip
        self.virsh("define", str(file))

    def take_kernel(self, machine: Machine) -> None:
        """Put kernel and initramfs where libvirt's QEMU may read them."""
        shutil.copyfile(machine.kernel, self._home / "kernel")
        shutil.copyfile(machine.initrd, self._home / "initrd")


def why_not() -> str:
    """Return why libvirt can't be measured here; empty when it can."""
    if os.geteuid() != 0:
        return "it needs root"
    missing = [name for name in ("virsh", "libvirtd", "virtlogd") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


@contextlib.contextmanager
def open_libvirt(home: Path) -> Iterator[Libvirt]:
    """Run libvirtd in ``home`` until the block ends; TimeoutError if it does not answer."""
    home.mkdir(parents=True)
    home.chmod(0o755)
    (home / "libvirtd.conf").write_text(f'unix_sock_dir = "{home}"\nauth_unix_rw = "none"\n')
    script = SCRIPT.format(home=home, folders=" ".join(PRIVATE))
    with (home / "log").open("wb") as log:
        daemon = subprocess.Popen([*APART, "sh", "-c", script], stdout=log, stderr=log)
    try:
        libvirt = Libvirt(home)
        _wait_answer(libvirt)
        yield libvirt
        for name in libvirt.virsh("list", "--name").split():
            libvirt.virsh("destroy", name)
    finally:
        daemon.kill()
        daemon.wait(timeout=START_LIMIT)


def _wait_answer(libvirt: Libvirt) -> None:
    until = time.monotonic() + START_LIMIT
    while time.monotonic() < until:
        try:
            libvirt.version()
        except RuntimeError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError("libvirtd did not answer")
