"""The page ``/docs``: the OpenAPI document as one HTML page that needs nothing from outside.

``page.html`` beside this file has the frame, the style and the search; here are the parts that
come from the document.
"""

import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from serai.api.calls import Document
from serai.api.reference import (
    body_schema,
    curl_text,
    default_text,
    operations,
    problems,
    replies,
    type_text,
)

FRAME = Path(__file__).with_name("page.html")


def render_page(document: Document) -> str:
    """Return the whole page. Reads the frame from beside this file each time it is asked for."""
    frame = FRAME.read_text(encoding="utf-8")
    tags = [tag["name"] for tag in document["tags"]]
    nav = "".join(_nav_section(tag, document) for tag in tags)
    main = [
        f'<div class="intro"><h2>REST API</h2>{_paragraphs(document["info"]["description"])}'
        "<p>In the examples <code>SOCKET</code> is the daemon's socket, as <code>serai daemon "
        'status</code> tells it. For programs: <a href="/v1/openapi.json">openapi.json</a>.</p></div>',
        *(_section(tag, document) for tag in tags),
        _types(document["components"]["schemas"]),
        _problem_codes(document["x-problem-codes"]),
    ]
    extra = '<section><h2>More</h2><ul><li><a href="#types">Types</a></li>'
    extra += '<li><a href="#problems">Problem codes</a></li></ul></section>'
    return frame.replace("<!--nav-->", nav + extra).replace("<!--main-->", "\n".join(main))


def _of_tag(tag: str, document: Document) -> list[tuple[str, str, dict[str, Any]]]:
    return [each for each in operations(document) if tag in each[2]["tags"]]


def _verb(method: str, operation: dict[str, Any]) -> str:
    verb = "WS" if operation.get("x-websocket") else method
    return f'<span class="verb {verb}">{verb}</span>'


def _nav_section(tag: str, document: Document) -> str:
    links = "".join(
        f'<li><a href="#{operation["operationId"]}">{_verb(method, operation)}'
        f"{escape(operation['summary'])}</a></li>"
        for method, _, operation in _of_tag(tag, document)
    )
    return f"<section><h2>{tag.capitalize()}</h2><ul>{links}</ul></section>"


def _section(tag: str, document: Document) -> str:
    schemas = document["components"]["schemas"]
    articles = "\n".join(_article(*each, schemas) for each in _of_tag(tag, document))
    return f"<section><h2>{tag.capitalize()}</h2>\n{articles}</section>"


def _article(
    method: str, path: str, operation: dict[str, Any], schemas: dict[str, dict[str, Any]]
) -> str:
    parts = [
        f'<article id="{operation["operationId"]}">',
        f'<h3><a href="#{operation["operationId"]}">{escape(operation["summary"])}</a></h3>',
        f'<div class="address">{_verb(method, operation)}<code>{escape(path)}</code></div>',
        f"<p>{_text(operation['description'])}</p>" if operation["description"] else "",
        _table("Parameters", map(_parameter_row, operation["parameters"])),
        _body(body_schema(operation), schemas),
        _table("Answers", map(_reply_row, replies(operation))),
        _table("Problems", map(_problem_row, problems(operation))),
        f"<pre>{escape(curl_text(method, path, operation))}</pre></article>",
    ]
    return "\n".join(part for part in parts if part)


def _table(title: str, rows: Iterable[str], style: str = "") -> str:
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    head = f"<h4>{title}</h4>" if title else ""
    return f'{head}<table class="{style}">{body}</table>' if body else ""


def _parameter_row(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    must = '<span class="must">required</span>' if parameter.get("required") else ""
    where = f'<span class="where">{parameter["in"]}</span>'
    return (
        f'<td class="name">{escape(parameter["name"])}{where}{must}</td>'
        f'<td class="kind">{_kind(schema)}{_default(schema)}</td>'
        f"<td>{_text(parameter['description'])}</td>"
    )


def _body(name: str, schemas: dict[str, dict[str, Any]]) -> str:
    if not name:
        return ""
    if name not in schemas:
        return f"<h4>Body</h4><p><code>{escape(name)}</code>, of any length</p>"
    about = _text(schemas[name].get("description", ""))
    return f"<h4>Body · {_link(name)}</h4><p>{about}</p>" + _table("", _field_rows(schemas[name]))


def _field_rows(schema: dict[str, Any]) -> list[str]:
    required = schema.get("required", ())
    return [
        f'<td class="name">{escape(name)}</td><td class="kind">{_kind(field)}</td>'
        f"<td>{'<span class=must>required</span>' if name in required else _default(field)}</td>"
        for name, field in schema.get("properties", {}).items()
    ]


def _reply_row(reply: tuple[str, str, list[str]]) -> str:
    status, about, kinds = reply
    holds = " or ".join(_kind_words(kind) for kind in kinds)
    return f'<td class="status">{status}</td><td class="kind">{holds}</td><td>{_text(about)}</td>'


def _problem_row(problem: tuple[str, list[str]]) -> str:
    status, codes = problem
    chips = "".join(f'<a href="#problem-{code}"><code>{code}</code></a>' for code in codes)
    return f'<td class="status">{status}</td><td class="chips">{chips}</td>'


def _types(schemas: dict[str, dict[str, Any]]) -> str:
    articles = []
    for name, schema in schemas.items():
        about = f"<p>{_text(schema['description'])}</p>" if "description" in schema else ""
        if "enum" in schema:
            chips = "".join(f"<code>{escape(str(each))}</code>" for each in schema["enum"])
            rows = f'<p class="chips">{chips}</p>'
        else:
            rows = _table("Fields", _field_rows(schema))
        articles.append(f'<article id="type-{name}"><h3>{name}</h3>{about}{rows}</article>')
    return '<section id="types"><h2>Types</h2>\n' + "\n".join(articles) + "</section>"


def _problem_codes(codes: list[dict[str, Any]]) -> str:
    rows = "".join(
        f'<tr id="problem-{each["code"]}"><td class="name">{each["code"]}</td>'
        f"<td>{each['status']}</td></tr>"
        for each in codes
    )
    table = f'<article><table class="problems">{rows}</table></article>'
    return f'<section id="problems"><h2>Problem codes</h2>{table}</section>'


def _kind(schema: dict[str, Any]) -> str:
    return _kind_words(type_text(schema))


def _kind_words(words: str) -> str:
    """Return a type in words with the names of schemas as links."""
    return " ".join(_link(word) if word[:1].isupper() else escape(word) for word in words.split())


def _link(name: str) -> str:
    return f'<a href="#type-{name}">{name}</a>'


def _default(schema: dict[str, Any]) -> str:
    text = default_text(schema)
    return f' <span class="where">default <code>{escape(text)}</code></span>' if text else ""


def _text(text: str) -> str:
    """Return a description as HTML: `code` is the only markup."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_text(part)}</p>" for part in text.split("\n\n"))
