"""What a fork is told: every value comes by the environment, nothing is put into the script."""

import subprocess

from serai.plan.reborn import back_words, birth_words, renewal_words

SEED = "5eed" * 16


def test_values_are_never_part_of_the_script():
    argv, env = birth_words(
        name="web1",
        machine_id="0a-1b",
        macs={"52:54:00:00:00:01": "52:54:00:00:00:02", "02::3": "02::4"},
        asks_anew=True,
        seed=SEED,
        now=99.6,
    )
    told = ("web1", "0a1b", "52:54:00:00:00:01=52:54:00:00:00:02 02::3=02::4", SEED, "100")
    assert all(value in env.values() for value in told)
    assert not any(value in " ".join(argv) for value in told)
    assert env.keys() >= back_words(seed=SEED, now=1.0)[1].keys()


def test_the_shell_reads_both():
    for argv, env in (
        back_words(seed=SEED, now=1.0),
        birth_words(name="a", machine_id="b", macs={"c": "d"}, asks_anew=False, seed=SEED, now=1.0),
        renewal_words(["c", "d"]),
    ):
        shell, _, script = argv
        done = subprocess.run(
            [shell, "-n"], input=script.encode(), env=env, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
