"""The life of a real guest: every verb does what it says, and happenings are told apart."""

import contextlib
import os
import signal
import threading
import time

import pytest
from keeper import Daemon, wait_for
from warm import WARM

from serai import Guest, SeraiError
from serai.client.blocking import Connection
from serai.client.calls import Call
from serai.errors import Code
from serai.model.job import Job

LIMIT = 20.0


def wait_for_state(guest: Guest, state: str, limit: float = LIMIT) -> None:
    wait_for(f"{guest.name} is {state}", lambda: guest.state == state, limit)


def silence_agent(guest: Guest) -> None:
    """Take the agent from the guest; it may not even answer that."""
    with contextlib.suppress(SeraiError):
        guest.run("sed -i /agent/d /etc/inittab; kill -HUP 1; kill -9 $(pidof qemu-ga)")
    wait_for("the agent is gone", lambda: guest.refresh().info.agent == "silent")


def events_of(daemon: Daemon, guest: Guest) -> list[str]:
    return [str(event.kind) for event in daemon.inn.events() if event.subject_id == guest.id]


def test_a_launched_guest_runs_commands(guest: Guest) -> None:
    result = guest.run("uname -s; echo oops >&2; exit 3")
    assert (result.code, result.stdout, result.stderr) == (3, "Linux\n", "oops\n")
    assert not result.ok


def test_start_of_a_running_guest_changes_nothing(daemon: Daemon, guest: Guest) -> None:
    before = guest.refresh().info
    guest.start()
    assert guest.info.pid == before.pid
    assert guest.info.version == before.version


def test_a_graceful_stop_powers_off_from_inside(guest: Guest) -> None:
    guest.stop(timeout=15)
    assert guest.info.state == "stopped"
    assert guest.info.last_exit == "requested"
    assert "Power down" in guest.log(tail=400)
    assert guest.info.pid == 0


def test_a_forced_stop_is_at_once(guest: Guest) -> None:
    began = time.monotonic()
    guest.stop(force=True)
    assert time.monotonic() - began < 2
    assert guest.info.state == "stopped"


def test_a_stop_without_an_agent_presses_the_power_button(guest: Guest) -> None:
    silence_agent(guest)
    guest.stop(timeout=15)
    assert "Power down" in guest.log(tail=400)


def test_a_stop_while_it_boots_is_heard_later(daemon: Daemon, guest: Guest) -> None:
    guest.restart(force=True)
    guest.stop(timeout=60)
    assert "Power down" in guest.log(tail=400)


def test_a_guest_that_ignores_its_stop_is_forced(guest: Guest) -> None:
    guest.run("rm /sbin/acpid; kill -9 $(pidof acpid)")
    silence_agent(guest)
    began = time.monotonic()
    guest.stop(timeout=2)
    assert 1.5 < time.monotonic() - began < 8
    assert guest.info.state == "stopped"


def test_pause_and_resume(guest: Guest) -> None:
    guest.pause()
    assert guest.info.state == "paused"
    with pytest.raises(SeraiError) as caught:
        guest.run("true")
    assert caught.value.code is Code.GUEST_STATE
    assert "serai resume" in caught.value.hint
    guest.pause()  # it is so already
    guest.resume()
    assert guest.run("echo back").stdout == "back\n"


def test_a_restart_boots_anew(guest: Guest) -> None:
    first = guest.run("cat /proc/sys/kernel/random/boot_id").stdout
    guest.restart(force=True)
    wait_for("the agent is back", lambda: guest.refresh().info.agent == "answering")
    assert guest.run("cat /proc/sys/kernel/random/boot_id").stdout != first


def test_power_off_from_inside_is_no_crash(daemon: Daemon, guest: Guest) -> None:
    guest.run("poweroff &")
    wait_for_state(guest, "stopped")
    assert guest.info.last_exit == "powered-off"
    assert guest.info.problem is None


def test_a_reset_from_inside_is_told_and_the_guest_goes_on(
    daemon: Daemon, guest_reached: Guest
) -> None:
    pid = guest_reached.refresh().info.pid
    guest_reached.run("sh -c 'sleep 0.2; reboot -f' > /dev/null 2>&1 &")
    wait_for("the reset is told", lambda: "guest-reset" in events_of(daemon, guest_reached))
    wait_for("it answers again", lambda: guest_reached.refresh().info.agent == "answering")
    assert guest_reached.info.pid == pid


def test_a_panic_is_a_crash_with_a_reason(guest: Guest) -> None:
    guest.run("sh -c 'sleep 0.2; echo c > /proc/sysrq-trigger' > /dev/null 2>&1 &")
    wait_for_state(guest, "crashed")
    assert guest.info.last_exit == "panicked"
    assert guest.info.problem is not None
    assert "panic" in guest.info.problem.message
    assert "Kernel panic" in guest.log()


def test_a_killed_qemu_is_a_crash(guest: Guest) -> None:
    os.kill(guest.refresh().info.pid, signal.SIGKILL)
    wait_for_state(guest, "crashed")
    assert guest.info.last_exit == "crashed"
    guest.start()
    assert guest.info.state == "running"
    assert guest.info.problem is None


@pytest.mark.parametrize(("policy", "again"), [("always", True), ("on-failure", False)])
def test_the_policy_decides_after_a_power_off(guest: Guest, policy: str, again: bool) -> None:
    guest.set(restart=policy)
    with contextlib.suppress(SeraiError):  # it may be gone before its agent has answered
        guest.run("poweroff &")
    if again:
        wait_for("it was started again", lambda: guest.refresh().info.restarts == 1)
        wait_for_state(guest, "running")
    else:
        wait_for_state(guest, "stopped")
        assert guest.info.restarts == 0


def test_a_stop_calls_off_a_restart(guest: Guest) -> None:
    guest.set(restart="always")
    for _ in range(2):  # so that the next restart is some seconds away
        os.kill(guest.refresh().info.pid, signal.SIGKILL)
        wait_for_state(guest, "crashed")
        wait_for_state(guest, "running", 10)
    os.kill(guest.refresh().info.pid, signal.SIGKILL)
    wait_for_state(guest, "crashed")
    guest.stop()
    restarts = guest.refresh().info.restarts
    time.sleep(5)  # the time after which it would have been started
    assert guest.refresh().info.restarts == restarts
    assert guest.info.state == "crashed"


def test_a_hung_qemu_makes_only_its_own_guest_unresponsive(daemon: Daemon, guest: Guest) -> None:
    daemon.stop()
    daemon.environ.update(SERAI_HEARTBEAT="1s", SERAI_MONITOR_TIMEOUT="3s")
    daemon.start()
    guest, other = daemon.inn.guest("web1"), daemon.inn.launch(WARM, name="other")
    pid = guest.info.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for_state(guest, "unresponsive", 30)
        assert guest.info.problem is not None
        assert guest.info.problem.code == Code.GUEST_UNRESPONSIVE
        assert other.run("echo fine").stdout == "fine\n"
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for_state(guest, "running", 30)
    assert guest.info.problem is None


def test_a_hung_qemu_can_be_forced_to_stop(daemon: Daemon, guest: Guest) -> None:
    os.kill(guest.refresh().info.pid, signal.SIGSTOP)
    guest.stop(force=True)
    assert guest.info.state == "stopped"


def test_rename_keeps_the_guest(daemon: Daemon, guest: Guest) -> None:
    pid = guest.refresh().info.pid
    guest.rename("web2")
    assert daemon.inn.guest("web2").info.pid == pid
    with pytest.raises(SeraiError) as caught:
        daemon.inn.guest("web1")
    assert caught.value.code is Code.GUEST_NOT_FOUND
    daemon.inn.create("tiny", name="web1")


def test_cpus_are_plugged_in_while_it_runs(guest: Guest) -> None:
    guest.set(cpus=2)
    wait_for("the guest has two", lambda: guest.run("nproc").stdout == "2\n")


def test_memory_shrinks_while_it_runs_and_grows_at_the_next_start(guest: Guest) -> None:
    def total() -> int:
        return int(guest.run("awk '/MemFree/ {print $2}' /proc/meminfo").stdout)

    before = total()
    guest.set(memory="96MiB")
    wait_for("the balloon has grown", lambda: total() < before - 20_000)
    guest.set(memory="256MiB")
    assert any("next start" in note for note in guest.info.notes)


def test_a_disk_grows_while_it_runs(disky: Guest) -> None:
    assert disky.run("cat /sys/block/vda/size").stdout == f"{64 * 2048}\n"
    disky.set(disk="128MiB")
    wait_for("it sees it", lambda: disky.run("cat /sys/block/vda/size").stdout == f"{128 * 2048}\n")
    with pytest.raises(SeraiError) as caught:
        disky.set(disk="64MiB")
    assert caught.value.code is Code.SHRINK_REFUSED
    disky.stop(force=True)
    disky.set(disk="256MiB")
    disky.start()
    wait_for("it is up", lambda: disky.refresh().info.agent == "answering")
    assert disky.run("cat /sys/block/vda/size").stdout == f"{256 * 2048}\n"


def test_what_is_written_to_a_disk_is_there_after_a_restart(disky: Guest) -> None:
    disky.run("mke2fs /dev/vda && mount /dev/vda /mnt && echo kept > /mnt/file && sync")
    disky.restart()
    wait_for("it is up", lambda: disky.refresh().info.agent == "answering")
    assert disky.run("mount /dev/vda /mnt && cat /mnt/file").stdout == "kept\n"


def test_uefi_starts_the_same_image(daemon: Daemon) -> None:
    guest = daemon.inn.launch("tiny", name="uefi", memory="256MiB", firmware="uefi")
    assert guest.run("ls -d /sys/firmware/efi").ok


def test_deleting_needs_force_while_it_runs(daemon: Daemon, guest: Guest) -> None:
    with pytest.raises(SeraiError) as caught:
        guest.delete()
    assert caught.value.code is Code.GUEST_STATE
    guest.delete(force=True)
    assert daemon.inn.guests() == []
    assert daemon.qemu_pids() == {}


def test_a_failed_start_says_why_and_leaves_it_stopped(
    daemon: Daemon, guest_defined: Guest
) -> None:
    [initrd] = (daemon.home / "state" / "images").glob("*/initrd")
    initrd.rename(initrd.with_name("away"))
    try:
        with pytest.raises(SeraiError):
            guest_defined.start()
        assert guest_defined.state == "stopped"
        assert guest_defined.info.last_exit == "start-failed"
        assert guest_defined.info.problem is not None
    finally:
        initrd.with_name("away").rename(initrd)
    guest_defined.start()
    assert guest_defined.info.problem is None


def test_of_many_with_one_key_one_does_it(daemon: Daemon) -> None:
    """Also while the first is not durable yet: a client that repeats itself gets its own job."""
    body = b'{"image": "tiny", "name": "web1", "memory": 100663296, "start": false}'
    call: Call[Job] = Call(
        method="POST", path="/v1/guests", kind=Job, body=body, headers={"Idempotency-Key": "k"}
    )
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(Connection(daemon.socket).ask(call).id))
        for _ in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    assert len(set(found)) == 1
    wait_for("it is there", lambda: daemon.inn.guest("web1").info.state == "stopped")
