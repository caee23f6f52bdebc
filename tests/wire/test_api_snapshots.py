"""The routes of snapshots, forks and published images; answers are checked against the document."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from api_peer import Inn, served

from serai.api.bodies import ForkBody, PublishBody, SnapshotBody, SnapshotChange
from serai.errors import Code, Conflict, HostFailure
from serai.model.actions import (
    ChangeSnapshot,
    CreateSnapshot,
    DeleteSnapshot,
    ForkGuest,
    LaunchGuest,
    PublishImage,
    RestoreSnapshot,
)
from serai.model.guest import GuestSpec

G1 = "/v1/guests/g1"
SNAPSHOTS = f"{G1}/snapshots"


@pytest.fixture
async def inn(tmp_path: Path) -> AsyncIterator[Inn]:
    async with served(tmp_path) as each:
        each.engine.add_guests(3)
        yield each


async def make(inn: Inn, *names: str) -> None:
    for name in names:
        assert (await inn.ask("POST", SNAPSHOTS, {"name": name})).status_code == 202


async def names_of(inn: Inn, target: str = SNAPSHOTS) -> list[str]:
    return [each["name"] for each in (await inn.ask("GET", target)).json()["items"]]


async def test_create_passes_everything_on_and_tells_what_it_made(inn: Inn) -> None:
    body = {"name": "ready", "memory": False, "quiesce": True, "note": "täg"}
    job = (await inn.ask("POST", f"{SNAPSHOTS}?wait=5", body)).json()
    assert inn.engine.actions == [
        CreateSnapshot(guest="g1", name="ready", memory=False, quiesce=True, note="täg")
    ]
    [made] = job["results"]
    assert (await inn.ask("GET", f"{SNAPSHOTS}/{made}")).json()["name"] == "ready"


async def test_create_without_a_body_takes_memory_and_gets_a_name(inn: Inn) -> None:
    await inn.ask("POST", SNAPSHOTS)
    assert inn.engine.actions == [CreateSnapshot(guest="g1")]
    [shown] = (await inn.ask("GET", SNAPSHOTS)).json()["items"]
    assert (shown["name"], shown["with_memory"], shown["is_current"]) == ("snap-1", True, True)


async def test_the_list_is_a_tree_in_pages(inn: Inn) -> None:
    await make(inn, "zero", "alpha")
    await inn.ask("POST", f"{SNAPSHOTS}/zero/restore", {"force": True})
    await make(inn, "mid", "last")
    await inn.ask("POST", f"{SNAPSHOTS}/zero/restore", {"force": True})
    page = (await inn.ask("GET", SNAPSHOTS)).json()
    wanted = [("zero", 0), ("alpha", 1), ("mid", 1), ("last", 2)]
    assert [(each["name"], each["depth"]) for each in page["items"]] == wanted
    assert (page["next"], page["items"][0]["is_current"]) == ("", True)
    first = (await inn.ask("GET", f"{SNAPSHOTS}?limit=3")).json()
    assert [each["name"] for each in first["items"]] == ["zero", "alpha", "mid"]
    rest = f"{SNAPSHOTS}?limit=3&cursor={first['next']}"
    assert await names_of(inn, rest) == ["last"]
    await inn.ask("DELETE", f"{SNAPSHOTS}/mid")
    assert await inn.refused("GET", rest) == "400 value-invalid"


async def test_a_page_that_just_fits_has_no_next(inn: Inn) -> None:
    await make(inn, "a", "b")
    assert (await inn.ask("GET", f"{SNAPSHOTS}?limit=2")).json()["next"] == ""


async def test_a_snapshot_is_found_by_name_and_id_and_only_in_its_guest(inn: Inn) -> None:
    await make(inn, "ready")
    by_name = (await inn.ask("GET", f"{SNAPSHOTS}/ready")).json()
    assert (await inn.ask("GET", f"{SNAPSHOTS}/{by_name['id']}")).json() == by_name
    for snapshot in ("ready", by_name["id"], "nope", "%2e%2e", "a%2Fb"):
        refused = await inn.refused("GET", f"/v1/guests/g2/snapshots/{snapshot}")
        assert refused == "404 snapshot-not-found"
    assert await inn.refused("GET", "/v1/guests/nope/snapshots/ready") == "404 guest-not-found"
    assert await inn.refused("GET", "/v1/guests/nope/snapshots") == "404 guest-not-found"


async def test_change_is_only_of_what_is_named(inn: Inn) -> None:
    await make(inn, "ready", "other")
    await inn.ask("PATCH", f"{SNAPSHOTS}/ready", {"note": "new"})
    await inn.ask("PATCH", f"{SNAPSHOTS}/ready", {"name": "steady"})
    assert inn.engine.actions[2:] == [
        ChangeSnapshot(guest="g1", snapshot="ready", note="new"),
        ChangeSnapshot(guest="g1", snapshot="ready", name="steady"),
    ]
    shown = (await inn.ask("GET", f"{SNAPSHOTS}/steady")).json()
    assert (shown["name"], shown["note"]) == ("steady", "new")
    taken = await inn.refused("PATCH", f"{SNAPSHOTS}/steady", {"name": "other"})
    assert taken == "409 snapshot-exists"
    wrong = await inn.refused("PATCH", f"{SNAPSHOTS}/steady", {"name": "A B"})
    assert wrong == "400 name-invalid"
    assert await inn.refused("PATCH", f"{SNAPSHOTS}/steady", {"own": 1}) == "400 body-invalid"


async def test_restore_and_delete(inn: Inn) -> None:
    await make(inn, "ready", "later")
    refused = await inn.refused("POST", f"{SNAPSHOTS}/ready/restore")
    assert refused == "409 unsaved-work"
    await inn.ask("POST", f"{SNAPSHOTS}/ready/restore?wait=5", {"force": True})
    await inn.ask("DELETE", f"{SNAPSHOTS}/ready?wait=5")
    assert inn.engine.actions[2:] == [
        RestoreSnapshot(guest="g1", snapshot="ready", force=True),
        DeleteSnapshot(guest="g1", snapshot="ready"),
    ]
    assert await names_of(inn) == ["later"]
    assert await inn.refused("DELETE", f"{SNAPSHOTS}/ready") == "404 snapshot-not-found"


async def test_fork_passes_everything_on_and_tells_what_it_made(inn: Inn) -> None:
    await make(inn, "ready")
    body = {"snapshot": "ready", "name": "x", "count": 2, "keep_identity": True, "ttl": 1.5}
    job = (await inn.ask("POST", f"{G1}/fork?wait=5", {**body, "wait_agent": False})).json()
    assert inn.engine.actions[1] == ForkGuest(guest="g1", wait=False, **body)  # type: ignore[arg-type]
    shown = [(await inn.ask("GET", f"/v1/guests/{each}")).json() for each in job["results"]]
    assert [each["name"] for each in shown] == ["x-1", "x-2"]
    assert shown[0]["expires_at"] > shown[0]["created_at"]
    assert (await inn.ask("GET", f"{SNAPSHOTS}/ready")).json()["forks"] == 2


async def test_fork_without_a_body_makes_one_of_the_guest_as_it_is(inn: Inn) -> None:
    job = (await inn.ask("POST", f"{G1}/fork")).json()
    assert inn.engine.actions == [ForkGuest(guest="g1")]
    assert len(job["results"]) == 1


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({"count": 0}, "400 value-invalid"),
        ({"count": 10**6}, "400 value-invalid"),
        ({"name": "g0"}, "409 guest-exists"),
        ({"name": "A B"}, "400 name-invalid"),
        ({"name": "x" * 63, "count": 10}, "400 name-invalid"),
        ({"snapshot": "nope"}, "404 snapshot-not-found"),
        ({"ttl": -1}, "400 body-invalid"),
        ({"ttl": 1e12}, "400 body-invalid"),
        ({"count": "3"}, "400 body-invalid"),
        ({"guest": "g2"}, "400 body-invalid"),
    ],
)
async def test_forks_that_cannot_be(inn: Inn, body: dict[str, object], refused: str) -> None:
    assert await inn.refused("POST", f"{G1}/fork", body) == refused
    assert inn.engine.actions == []
    assert len(inn.engine.all_guests) == 3


async def test_publish(inn: Inn) -> None:
    await make(inn, "ready")
    body = {"image": "mine", "snapshot": "ready", "memory": False}
    await inn.ask("POST", f"{G1}/publish", body)
    assert inn.engine.actions[1] == PublishImage(
        guest="g1", image="mine", snapshot="ready", memory=False
    )
    assert (await inn.ask("GET", "/v1/images/mine")).json()["name"] == "mine"
    assert await inn.refused("POST", f"{G1}/publish", body) == "409 image-exists"
    await inn.ask("POST", f"{G1}/publish", {"image": "mine", "replace": True})
    assert await inn.refused("POST", f"{G1}/publish", {}) == "400 body-invalid"
    wrong = {"image": "x", "snapshot": "nope"}
    assert await inn.refused("POST", f"{G1}/publish", wrong) == "404 snapshot-not-found"


async def test_launch_with_a_time_to_live(inn: Inn) -> None:
    body = {"image": "tiny", "name": "brief", "ttl": 7200}
    await inn.ask("POST", "/v1/guests", body)
    assert inn.engine.actions == [LaunchGuest(spec=GuestSpec(image="tiny", name="brief"), ttl=7200)]
    shown = (await inn.ask("GET", "/v1/guests/brief")).json()
    assert shown["expires_at"] == shown["created_at"] + 7200
    for wrong in ({"ttl": -1}, {"ttl": "2h"}):
        refused = await inn.refused("POST", "/v1/guests", {"image": "tiny", **wrong})
        assert refused == "400 body-invalid"
    only_defined = {"image": "tiny", "start": False, "ttl": 1}
    assert await inn.refused("POST", "/v1/guests", only_defined) == "400 value-invalid"


@pytest.mark.parametrize(
    ("target", "body", "error", "refused"),
    [
        (SNAPSHOTS, {}, HostFailure(Code.AGENT_UNAVAILABLE, "no agent"), "502 agent-unavailable"),
        (f"{G1}/fork", {}, Conflict(Code.SNAPSHOT_UNFIT, "other QEMU"), "409 snapshot-unfit"),
        (f"{SNAPSHOTS}/a/restore", {}, HostFailure(Code.SNAPSHOT_CORRUPT, "a bit"), "502 snapshot-corrupt"),
        (f"{G1}/publish", {"image": "x"}, Conflict(Code.SNAPSHOT_STATE, "broken"), "409 snapshot-state"),
    ],
)  # fmt: skip
async def test_problems_of_snapshots_are_documented(
    inn: Inn, target: str, body: dict[str, str], error: Exception, refused: str
) -> None:
    inn.engine.fail_next("submit", error)
    assert await inn.refused("POST", target, body) == refused


@pytest.mark.parametrize(
    ("body", "target", "renamed", "left_out"),
    [
        (SnapshotBody, CreateSnapshot, {}, {"guest", "schedule", "schedule_id"}),
        (SnapshotChange, ChangeSnapshot, {}, {"guest", "snapshot"}),
        (ForkBody, ForkGuest, {"wait": "wait_agent"}, {"guest"}),
        (PublishBody, PublishImage, {}, {"guest"}),
    ],
)
def test_bodies_have_all_fields_of_what_they_make(
    body: type[msgspec.Struct],
    target: type[msgspec.Struct],
    renamed: dict[str, str],
    left_out: set[str],
) -> None:
    """A field that is added to an action and not to its body would be out of reach."""
    shown = {each.name: each.default for each in msgspec.structs.fields(body)}
    wanted = {
        renamed.get(each.name, each.name): each.default
        for each in msgspec.structs.fields(target)
        if each.name not in left_out
    }
    assert shown == wanted
