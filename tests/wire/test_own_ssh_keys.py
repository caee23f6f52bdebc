"""What the debian image runs before sshd: whose host keys it keeps, and whose it replaces."""

import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

SCRIPT = files("serai.disk") / "recipes" / "debian" / "own-ssh-keys"


class Machine:
    """A folder that has what the script looks at, and the script, made to look there."""

    def __init__(self, folder: Path) -> None:
        self.ssh = folder / "ssh"
        self.ssh.mkdir()
        self.id = folder / "machine-id"
        script = SCRIPT.read_text().replace("/etc/ssh", str(self.ssh))
        self.script = script.replace("/etc/machine-id", str(self.id))
        self.become("one")

    def become(self, who: str) -> None:
        self.id.write_text(f"{who}\n")

    def make(self, kind: str) -> None:
        """Put a key there as cloud-init and administrators do."""
        path = self.ssh / f"ssh_host_{kind}_key"
        for old in (path, path.with_suffix(".pub")):
            old.unlink(missing_ok=True)
        argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)]
        subprocess.run(argv, check=True)

    def keys(self) -> dict[str, str]:
        """Run the script; return the public keys by type, each of which has its private one."""
        subprocess.run(["sh", "-c", self.script], check=True)
        found = {}
        for path in self.ssh.glob("ssh_host_*_key"):
            assert path.stat().st_mode & 0o077 == 0
            argv = ["ssh-keygen", "-y", "-f", str(path)]
            derived = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
            kind, key = path.with_suffix(".pub").read_text().split()[:2]
            assert derived.split()[:2] == [kind, key]
            found[kind] = key
        assert not list(self.ssh.glob(".new*"))
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_without_keys_gets_one_and_keeps_it(machine: Machine) -> None:
    keys = machine.keys()
    assert list(keys) == ["ssh-ed25519"]
    assert machine.keys() == keys


def test_a_copy_gets_others_of_the_same_types(machine: Machine) -> None:
    machine.make("ed25519")
    machine.make("ecdsa")
    before = machine.keys()
    machine.become("two")
    after = machine.keys()
    assert before.keys() == after.keys() and not set(before.values()) & set(after.values())
    assert machine.keys() == after
    machine.become("three")
    assert not set(after.values()) & set(machine.keys().values())


def test_keys_that_were_put_there_since_are_the_copys_own(machine: Machine) -> None:
    before = machine.keys()
    machine.become("two")
    machine.make("ed25519")  # cloud-init, at the copy's first start
    given = (machine.ssh / "ssh_host_ed25519_key.pub").read_text().split()[1]
    assert machine.keys() == {"ssh-ed25519": given} != before
    machine.become("three")
    assert machine.keys()["ssh-ed25519"] != given
