"""What each route does, over the wire; every answer is checked against the OpenAPI document."""

import asyncio
import json
import tarfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import msgspec
import pytest
from api_peer import Inn, served
from fake_engine import PNG, make_guest

from serai.api.bodies import BuildBody, ImportBody, ImportGuestBody, LaunchBody, PullBody
from serai.errors import Code, HostFailure, Invalid, Problem
from serai.model.actions import (
    ACTIONS,
    BuildImage,
    CreateGuest,
    ImportGuest,
    ImportImage,
    LaunchGuest,
    PullImage,
    RestartGuest,
    SetGuest,
    StopGuest,
)
from serai.model.event import EventKind
from serai.model.firstboot import FirstBoot
from serai.model.guest import GuestSpec


@pytest.fixture
async def inn(tmp_path: Path) -> AsyncIterator[Inn]:
    async with served(tmp_path) as each:
        each.engine.add_guests(3)
        yield each


async def test_system(inn: Inn) -> None:
    answer = await inn.ask("GET", "/v1/system")
    assert answer.json()["guests"] == 3


async def test_front_leads_to_docs(inn: Inn) -> None:
    answer = await inn.ask("GET", "/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


async def test_show_guest_by_name_and_id(inn: Inn) -> None:
    by_name = await inn.ask("GET", "/v1/guests/g1")
    by_id = await inn.ask("GET", f"/v1/guests/{by_name.json()['id']}")
    assert by_name.json() == by_id.json()
    assert by_name.headers["etag"] == '"1"'


async def test_list_guests_in_pages(inn: Inn) -> None:
    inn.engine.add_guests(25)
    names: list[str] = []
    cursor = ""
    for _ in range(3):
        page = (await inn.ask("GET", f"/v1/guests?limit=10&cursor={cursor}")).json()
        names += [guest["name"] for guest in page["items"]]
        cursor = page["next"]
    assert cursor == ""
    assert names == sorted(f"g{number}" for number in range(25))


async def test_a_page_that_just_fits_has_no_next(inn: Inn) -> None:
    assert (await inn.ask("GET", "/v1/guests?limit=3")).json()["next"] == ""


async def test_list_guests_by_labels(inn: Inn) -> None:
    for name, labels in (("a", {"x": "1", "y": "2"}), ("b", {"x": "1"}), ("c", {"x": "=&"})):
        inn.engine.all_guests[name] = make_guest(name, ord(name), labels=labels)

    async def names(query: str) -> list[str]:
        page = (await inn.ask("GET", f"/v1/guests?{query}")).json()
        return [guest["name"] for guest in page["items"]]

    assert await names("label=x=1") == ["a", "b"]
    assert await names("label=x%3D1&label=y=2") == ["a"]
    assert await names("label=x%3D%3D%26") == ["c"]
    assert await inn.refused("GET", "/v1/guests?label=x") == "400 value-invalid"


async def test_launch_makes_the_action(inn: Inn) -> None:
    body = {"image": "tiny", "name": "web1", "memory": 1 << 28, "labels": {"a": "b"}}
    answer = await inn.ask("POST", "/v1/guests", {**body, "wait_agent": False})
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    spec = msgspec.convert(body, GuestSpec)
    assert inn.engine.actions == [LaunchGuest(spec=spec, wait=False)]


async def test_launch_without_start_defines(inn: Inn) -> None:
    await inn.ask("POST", "/v1/guests", {"image": "tiny", "name": "web1", "start": False})
    spec = GuestSpec(image="tiny", name="web1")
    assert inn.engine.actions == [CreateGuest(spec=spec)]


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "pause", "resume"])
async def test_verbs_without_body(inn: Inn, verb: str) -> None:
    for content in (None, b"", b"{}"):
        answer = await inn.ask("POST", f"/v1/guests/g1/{verb}", content=content)
        assert (answer.status_code, answer.json()["kind"]) == (202, verb)


async def test_stop_and_restart_take_force_and_timeout(inn: Inn) -> None:
    await inn.ask("POST", "/v1/guests/g1/stop", {"force": True})
    await inn.ask("POST", "/v1/guests/g1/restart", {"timeout": 2.5})
    stop, restart = StopGuest(guest="g1", force=True), RestartGuest(guest="g1", timeout=2.5)
    assert inn.engine.actions == [stop, restart]


async def test_rename(inn: Inn) -> None:
    await inn.ask("POST", "/v1/guests/g1/rename", {"name": "web"})
    assert (await inn.ask("GET", "/v1/guests/web")).status_code == 200
    assert await inn.refused("GET", "/v1/guests/g1") == "404 guest-not-found"


async def test_delete(inn: Inn) -> None:
    answer = await inn.ask("DELETE", "/v1/guests/g1?force=true&wait=5")
    assert (answer.status_code, answer.json()["state"]) == (200, "done")
    assert inn.engine.actions[0].force  # type: ignore[union-attr]
    assert await inn.refused("GET", "/v1/guests/g1") == "404 guest-not-found"


async def test_change_with_if_match(inn: Inn) -> None:
    etag = (await inn.ask("GET", "/v1/guests/g1")).headers["etag"]
    change, match = {"memory": 1 << 29}, {"if-match": etag}
    assert (await inn.ask("PATCH", "/v1/guests/g1", change, headers=match)).status_code == 202
    refused = await inn.refused("PATCH", "/v1/guests/g1", change, headers=match)
    assert refused == "412 version-conflict"
    anything = {"if-match": "*"}
    assert (await inn.ask("PATCH", "/v1/guests/g1", change, headers=anything)).status_code == 202
    assert [a.version for a in inn.engine.actions if isinstance(a, SetGuest)] == [1, 0]


@pytest.mark.parametrize("etag", ["3x", '"0"', '"-1"', 'W/"1"', '""', '"1", "2"', '"٣"'])
async def test_if_match_that_is_no_etag(inn: Inn, etag: str) -> None:
    headers = {"if-match": etag.encode()}
    refused = await inn.refused("PATCH", "/v1/guests/g1", {"cpus": 2}, headers=headers)
    assert refused == "400 value-invalid"
    assert inn.engine.actions == []


async def test_idempotency_key(inn: Inn) -> None:
    body, key = {"image": "tiny", "name": "web1"}, {"idempotency-key": "k1"}
    first = await inn.ask("POST", "/v1/guests", body, headers=key)
    again = await inn.ask("POST", "/v1/guests", body, headers=key)
    assert first.json() == again.json()
    assert len(inn.engine.actions) == 1
    other = {"image": "tiny", "name": "web2"}
    assert await inn.refused("POST", "/v1/guests", other, headers=key) == "409 idempotency-reused"


@pytest.mark.parametrize("key", ["x" * 256, "a\tb", "ü"])
async def test_idempotency_key_that_is_unusable(inn: Inn, key: str) -> None:
    headers = {"idempotency-key": key.encode()}
    refused = await inn.refused("POST", "/v1/guests/g1/start", headers=headers)
    assert refused == "400 value-invalid"


async def test_wait_answers_when_the_job_is_done(inn: Inn) -> None:
    inn.engine.hold = True
    asking = asyncio.create_task(inn.ask("POST", "/v1/guests/g1/stop?wait=20"))
    while not inn.engine.all_jobs:
        await asyncio.sleep(0.001)
    await inn.engine.finish("000000")
    answer = await asking
    assert (answer.status_code, answer.json()["state"]) == (200, "done")


async def test_wait_answers_when_the_time_is_up(inn: Inn) -> None:
    inn.engine.hold = True
    answer = await inn.ask("POST", "/v1/guests/g1/stop?wait=0.01")
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")


async def test_wait_answers_with_the_problem_of_a_failed_job(inn: Inn) -> None:
    inn.engine.hold = True
    asking = asyncio.create_task(inn.ask("POST", "/v1/guests/g1/start?wait=20"))
    while not inn.engine.all_jobs:
        await asyncio.sleep(0.001)
    problem = HostFailure(Code.GUEST_START_FAILED, "QEMU died", details={"stderr": "no"}).problem()
    await inn.engine.finish("000000", problem)
    answer = await asking
    assert answer.status_code == 502
    shown = answer.json()
    assert (shown["code"], shown["job"]) == ("guest-start-failed", "000000")
    assert shown["details"] == {"stderr": "no"}
    assert answer.headers["location"] == "/v1/jobs/000000"


async def test_a_problem_of_a_newer_daemon_is_shown_by_its_family(inn: Inn) -> None:
    inn.engine.hold = True
    job = (await inn.ask("POST", "/v1/guests/g1/start")).json()
    await inn.engine.finish(job["id"], Problem(family="busy", code="of-tomorrow", message="?"))
    key = {"idempotency-key": ""}
    answer = await inn.http.post("/v1/guests/g1/start?wait=0", headers=key)
    assert answer.status_code == 202
    assert (await inn.ask("GET", f"/v1/jobs/{job['id']}")).json()["state"] == "failed"


async def test_job_show_waits(inn: Inn) -> None:
    inn.engine.hold = True
    job = (await inn.ask("POST", "/v1/guests/g1/stop")).json()
    asking = asyncio.create_task(inn.ask("GET", f"/v1/jobs/{job['id']}?wait=20"))
    await asyncio.sleep(0.05)
    assert not asking.done()
    await inn.engine.finish(job["id"])
    assert (await asking).json()["state"] == "done"


async def test_jobs_in_pages_newest_first(inn: Inn) -> None:
    for _ in range(5):
        await inn.ask("POST", "/v1/guests/g1/start")
    first = (await inn.ask("GET", "/v1/jobs?limit=3")).json()
    second = (await inn.ask("GET", f"/v1/jobs?limit=3&cursor={first['next']}")).json()
    ids = [job["id"] for job in first["items"] + second["items"]]
    assert ids == ["000004", "000003", "000002", "000001", "000000"]
    assert second["next"] == ""
    assert (await inn.ask("GET", "/v1/jobs?state=failed")).json()["items"] == []
    assert await inn.refused("GET", "/v1/jobs?state=odd") == "400 value-invalid"


async def test_cancel_job(inn: Inn) -> None:
    inn.engine.hold = True
    job = (await inn.ask("POST", "/v1/guests/g1/stop")).json()
    assert (await inn.ask("POST", f"/v1/jobs/{job['id']}/cancel")).json()["state"] == "cancelled"
    refused = await inn.refused("POST", f"/v1/jobs/{job['id']}/cancel")
    assert refused == "409 job-not-cancellable"
    assert await inn.refused("POST", "/v1/jobs/nope/cancel") == "404 job-not-found"


async def test_exec(inn: Inn) -> None:
    body = {"argv": ["echo", "hi"], "stdin": "AAH/"}
    answer = await inn.ask("POST", "/v1/guests/g1/exec", body)
    assert answer.json() == {
        "code": 0,
        "stdout": "ZWNobyBoaQ==",
        "stderr": "AAH/",
        "truncated": False,
    }


async def test_screenshot_and_vnc(inn: Inn) -> None:
    assert (await inn.ask("GET", "/v1/guests/g1/screenshot")).content == PNG
    assert (await inn.ask("GET", "/v1/guests/g1/vnc")).json()["socket"].endswith("vnc.sock")


async def test_images(inn: Inn) -> None:
    assert [i["name"] for i in (await inn.ask("GET", "/v1/images")).json()["items"]] == ["tiny"]
    assert (await inn.ask("GET", "/v1/images/tiny")).json()["kind"] == "kernel"
    assert await inn.refused("GET", "/v1/images/nope") == "404 image-not-found"
    assert (await inn.ask("DELETE", "/v1/images/tiny")).json()["kind"] == "image-delete"


async def test_build_and_import_make_their_actions(inn: Inn) -> None:
    built = {
        "recipe": "debian",
        "name": "d",
        "suite": "bookworm",
        "include": ["vim"],
        "replace": True,
    }
    fetched = {"source": "/x.qcow2", "name": "y", "sha256": "0" * 64, "agent": "yes"}
    await inn.ask("POST", "/v1/images/build", built)
    await inn.ask("POST", "/v1/images/import", fetched)
    wanted = [msgspec.convert(built, BuildImage), msgspec.convert(fetched, ImportImage)]
    assert inn.engine.actions == wanted


async def test_pulling_and_importing_a_guest_make_their_actions(inn: Inn) -> None:
    pulled = {"image": "debian:12", "index": "https://example.org/i.json", "name": "d"}
    machine = {"name": "old", "cpus": 2, "disks": [{"name": "vda", "source": "/x.qcow2"}]}
    guest = {"source": "/x.qcow2", "name": "web1", "machine": machine}
    assert (await inn.ask("POST", "/v1/images/pull", pulled)).json()["results"] == ["d"]
    await inn.ask("POST", "/v1/imports", guest)
    assert inn.engine.actions == [
        msgspec.convert(pulled, PullImage),
        msgspec.convert(guest, ImportGuest),
    ]
    shown = (await inn.ask("GET", "/v1/catalogue?index=/srv/index.json")).json()
    assert (shown["source"], shown["entries"][0]["name"]) == ("/srv/index.json", "debian")
    inn.engine.fail_next("catalogue", Invalid(Code.INDEX_REFUSED, "no"))
    assert await inn.refused("GET", "/v1/catalogue") == "422 index-refused"


async def test_export_whole(inn: Inn) -> None:
    answer = await inn.ask("GET", "/v1/images/tiny/export")
    assert len(answer.content) == int(answer.headers["content-length"])
    with tarfile.open(fileobj=BytesIO(answer.content)) as tar:
        assert tar.getnames() == ["image.json", "kernel", "initrd"]
        described = json.load(tar.extractfile("image.json"))  # type: ignore[arg-type]
        assert described == json.loads(msgspec.json.encode(inn.engine.image("tiny")))
        assert tar.extractfile("initrd").read() == b"I" * 3_000_000  # type: ignore[union-attr]


async def test_export_one_file(inn: Inn) -> None:
    answer = await inn.ask("GET", "/v1/images/tiny/export?file=kernel")
    assert answer.content == b"K" * 1000
    assert await inn.refused("GET", "/v1/images/tiny/export?file=disk") == "400 value-invalid"


async def test_export_of_a_damaged_image(inn: Inn) -> None:
    (inn.engine.image_files("tiny") / "kernel").write_bytes(b"short")
    assert await inn.refused("GET", "/v1/images/tiny/export") == "502 image-corrupt"


async def test_export_of_a_lost_file_is_a_problem(inn: Inn) -> None:
    (inn.engine.image_files("tiny") / "kernel").unlink()
    assert await inn.refused("GET", "/v1/images/tiny/export") == "502 image-corrupt"


async def test_events_in_pages(inn: Inn) -> None:
    for number in range(5):
        await inn.engine.tell(EventKind.GUEST_STATE, f"g{number}")
    first = (await inn.ask("GET", "/v1/events?limit=3")).json()
    second = (await inn.ask("GET", f"/v1/events?limit=3&after={first['next']}")).json()
    assert [event["seq"] for event in first["items"] + second["items"]] == [1, 2, 3, 4, 5]
    assert second["next"] == ""


def test_every_action_has_a_route() -> None:
    """What serai can do, REST can ask for."""
    made = {"launch", "create", "start", "stop", "restart", "pause", "resume", "delete", "rename"}
    made |= {"set", "image-build", "image-import", "image-delete", "image-publish", "fork", "check"}
    made |= {"image-pull", "guest-import"}
    made |= {f"snapshot-{verb}" for verb in ("create", "restore", "delete", "change")}
    made |= {f"network-{verb}" for verb in ("create", "set", "delete")}
    made |= {f"port-{verb}" for verb in ("add", "set", "remove")}
    made |= {f"group-{verb}" for verb in ("create", "change", "delete")}
    made |= {"forward-add", "forward-remove"}
    made |= {f"schedule-{verb}" for verb in ("create", "set", "run", "delete")}
    verbs = (
        "create",
        "attach",
        "detach",
        "change",
        "clone",
        "snapshot",
        "snapshot-delete",
        "import",
    )
    made |= {f"volume-{verb}" for verb in (*verbs, "export", "serve", "delete")}
    made |= {"pool-create", "pool-delete", "medium-insert", "medium-eject"}
    assert made == {action.__struct_config__.tag for action in ACTIONS}


HOW = ("start", "wait_agent", "wait_for", "ttl", "ports", "volumes")


@pytest.mark.parametrize(
    ("body", "target", "own"),
    [
        (BuildBody, BuildImage, set()),
        (ImportBody, ImportImage, set()),
        (PullBody, PullImage, set()),
        (ImportGuestBody, ImportGuest, set()),
        (LaunchBody, GuestSpec, {*HOW, *FirstBoot.__struct_fields__}),
        (LaunchBody, FirstBoot, {*HOW, *GuestSpec.__struct_fields__}),
    ],
)
def test_bodies_have_all_fields_of_what_they_make(
    body: type[msgspec.Struct], target: type[msgspec.Struct], own: set[str]
) -> None:
    """A field that is added to an action and not to its body would be out of reach."""
    shown = {f.name: (f.type, f.default) for f in msgspec.structs.fields(body) if f.name not in own}
    assert shown == {f.name: (f.type, f.default) for f in msgspec.structs.fields(target)}
