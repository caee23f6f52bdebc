"""What a fork is told: one line for what waits for it, or a script that gets all by the environment."""

import subprocess
from dataclasses import replace

import pytest

from serai.model.network import NetworkMode, NetworkSpec, Port
from serai.plan.reborn import (
    NewPort,
    NewSelf,
    as_line,
    as_name_line,
    as_script,
    new_port,
    renewal_words,
)
from serai.qemu.birth_wire import LINE_LIMIT

SEED = "5eed" * 16
BACK = NewSelf(seed=SEED, now=99.6)
BORN = replace(
    BACK,
    name="web1",
    machine_id="0a-1b",
    macs={"52:54:00:00:00:01": "52:54:00:00:00:02", "02::3": "02::4"},
    ports=(NewPort(mac="52:54:00:00:00:02", address="10.0.0.7/24", router="10.0.0.1"),),
)


def test_values_are_never_part_of_the_script() -> None:
    argv, env = as_script(BORN)
    told = ("web1", "0a1b", "52:54:00:00:00:01=52:54:00:00:00:02 02::3=02::4", SEED, "100")
    assert all(value in env.values() for value in told)
    assert not any(value in " ".join(argv) for value in told)
    assert env.keys() >= as_script(BACK)[1].keys()


def test_the_shell_reads_both() -> None:
    for argv, env in (
        as_script(BACK),
        as_script(replace(BORN, ports=())),
        renewal_words([NewPort(mac="c"), NewPort(mac="d", address="10.0.0.7/24")]),
    ):
        shell, _, script = argv
        done = subprocess.run(
            [shell, "-n"], input=script.encode(), env=env, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_the_line_of_one_that_was_put_back() -> None:
    assert as_line(BACK, "n0") == f"serai1 n0 {SEED} 99 600000000"


def test_the_line_of_a_fork() -> None:
    begin, own = f"{as_line(BACK, 'n0')} web1 0a1b", "52:54:00:00:00:01=52:54:00:00:00:02"
    assert as_line(BORN, "n0") == f"{begin} anew {own}=10.0.0.7/24=10.0.0.1 02::3=02::4"
    assert as_line(replace(BORN, ports=()), "n0") == f"{begin} keep {own} 02::3=02::4"


@pytest.mark.parametrize(
    ("network", "address", "words"),
    [
        (NetworkSpec(name="n", subnet="10.0.0.0/24"), "10.0.0.7", "10.0.0.7/24=10.0.0.1"),
        (
            NetworkSpec(name="n", subnet="10.0.0.0/16", mode=NetworkMode.ISOLATED),
            "10.0.0.7",
            "10.0.0.7/16=",
        ),
        (NetworkSpec(name="n", mode=NetworkMode.BRIDGE, bridge="br0"), "", "="),
    ],
)
def test_the_addresses_that_a_fork_will_get(network: NetworkSpec, address: str, words: str) -> None:
    port = Port(id="i", name="net0", network="n", mac="02::4", tap="st0", address=address)
    assert renewal_words([new_port(port, network)])[1]["NICS"] == f"02::4={words}"


@pytest.mark.parametrize("now", [0.0, 1.0, 1.9999999, 1795815789.174012])
def test_the_clock_in_the_line_is_the_clock(now: float) -> None:
    _, _, _, seconds, nanoseconds = as_line(replace(BACK, now=now), "n0").split(" ")
    assert 0 <= int(nanoseconds) < 1_000_000_000
    assert abs(int(seconds) + int(nanoseconds) / 1e9 - now) < 1e-5


def test_the_line_of_one_that_waited_for_a_name() -> None:
    assert as_name_line("web1", "n0") == "serai1-name n0 web1"


def test_a_line_has_room_for_every_port() -> None:
    macs = {f"52:54:00:00:00:{n:02x}": f"52:54:00:00:01:{n:02x}" for n in range(48)}
    line = as_line(replace(BORN, name="n" * 63, machine_id="0" * 36, macs=macs), "0" * 16)
    assert len(line) <= LINE_LIMIT
