"""The Debian packages that serai uses: which, what for, and which program tells that one is there.

Only the standard library is imported here: ``scripts/setup`` runs this file with the system's
Python before anything else is installed: ``python3 src/serai/host/packages.py`` prints what is
missing, one name a line; with ``--dev`` also what only the tests need.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass

SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Package:
    """One package. ``probe`` is a program, or an absolute path, that comes with it.

    ``needed``: no guest runs without it; else only what it is for can't be done.
    """

    name: str
    probe: str
    purpose: str
    needed: bool = False

    def is_there(self) -> bool:
        """Tell whether the package's probe is on this host."""
        if self.probe.startswith("/"):
            return os.path.exists(self.probe)
        return shutil.which(self.probe, path=SEARCH) is not None


PACKAGES = (
    Package("qemu-system-x86", "qemu-system-x86_64", "runs virtual machines", needed=True),
    Package("qemu-utils", "qemu-img", "converts and checks disk images", needed=True),
    Package("ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd", "starts guests by UEFI"),
    Package("util-linux", "setpriv", "drops privileges before QEMU starts", needed=True),
    Package("libnbd-bin", "nbdcopy", "reads volumes that are served by NBD"),
    Package("nftables", "nft", "filters what guests send and receive"),
    Package("netbase", "/etc/protocols", "names protocols for nftables"),
    Package("dnsmasq-base", "dnsmasq", "gives guests their addresses and names"),
    Package("openssh-client", "ssh", "logs in to guests: serai ssh"),
    Package("cpio", "cpio", "packs the tiny image"),
    Package("lz4", "lz4", "unpacks the tiny image's kernel: it boots sooner"),
    Package("zstd", "zstd", "packs images"),
    Package("xz-utils", "xz", "unpacks images"),
    Package("bzip2", "bzip2", "unpacks images"),
    Package("mmdebstrap", "mmdebstrap", "builds the debian image"),
    Package("uidmap", "newuidmap", "lets an ordinary user build the debian image"),
    Package("e2fsprogs", "mke2fs", "makes the debian image's file system"),
    Package("dosfstools", "mkfs.vfat", "makes the debian image's EFI partition"),
    Package("mtools", "mcopy", "fills the debian image's EFI partition"),
    Package("fdisk", "sfdisk", "partitions the debian image"),
    Package("grub-common", "grub-mkimage", "makes the debian image's boot loader"),
    Package("grub-pc-bin", "/usr/lib/grub/i386-pc/boot.img", "boots the debian image by BIOS"),
    Package(
        "grub-efi-amd64-bin",
        "/usr/lib/grub/x86_64-efi/kernel.img",
        "boots the debian image by UEFI",
    ),
)


FOR_TESTS = (
    Package("iproute2", "ip", "makes the tests' own networks"),
    Package("iputils-ping", "ping", "asks in them who is there"),
    Package("udhcpc", "udhcpc", "asks in them for an address"),
    Package("bind9-dnsutils", "dig", "asks in them for names"),
)


def package_of(program: str) -> str:
    """Return the package that brings ``program``; empty when none of ours does."""
    for package in PACKAGES:
        if os.path.basename(package.probe) == program:
            return package.name
    return ""


def missing(more: Iterable[Package] = ()) -> list[Package]:
    """Return those of our packages, and of ``more``, that are not on this host."""
    return [package for package in (*PACKAGES, *more) if not package.is_there()]


if __name__ == "__main__":
    more = FOR_TESTS if "--dev" in sys.argv[1:] else ()
    sys.stdout.write("".join(f"{package.name}\n" for package in missing(more)))
