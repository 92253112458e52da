"""The source's state machine: every failure before the commit is undone in reverse, after it only the destination's word counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mig.migration import machine as m
from mig.migration.machine import PLAN, Outcome, State, Step


def until(step: Step) -> m.Source:
    """A machine that is doing ``step``."""
    s = m.Source()
    s.handle(m.Begin())
    for done in PLAN[: PLAN.index(step)]:
        s.handle(m.Done(done))
    return s


def committed() -> m.Source:
    """A machine that has sent GO."""
    s = until(PLAN[-1])
    assert s.handle(m.Done(PLAN[-1])) == [m.WriteCommit()]
    assert s.handle(m.CommitWritten()) == [m.SendGo()]
    return s


def roll_back(s: m.Source, todo: list[m.Instruction]) -> tuple[list[Step], m.Finish]:
    """Execute undo instructions until the machine finishes."""
    undone = []
    while not isinstance(todo[0], m.Finish):
        assert isinstance(todo[0], m.Undo) and len(todo) == 1
        undone.append(todo[0].step)
        todo = s.handle(m.Done(todo[0].step, undo=True))
    return undone, todo[0]


def test_a_move_that_meets_no_trouble_does_every_step_once_in_order() -> None:
    s = m.Source()
    todo, did = s.handle(m.Begin()), []
    while isinstance(todo[0], m.Do):
        did.append(todo[0].step)
        todo = s.handle(m.Done(todo[0].step))
    assert did == list(PLAN)
    assert todo == [m.WriteCommit()]
    assert s.handle(m.CommitWritten()) == [m.SendGo()]
    assert s.handle(m.Running()) == [m.Finish(Outcome.ARRIVED)]


@pytest.mark.parametrize("step", PLAN)
@pytest.mark.parametrize("event", [lambda s: m.Failed(s, "boom"), lambda s: m.Cancelled("boom")], ids=["failed", "cancelled"])
def test_trouble_in_any_step_undoes_what_was_begun_in_reverse(step: Step, event: object) -> None:
    s = until(step)
    undone, finish = roll_back(s, s.handle(event(step)))  # type: ignore[operator]
    assert undone == list(reversed(PLAN[: PLAN.index(step) + 1]))
    assert finish == m.Finish(Outcome.ROLLED_BACK, "boom")


def test_a_commit_that_could_not_be_written_is_no_commit() -> None:
    s = until(PLAN[-1])
    s.handle(m.Done(PLAN[-1]))
    undone, finish = roll_back(s, s.handle(m.CommitFailed("disk full")))
    assert Step.FREEZE in undone and finish.outcome is Outcome.ROLLED_BACK


def test_in_doubt_it_asks_until_the_destination_knows() -> None:
    s = committed()
    assert s.handle(m.AnswerLost("cut")) == [m.AskDestination(0.0)]
    for _ in range(50):
        assert s.handle(m.Answer("")) == [m.AskDestination(s.ask_every)]
        assert s.handle(m.Answer("pending")) == [m.AskDestination(s.ask_every)]
        assert s.handle(m.Cancelled("the user lost patience")) == []
    assert s.handle(m.Answer("running")) == [m.Finish(Outcome.ARRIVED)]


def test_only_the_destinations_own_word_allows_a_thaw_after_the_commit() -> None:
    s = committed()
    s.handle(m.AnswerLost("cut"))
    undone, finish = roll_back(s, s.handle(m.Answer("aborted")))
    assert Step.FREEZE in undone
    assert finish == m.Finish(Outcome.ROLLED_BACK, "cut")


def test_an_event_that_has_no_place_is_an_error_that_tells_the_story() -> None:
    s = until(Step.DUMP)
    with pytest.raises(m.InvalidTransition, match=r"Running.*story"):
        s.handle(m.Running())


EVENTS = st.sampled_from(
    [m.Cancelled("c"), m.CommitWritten(), m.CommitFailed("x"), m.Running(), m.AnswerLost("l"), m.Answer(""), m.Answer("pending")]
)


@given(st.lists(st.one_of(EVENTS, st.just("ok"), st.just("fail")), max_size=60))
def test_whatever_happens_a_committed_process_is_never_thawed_without_the_destinations_word(history: list[object]) -> None:
    """No sequence of events without ``Answer("aborted")`` leads from a written commit to an undo."""
    s = m.Source()
    todo = s.handle(m.Begin())
    was_committed = False
    for h in history:
        if not todo:
            continue
        now = todo[0]
        event: m.Event
        if h in ("ok", "fail"):
            if isinstance(now, m.Do):
                event = m.Done(now.step) if h == "ok" else m.Failed(now.step, "f")
            elif isinstance(now, m.Undo):
                event = m.Done(now.step, undo=True)
            else:
                continue
        else:
            assert not isinstance(h, str)
            event = h  # type: ignore[assignment]
        try:
            after = s.handle(event)
        except m.InvalidTransition:
            continue
        was_committed = was_committed or isinstance(event, m.CommitWritten)
        if was_committed:
            assert not any(isinstance(i, m.Undo) for i in after)
            assert s.state in (State.COMMITTED, State.IN_DOUBT, State.DONE)
        todo = after or todo
