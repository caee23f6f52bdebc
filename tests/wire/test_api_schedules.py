"""The routes of schedules; answers are checked against the document."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from api_peer import Inn, served

from serai.api.bodies import ScheduleBody
from serai.model.actions import CreateSchedule, DeleteSchedule, RunSchedule, SetSchedule
from serai.model.schedule import Every, Keep, ScheduleChange, When

SCHEDULES = "/v1/guests/g1/schedules"
NIGHTLY = {"name": "nightly", "when": {"every": "daily", "at": 12600}, "keep": {"daily": 7}}


@pytest.fixture
async def inn(tmp_path: Path) -> AsyncIterator[Inn]:
    async with served(tmp_path) as each:
        each.engine.add_guests(3)
        yield each


async def test_create_passes_everything_on_and_tells_what_it_made(inn: Inn) -> None:
    body = {**NIGHTLY, "memory": False, "quiesce": True, "name_as": "{date}"}
    job = (await inn.ask("POST", f"{SCHEDULES}?wait=5", body)).json()
    assert inn.engine.actions == [
        CreateSchedule(
            guest="g1", name="nightly", when=When(every=Every.DAILY, at=12600), memory=False,
            keep=Keep(daily=7), quiesce=True, name_as="{date}",
        )
    ]  # fmt: skip
    shown = (await inn.ask("GET", f"{SCHEDULES}/{job['results'][0]}")).json()
    assert (shown["name"], shown["guest"], shown["paused"]) == ("nightly", "g1", False)
    assert shown["next_at"] % 86400 == 12600


def test_the_body_has_all_fields_of_the_action() -> None:
    """A field that is added to the action and not to its body would be out of reach."""
    shown = {each.name: each.default for each in msgspec.structs.fields(ScheduleBody)}
    wanted = {each.name: each.default for each in msgspec.structs.fields(CreateSchedule)}
    del wanted["guest"]
    assert shown == wanted


async def test_lists_in_pages_of_a_guest_and_of_all(inn: Inn) -> None:
    for guest in ("g1", "g2"):
        for every in ("weekly", "daily"):
            await inn.ask("POST", f"/v1/guests/{guest}/schedules", {"when": {"every": every}})

    async def names(target: str) -> list[tuple[str, str]]:
        items = (await inn.ask("GET", target)).json()["items"]
        return [(each["guest"], each["name"]) for each in items]

    assert await names(SCHEDULES) == [("g1", "daily"), ("g1", "weekly")]
    assert len(await names("/v1/schedules")) == 4
    first = (await inn.ask("GET", "/v1/schedules?limit=3")).json()
    assert await names(f"/v1/schedules?limit=3&cursor={first['next']}") == [("g2", "weekly")]


async def test_one_is_found_by_name_and_id_and_only_in_its_guest(inn: Inn) -> None:
    await inn.ask("POST", SCHEDULES, NIGHTLY)
    shown = (await inn.ask("GET", f"{SCHEDULES}/nightly")).json()
    assert (await inn.ask("GET", f"{SCHEDULES}/{shown['id']}")).json() == shown
    for method, rest in (
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/run"),
        ("GET", "/preview"),
    ):
        for name in ("nightly", shown["id"], "nope"):
            refused = await inn.refused(method, f"/v1/guests/g2/schedules/{name}{rest}")
            assert refused == "404 schedule-not-found"
    assert await inn.refused("GET", "/v1/guests/nope/schedules") == "404 guest-not-found"


async def test_set_run_and_delete(inn: Inn) -> None:
    await inn.ask("POST", SCHEDULES, NIGHTLY)
    await inn.ask("PATCH", f"{SCHEDULES}/nightly", {"paused": True, "keep": {"last": 3}})
    shown = (await inn.ask("GET", f"{SCHEDULES}/nightly")).json()
    assert (shown["paused"], shown["next_at"], shown["keep"]["daily"]) == (True, 0, 0)
    await inn.ask("POST", f"{SCHEDULES}/nightly/run?wait=5")
    await inn.ask("DELETE", f"{SCHEDULES}/nightly?wait=5")
    assert inn.engine.actions[1:] == [
        SetSchedule(
            guest="g1", schedule="nightly", change=ScheduleChange(paused=True, keep=Keep(last=3))
        ),
        RunSchedule(guest="g1", schedule="nightly"),
        DeleteSchedule(guest="g1", schedule="nightly"),
    ]
    assert (await inn.ask("GET", SCHEDULES)).json()["items"] == []


async def test_a_preview_by_its_rules_or_by_others(inn: Inn) -> None:
    await inn.ask("POST", SCHEDULES, {**NIGHTLY, "keep": {"last": 2}})
    for name in ("a", "b", "c"):
        await inn.ask("POST", "/v1/guests/g1/snapshots", {"name": name})

    async def told(query: str) -> list[tuple[str, bool, str]]:
        items = (await inn.ask("GET", f"{SCHEDULES}/nightly/preview{query}")).json()["items"]
        return [(each["snapshot"], each["stays"], each["rule"]) for each in items]

    assert await told("") == [("c", True, "last"), ("b", True, "last"), ("a", False, "none")]
    assert await told("?daily=1") == [
        ("c", True, "daily"),
        ("b", False, "none"),
        ("a", False, "none"),
    ]
    assert [each[2] for each in await told("?last=0")] == ["all"] * 3
    for wrong in ("?last=-1", "?last=many", "?yearly=1", "?last=100000"):
        assert (
            await inn.refused("GET", f"{SCHEDULES}/nightly/preview{wrong}") == "400 value-invalid"
        )


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"when": {"every": "never"}}, "400 body-invalid"),
        ({"when": {}}, "400 body-invalid"),
        ({"when": {"every": "interval", "interval": 1}}, "400 value-invalid"),
        ({"when": {"every": "daily", "at": 86400}}, "400 value-invalid"),
        ({"when": {"every": "daily", "at": -1}}, "400 value-invalid"),
        ({"keep": {"last": -1}}, "400 body-invalid"),
        ({"keep": {"yearly": 1}}, "400 body-invalid"),
        ({"name": "A B"}, "400 name-invalid"),
        ({"name_as": "{guest}"}, "400 value-invalid"),
        ({"name_as": "A B"}, "400 name-invalid"),
        ({"name": "x" * 60}, "400 name-invalid"),
        ({"schedule_id": "x"}, "400 body-invalid"),
    ],
)
async def test_schedules_that_cannot_be(inn: Inn, change: dict[str, object], refused: str) -> None:
    assert await inn.refused("POST", SCHEDULES, {**NIGHTLY, **change}) == refused
    assert (await inn.ask("GET", SCHEDULES)).json()["items"] == []


async def test_a_name_is_taken_once(inn: Inn) -> None:
    await inn.ask("POST", SCHEDULES, NIGHTLY)
    assert await inn.refused("POST", SCHEDULES, NIGHTLY) == "409 schedule-exists"


async def test_nobody_makes_a_snapshot_in_the_name_of_a_schedule(inn: Inn) -> None:
    for field in ("schedule", "schedule_id"):
        body = {"name": "x", field: "nightly"}
        assert await inn.refused("POST", "/v1/guests/g1/snapshots", body) == "400 body-invalid"
