"""The life of a guest: every pair of the tables by name, and what holds on every path through them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.model import lifecycle
from serai.model.lifecycle import (
    HAPPENINGS,
    MOVES,
    ON_STATES,
    Accept,
    Deny,
    GuestState,
    Happening,
    Ignore,
    Reason,
    Verb,
    admit,
    after,
    draw,
)

S, V, H, R = GuestState, Verb, Happening, Reason

ANSWERS = """
              start stop  kill  restart pause resume delete destroy rename set  talk look snapshot restore
creating      no    no    no    no      no    no     no     no      no     no   no   no   no       no
stopped       yes   same  same  yes     no    no     yes    yes     yes    yes  no   no   yes      yes
starting      same  no    yes   no      no    no     no     yes     yes    no   no   yes  no       no
running       same  yes   yes   yes     yes   same   no     yes     yes    yes  yes  yes  yes      yes
paused        no    yes   yes   yes     same  yes    no     yes     yes    yes  no   yes  yes      yes
io-error      no    yes   yes   yes     no    yes    no     yes     yes    yes  no   yes  no       yes
stopping      no    same  yes   no      no    no     no     yes     yes    no   yes  yes  no       no
unresponsive  same  no    yes   yes     no    no     no     yes     yes    no   no   no   no       yes
crashed       yes   same  same  yes     no    no     yes    yes     yes    yes  no   no   yes      yes
deleting      no    no    no    no      no    no     same   same    no     no   no   no   no       no
"""

WORDS = {Accept: "yes", Ignore: "same", Deny: "no"}

REASONS = {
    S.CREATING: {R.BEING_CREATED},
    S.STOPPED: {R.NOT_RUNNING},
    S.STARTING: {R.BEING_STARTED},
    S.RUNNING: {R.STILL_RUNNING},
    S.PAUSED: {R.PAUSED, R.STILL_RUNNING},
    S.IO_ERROR: {R.DISK_FULL, R.STILL_RUNNING},
    S.STOPPING: {R.BEING_STOPPED},
    S.UNRESPONSIVE: {R.UNRESPONSIVE},
    S.CRASHED: {R.NOT_RUNNING},
    S.DELETING: {R.BEING_DELETED},
}


def answers() -> list[tuple[GuestState, Verb, str]]:
    """Return the table above as (state, verb, answer)."""
    head, *lines = ANSWERS.split("\n")[1:-1]
    verbs = [Verb(word) for word in head.split()]
    rows = [line.split() for line in lines]
    return [
        (S(name), v, word) for name, *words in rows for v, word in zip(verbs, words, strict=True)
    ]


@pytest.mark.parametrize(("state", "verb", "answer"), answers())
def test_the_answer_to(state: GuestState, verb: Verb, answer: str):
    assert WORDS[type(admit(state, verb))] == answer


def test_every_pair_is_in_the_table():
    named = {(state, verb) for state, verb, _ in answers()}
    assert named == {(state, verb) for state in GuestState for verb in Verb}
    assert set(HAPPENINGS) == set(MOVES) == set(GuestState)
    assert all(set(moves) == set(Verb) for moves in MOVES.values())


@pytest.mark.parametrize("state", GuestState)
def test_a_refusal_says_what_the_state_is(state: GuestState):
    given = {move.reason for move in MOVES[state].values() if isinstance(move, Deny)}
    assert given == REASONS[state]


def test_every_reason_is_given_somewhere():
    assert set().union(*REASONS.values()) == set(Reason)


def test_the_drawing_is_what_the_tables_say():
    assert lifecycle.__doc__ is not None
    assert draw() in lifecycle.__doc__
    assert len(draw().splitlines()) == len(GuestState)


# -- what holds in every state -----------------------------------------------------------------------


@pytest.mark.parametrize("state", sorted(ON_STATES))
def test_where_there_is_a_process_it_can_be_killed(state: GuestState):
    assert admit(state, V.KILL) == admit(state, V.DESTROY) == Accept(S.STOPPING)


@pytest.mark.parametrize("state", sorted(ON_STATES))
def test_where_there_is_a_process_the_guest_is_not_deleted(state: GuestState):
    assert isinstance(admit(state, V.DELETE), Deny)


@pytest.mark.parametrize("state", sorted(set(GuestState) - ON_STATES))
def test_without_a_process_nobody_talks_or_looks(state: GuestState):
    for verb in (V.TALK, V.LOOK, V.PAUSE, V.RESUME):
        assert isinstance(admit(state, verb), Deny)


@pytest.mark.parametrize("state", sorted(ON_STATES))
def test_an_end_of_the_process_is_seen_in_every_state_that_has_one(state: GuestState):
    assert after(state, H.EXITED) not in ON_STATES
    if state is not S.STOPPING:
        assert after(state, H.PANICKED) is S.CRASHED
        assert after(state, H.POWERED_OFF) is S.STOPPING


def test_what_is_so_already_is_never_refused():
    so_already = {
        V.START: {S.STARTING, S.RUNNING},
        V.STOP: {S.STOPPED, S.CRASHED, S.STOPPING},
        V.KILL: {S.STOPPED, S.CRASHED},
        V.PAUSE: {S.PAUSED},
        V.RESUME: {S.RUNNING},
        V.DELETE: {S.DELETING},
        V.DESTROY: {S.DELETING},
    }
    for verb, states in so_already.items():
        assert all(admit(state, verb) == Ignore() for state in states)


def steps(state: GuestState) -> set[GuestState]:
    """Return the states that can follow."""
    moves = {
        move.state for move in MOVES[state].values() if isinstance(move, Accept) and move.state
    }
    return (moves | set(HAPPENINGS[state].values())) - {state}


def test_only_deleting_has_no_way_out():
    assert [state for state in GuestState if not steps(state)] == [S.DELETING]


def test_every_state_is_reached_from_creating():
    reached, fresh = {S.CREATING}, {S.CREATING}
    while fresh := set().union(*(steps(state) for state in fresh)) - reached:
        reached |= fresh
    assert reached == set(GuestState)


@pytest.mark.parametrize("state", sorted(set(GuestState) - {S.CREATING, S.DELETING}))
def test_from_everywhere_force_leads_out(state: GuestState):
    """Whatever a guest is in, a forced delete takes it away in two turns."""
    if state in ON_STATES:
        state = after(admit(state, V.DESTROY).state, H.GONE)
    assert admit(state, V.DESTROY) == Accept(S.DELETING)


@pytest.mark.parametrize("state", sorted(ON_STATES - {S.STARTING, S.STOPPING, S.UNRESPONSIVE}))
def test_a_monitor_that_falls_silent_and_answers_again(state: GuestState):
    assert after(state, H.SILENT) is S.UNRESPONSIVE
    assert after(S.UNRESPONSIVE, H.ANSWERED_RUNNING) is S.RUNNING
    assert after(S.UNRESPONSIVE, H.ANSWERED_PAUSED) is S.PAUSED
    assert after(S.UNRESPONSIVE, H.DISK_FULL) is S.IO_ERROR


# -- what holds on every path ------------------------------------------------------------------------

ENDS = {H.GONE, H.EXITED, H.START_FAILED, H.PANICKED}


class Model:
    """A guest in ten lines: is there a process, and is the guest on its way out?"""

    def __init__(self) -> None:
        self.on = self.made = self.leaving = False

    def ask(self, verb: Verb) -> None:
        starts = verb in (V.START, V.RESTART) and self.made and not self.leaving
        self.leaving |= verb in (V.DELETE, V.DESTROY) and self.made and not self.on
        self.on |= starts

    def happen(self, what: Happening) -> None:
        self.made |= what is H.CREATED
        self.on &= what not in ENDS


def could_happen(state: GuestState, what: Happening) -> bool:
    """Tell whether the world can bring this about: no process, nothing that a process does."""
    if what is H.CREATED:
        return state is S.CREATING
    if what is H.START_FAILED:
        return state is S.STARTING
    if what in (H.GONE, H.STILL_UP):
        return state is S.STOPPING
    return state in ON_STATES and not (state is S.STOPPING and what is H.PANICKED)


@given(st.lists(st.sampled_from([*Verb, *Happening]), max_size=60))
def test_any_sequence_agrees_with_a_small_model(sequence):
    state, model = S.CREATING, Model()
    for step in sequence:
        before = state
        if isinstance(step, Happening):
            if not could_happen(state, step):
                continue
            state = after(state, step)
            model.happen(step)
        else:
            answer = admit(state, step)
            if isinstance(answer, Accept):
                state = answer.state or state
                model.ask(step)
            else:
                assert state is before
        assert (state in ON_STATES) == model.on
        assert (state is S.DELETING) == model.leaving
        assert (state is S.CREATING) == (not model.made)


@given(st.lists(st.sampled_from(list(Happening)), max_size=30), st.sampled_from(list(GuestState)))
def test_nothing_that_happens_starts_or_deletes_a_guest(happenings, state):
    """Only somebody's wish does: what is off stays off, and nothing is deleted by itself."""
    for what in happenings:
        then = after(state, what)
        if state not in ON_STATES:
            assert then not in ON_STATES
        if then is S.DELETING:
            assert state is S.DELETING
        state = then
