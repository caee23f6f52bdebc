"""What a guest boots from when it has several disks: by BIOS and by UEFI, from a volume and from its own."""

from pathlib import Path

from bootable import make_bootable
from debian import answers
from keeper import Daemon, wait_for

from serai import Guest


def booted_from(guest: Guest) -> str:
    """Return the name of the disk that the guest's system has come from, once it is up."""
    wait_for(f"the agent of {guest.name}", lambda: answers(guest))
    words = guest.run("cat /proc/cmdline").stdout.split()
    return next(word.removeprefix("disk=") for word in words if word.startswith("disk="))


def test_it_boots_from_the_volume_that_comes_first(
    daemon: Daemon, tmp_path: Path, tiny_state: Path
) -> None:
    """One that was imported and a clone of it, each before the guest's own disk; then behind it."""
    inn = daemon.inn
    own = make_bootable(tmp_path, tiny_state, "own")
    other = make_bootable(tmp_path, tiny_state, "other", number=2)
    inn.import_image(str(own), name="system", agent="yes")
    volume = inn.import_volume(str(other), "other")
    wishes = {"bios": volume.name, "uefi": volume.clone("copy").name}
    guests = [
        inn.launch("system", name=firmware, memory="384MiB", firmware=firmware,
                   volumes=[f"{name},boot=1"], wait=False)
        for firmware, name in wishes.items()
    ]  # fmt: skip
    for guest in guests:
        assert booted_from(guest) == "other", guest.name
        assert guest.run("test -d /sys/firmware/efi").ok == (guest.name == "uefi")
        guest.stop(force=True)
        inn.volume(wishes[guest.name]).detach().attach(guest.name, boot=2)
        guest.start()
    for guest in guests:
        assert booted_from(guest) == "own", guest.name
        guest.delete(force=True)
    for each in inn.volumes():
        each.delete()
