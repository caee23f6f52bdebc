"""The daemon about itself: how it is, and what can be asked of it."""

from http import HTTPStatus

import msgspec
from litestar.types import ASGIApp

from serai.api.answers import HTML, JSON, answer_bytes, answer_json, answer_nothing
from serai.api.bodies import NoBody, NoQuery
from serai.api.calls import Call
from serai.api.pages import render_page

CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


async def show_system(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Show the daemon and what this host can do."""
    return answer_json(call.room.engine.status())


async def show_openapi(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Describe this API for programs."""
    body = msgspec.json.encode(call.room.describe(), order="deterministic")
    return answer_bytes(body, JSON)


async def show_docs(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Describe this API for people."""
    page = render_page(call.room.describe())
    headers = {"content-security-policy": CONTENT_POLICY, "x-content-type-options": "nosniff"}
    return answer_bytes(page.encode(), HTML, headers=headers)


async def show_front(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Lead to the pages for people."""
    return answer_nothing(HTTPStatus.TEMPORARY_REDIRECT, headers={"location": "/docs"})
