"""The description of the API is complete, the same everywhere, and what is checked in.

``SERAI_GOLDEN=write pytest tests/wire/test_api_description.py`` writes the files anew.
"""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from api_peer import Judge, served
from jsonschema import Draft202012Validator

from serai.api.app import build_app
from serai.api.bodies import NoBody
from serai.api.openapi import ALL_EXAMPLES, build_openapi
from serai.api.pages import render_page
from serai.api.problems import CODE_STATUS, FAMILY_STATUS, STATUS_CODES
from serai.api.reference import operations, render_markdown
from serai.api.routes import ROUTES, SOCKETS
from serai.errors import Code, Family
from serai.settings import read_settings

DOCS = Path(__file__).parents[2] / "docs"


def golden(path: Path, text: str) -> None:
    if os.environ.get("SERAI_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, f"{path.name} is old: run with SERAI_GOLDEN=write"


def test_openapi_is_checked_in() -> None:
    text = json.dumps(build_openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    golden(DOCS / "api" / "openapi.json", text)


def test_reference_is_checked_in() -> None:
    golden(DOCS / "api.md", render_markdown(build_openapi()))


async def test_the_daemon_serves_both(tmp_path: Path) -> None:
    async with served(tmp_path) as inn:
        served_document = (await inn.ask("GET", "/v1/openapi.json")).json()
        page = await inn.ask("GET", "/docs")
    assert served_document == json.loads(json.dumps(build_openapi()))
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.text == render_page(build_openapi())


def test_every_route_of_the_application_is_described() -> None:
    app = build_app(None, settings=read_settings({}, Path("none")))  # type: ignore[arg-type]
    served_routes = {
        (method, re.sub(r":str}", "}", route.path_format))
        for route in app.routes
        for method in getattr(route, "methods", ())
        if method != "OPTIONS"
    }
    described = {(method, path) for method, path, _ in operations(build_openapi())}
    assert served_routes == {(row.method, row.path) for row in ROUTES}
    assert described == served_routes | {("GET", row.path) for row in SOCKETS}


def test_names_are_unique_and_everything_has_words() -> None:
    found = [operation for _, _, operation in operations(build_openapi())]
    names = [operation["operationId"] for operation in found]
    assert len(names) == len(set(names))
    for operation in found:
        assert operation["summary"]
        for parameter in operation["parameters"]:
            assert parameter["description"], (operation["operationId"], parameter["name"])


@pytest.mark.parametrize("render", [render_markdown, render_page])
def test_pages_show_every_operation_type_and_code(render: object) -> None:
    document = build_openapi()
    text = render(document)  # type: ignore[operator]
    for _, path, operation in operations(document):
        assert path in text
        assert operation["summary"].split("`")[0] in text.replace("&#x27;", "'")
        for parameter in operation["parameters"]:
            assert parameter["name"] in text
    for name in (*document["components"]["schemas"], *Code):
        assert name in text


class Links(HTMLParser):
    """Collects what a page links to, what it can be linked at, and its open tags."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.targets += [str(found[name]) for name in ("href", "src") if name in found]
        self.ids += [str(found["id"])] if "id" in found else []
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_outside() -> None:
    page = render_page(build_openapi())
    links = Links()
    links.feed(page)
    assert links.open == []
    assert len(links.ids) == len(set(links.ids))
    inside = {target.removeprefix("#") for target in links.targets if target.startswith("#")}
    assert inside - {""} <= set(links.ids)
    assert {target for target in links.targets if not target.startswith("#")} == {
        "/v1/openapi.json"
    }
    assert "@import" not in page
    assert "url(" not in page


def test_every_reference_in_the_document_leads_somewhere() -> None:
    document = build_openapi()
    text = json.dumps(document)
    for reference in set(re.findall(r'"\$ref": "([^"]+)"', text)):
        part = document
        for step in reference.removeprefix("#/").split("/"):
            part = part[step]
    unused = set(document["components"]["schemas"]) - {
        reference.rsplit("/", 1)[1] for reference in re.findall(r'"\$ref": "([^"]+)"', text)
    }
    assert unused == set()


def test_every_schema_is_one() -> None:
    for schema in build_openapi()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_body_has_an_example_that_is_one() -> None:
    bodies = {row.body for row in ROUTES if row.body is not NoBody}
    assert bodies == set(ALL_EXAMPLES)
    judge = Judge()
    for kind, example in ALL_EXAMPLES.items():
        msgspec.convert(example, kind)
        judge.validate(example, {"$ref": f"#/components/schemas/{kind.__name__}"})


def test_every_code_has_one_status() -> None:
    listed = [code for codes in STATUS_CODES.values() for code in codes]
    assert sorted(listed) == sorted(Code), "add it to STATUS_CODES in api/problems.py"
    assert set(CODE_STATUS) == set(Code)
    assert set(FAMILY_STATUS) == set(Family)


def test_the_page_of_problems_tells_the_same_status() -> None:
    text = (DOCS / "problems.md").read_text()
    told = {code: int(status) for code, status in re.findall(r"### `([\w-]+)`\nHTTP (\d+)", text)}
    assert told == {str(code): int(status) for code, status in CODE_STATUS.items()}
