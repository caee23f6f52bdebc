"""Pure parts of the store: numbers, bodies, and SQL that PostgreSQL speaks too."""

import logging
from typing import get_args

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from serai.errors import Family, Problem
from serai.model.guest import GuestRecord, GuestSpec
from serai.model.job import Job, JobState
from serai.store import apply
from serai.store.changes import AddEvent, Change, DropGuest, Prune, PutGuest, free_number
from serai.store.records import GUEST_BODY, JOB_BODY, Damaged, decode, encode
from serai.store.rows import prepare
from serai.store.schema import GUESTS, JOBS, METADATA

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)


@given(st.sets(st.integers(1, 60)))
def test_the_smallest_free_number(taken):
    number = free_number(taken)
    assert number not in taken
    assert all(smaller in taken for smaller in range(1, number))


def test_numbers_are_given_again_only_when_free():
    taken = []
    for _ in range(5):
        taken.append(free_number(taken))
    assert taken == [1, 2, 3, 4, 5]
    taken.remove(3)
    assert free_number(taken) == 3


def a_record(text: str, number: int, seconds: float) -> GuestRecord:
    return GuestRecord(
        id="x",
        number=number,
        version=1,
        created_at=seconds,
        spec=GuestSpec(image="tiny", name="web1", labels={"k": text}),
        image_digest="sha256:ab",
        machine_type="pc-q35-7.2",
        mac="52:54:00:00:00:01",
        genid="y",
        problem=Problem(family=Family.BUG, code="bug", message=text, details={"k": text}),
    )


@given(
    st.text(max_size=40),
    st.integers(1, 1 << 40),
    st.floats(0, 4e9, allow_nan=False, allow_infinity=False),
)
def test_a_guest_comes_back_exactly(text, number, seconds):
    record = a_record(text, number, seconds)
    assert decode(GUESTS, "x", encode(record), GUEST_BODY) == record


@given(ANY_TEXT)
def test_any_text_can_be_stored(text):
    body = encode(a_record(text, 1, 0.0))
    found = decode(GUESTS, "x", body, GUEST_BODY)
    assert isinstance(found, GuestRecord)
    kept = found.spec.labels["k"]
    assert kept == found.problem.message
    halves = any("\ud800" <= character <= "\udfff" for character in text)
    assert halves or kept == text
    assert body.encode()


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "{}", '{"id":1}', "[" * 100_000, None, 7, b"{}", "\ud800", '{"a":"\\ud800"}'],
)
def test_damage_is_told_by_table_and_key(body, caplog):
    with caplog.at_level(logging.ERROR):
        found = decode(JOBS, "the id", body, JOB_BODY)
    assert isinstance(found, Damaged)
    assert (found.table, found.key) == ("jobs", "the id")
    assert found.reason
    assert "the id" in caplog.text


def test_a_field_that_came_later_needs_no_migration():
    job = Job(id="x", kind="k", subject="s", state=JobState.DONE, created_at=1.0, updated_at=1.0)
    first = {key: value for key, value in msgspec.to_builtins(job).items() if key != "message"}
    assert decode(JOBS, "x", msgspec.json.encode(first).decode(), JOB_BODY) == job
    later = msgspec.json.encode({**first, "what_comes": 1}).decode()
    assert decode(JOBS, "x", later, JOB_BODY) == job


@pytest.mark.parametrize("table", METADATA.sorted_tables, ids=str)
def test_the_tables_can_be_made_in_both_databases(table: sa.Table):
    made = str(CreateTable(table).compile(dialect=postgresql.dialect()))
    assert ("BIGSERIAL" in made) == ("seq" in table.c)
    assert "AUTOINCREMENT" not in made
    made = str(CreateTable(table).compile(dialect=sqlite.dialect()))
    assert ("INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT" in made) == ("seq" in table.c)
    for index in table.indexes:
        assert str(CreateIndex(index).compile(dialect=postgresql.dialect()))


@pytest.mark.parametrize("dialect", [sqlite.dialect(), postgresql.dialect()], ids=["sqlite", "pg"])
def test_pruning_is_one_statement_in_both_databases(dialect):
    for statement in (apply._PRUNE_EVENTS, apply._PRUNE_JOBS):
        text = str(statement.compile(dialect=dialect))
        assert "DELETE FROM" in text
        assert "OFFSET" in text


def test_what_is_not_stored_needs_no_row():
    for change in (DropGuest("x"), Prune(events_kept=1, jobs_kept=1)):
        assert prepare(change).row == {}
    assert set(prepare(PutGuest(a_record("", 1, 0.0))).row) == set(GUESTS.c.keys())


def test_every_change_to_a_kind_has_its_place():
    put = {each for each in get_args(Change) if each.__name__.startswith("Put")}
    drop = {each for each in get_args(Change) if each.__name__.startswith("Drop")}
    assert set(apply._PUT) == put
    assert set(apply._DROP) == drop
    assert {*put, *drop, AddEvent, Prune} == set(get_args(Change))
