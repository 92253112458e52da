"""The machine that decides whether a node belongs to the pool or to its owner."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mig.adaptive.membership import Admit, Changed, Facts, Lower, Membership, Shut, State, Vacate
from mig.adaptive.rules import Rejoin, Rules
from mig.adaptive.sessions import Session

ANN = Session(10, "ann", "sshd", "pts/1", "10.0.0.9")
BOB = Session(20, "bob", "login", "tty2", since=5.0)
CRON = Session(30, "ann", "cron")


def machine(leave_on: Any = "login", rejoin: str = "60s", **rules: Any) -> Membership:
    m = Membership(Rules(leave_on, Rejoin.parse(rejoin), ignored=frozenset({"cron"}), **rules))
    assert [type(i) for i in m.step(Facts(0.0))] == [Admit, Changed]
    return m


def test_a_login_shuts_lowers_and_vacates_in_one_step_and_names_nobody_to_the_pool() -> None:
    m = machine()
    shut, changed, lower, vacate = m.step(Facts(1.0, (ANN,), guests=2))
    assert shut == Shut("leaving: somebody is logged in by sshd") and isinstance(lower, Lower) and isinstance(vacate, Vacate)
    assert changed == Changed(State.LEAVING, State.IN, "ann (sshd, pts/1, from 10.0.0.9) logged in")
    assert m.step(Facts(2.0, (ANN,), guests=1)) == []
    assert m.step(Facts(3.0, (ANN,), guests=0))[0] == Shut("out: somebody is logged in by sshd")
    assert m.state is State.OUT and m.step(Facts(4.0, (ANN,))) == []


def test_sessions_are_counted_and_the_timer_begins_with_the_last_logout() -> None:
    m = machine()
    m.step(Facts(1.0, (ANN, BOB)))
    m.step(Facts(2.0, (ANN, BOB)))
    assert m.state is State.OUT and m.rejoins_in(2.0) is None
    assert m.rejoins_in(2.9) is None, "between two looks he is there as well"
    assert "bob" in m.why and "1 more" in m.why
    assert m.step(Facts(500.0, (ANN,))) == [Shut("out: somebody is logged in by sshd")], "one is left"
    assert m.step(Facts(501.0)) == [] and m.rejoins_in(501.0) == pytest.approx(59.0)
    assert m.step(Facts(559.9)) == []
    assert m.step(Facts(560.0)) == [Admit(), Changed(State.IN, State.OUT, "nobody has been here for 60 s")]
    assert m.why == "" and m.rejoins_in(560.0) is None


def test_a_login_during_the_wait_begins_it_anew() -> None:
    m = machine()
    for t, s in ((1.0, (ANN,)), (2.0, ()), (50.0, (BOB,)), (51.0, ())):
        m.step(Facts(t, s))
    assert m.step(Facts(62.0)) == []
    assert isinstance(m.step(Facts(110.0))[0], Admit)


def test_a_logout_while_guests_are_leaving_lets_the_others_stay() -> None:
    m = machine(rejoin="0s")
    m.step(Facts(1.0, (ANN,), guests=5))
    assert m.step(Facts(2.0, guests=3)) == [Admit(), Changed(State.IN, State.LEAVING, "nobody has been here for 1 s")]


def test_a_guest_that_was_on_its_way_is_sent_on() -> None:
    m = machine()
    m.step(Facts(1.0, (ANN,)))
    m.step(Facts(2.0, (ANN,)))
    assert m.state is State.OUT
    assert m.step(Facts(3.0, (ANN,), guests=1))[-1] == Vacate("somebody is logged in by sshd")
    assert m.state is State.LEAVING


def test_what_cron_does_is_nobodys_presence() -> None:
    m = machine()
    assert m.step(Facts(1.0, (CRON,))) == [] and m.state is State.IN


def test_never_means_never() -> None:
    m = machine("never")
    assert m.step(Facts(1.0, (ANN, BOB), idle_s=0.0, owner_load=9.0)) == []


def test_console_logins_alone() -> None:
    m = machine("console-login")
    assert m.step(Facts(1.0, (ANN,))) == []
    assert m.step(Facts(2.0, (ANN, BOB)))[0] == Shut("leaving: somebody is logged in by login")


def test_a_forgotten_session_comes_back_when_idle_and_leaves_at_the_next_key() -> None:
    m = machine(rejoin="5m idle")
    m.step(Facts(1.0, (ANN,), idle_s=0.0))
    m.step(Facts(2.0, (ANN,), idle_s=1.0))
    assert m.step(Facts(200.0, (ANN,), idle_s=199.0)) == [] and m.rejoins_in(200.0) == pytest.approx(101.0)
    assert isinstance(m.step(Facts(301.0, (ANN,), idle_s=300.0))[0], Admit)
    assert m.step(Facts(900.0, (ANN,), idle_s=899.0)) == []
    assert isinstance(m.step(Facts(901.0, (ANN,), idle_s=0.5))[0], Shut)


def test_active_user_wants_hands_or_work_not_just_a_session() -> None:
    m = machine("active-user", "5m idle")
    assert m.step(Facts(1.0, (ANN,), idle_s=100.0)) == []
    assert m.step(Facts(2.0, (), idle_s=0.0)) == [], "a key of nobody's"
    assert isinstance(m.step(Facts(3.0, (ANN,), idle_s=2.0))[0], Shut)
    m.step(Facts(4.0, (ANN,), idle_s=3.0))
    assert isinstance(m.step(Facts(301.0, (ANN,), idle_s=300.0))[0], Admit)
    shut = m.step(Facts(302.0, (ANN,), idle_s=301.0, owner_load=1.7))[0]
    assert shut == Shut("leaving: local users' own work keeps 1.7 threads busy")
    m.step(Facts(303.0, (ANN,), idle_s=302.0, owner_load=1.7))
    assert m.step(Facts(601.0, (ANN,), idle_s=600.0)) == []
    assert isinstance(m.step(Facts(603.0, (ANN,), idle_s=602.0))[0], Admit), "5 minutes after the work was last seen"


def test_lingering_keeps_guests_until_the_owner_feels_them() -> None:
    m = machine(linger=True, rejoin="0s")
    shut, changed, lower = m.step(Facts(1.0, (ANN,), guests=2))
    assert shut == Shut("lingering: somebody is logged in by sshd") and isinstance(lower, Lower)
    assert isinstance(changed, Changed) and changed.state is State.LINGERING
    assert m.step(Facts(2.0, (ANN,), guests=2)) == []
    assert m.step(Facts(3.0, (ANN,), guests=2, felt="memory is short"))[-1] == Vacate("its owner feels the guests: memory is short")
    assert m.state is State.LEAVING and "memory is short" in m.why
    m.step(Facts(4.0, (ANN,)))
    assert m.step(Facts(5.0)) == [Admit(), Changed(State.IN, State.OUT, "nobody has been here for 1 s")]


def test_a_restarted_daemon_that_finds_somebody_never_opens() -> None:
    m = Membership(Rules("login", Rejoin(60.0)))
    assert not any(isinstance(i, Admit) for i in m.step(Facts(7.0, (ANN,), idle_s=0.0)))


@pytest.mark.parametrize(
    ("text", "seconds", "idle"),
    [("5m idle", 300, True), ("90s", 90, False), ("1h", 3600, False), ("0", 0, False), ("1.5 m  idle", 90, True), ("250ms", 0.25, False)],
)
def test_times_of_rejoining(text: str, seconds: float, idle: bool) -> None:
    assert Rejoin.parse(text) == Rejoin(seconds, idle)


@pytest.mark.parametrize("text", ["", "-5m", "5 minutes", "idle", "5m idle now", "nan", "1e9"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        Rejoin.parse(text)


def test_idleness_that_cannot_be_told() -> None:
    assert Rejoin.parse("10s idle").seconds == 10
    with pytest.raises(ValueError, match="every 8 s"):
        Rejoin.parse("2s idle")


FACTS = st.tuples(
    st.floats(0.0, 30.0), st.sets(st.sampled_from([ANN, BOB, CRON])), st.floats(0.0, 400.0) | st.just(math.inf),
    st.floats(0.0, 3.0), st.integers(0, 4), st.sampled_from(["", "memory"]),
)  # fmt: skip


@settings(max_examples=60)
@given(
    st.sampled_from(["login", "console-login", "active-user", "never"]), st.sampled_from(["0s", "20s", "60s idle", "10s idle"]),
    st.booleans(), st.lists(FACTS, max_size=40),
)  # fmt: skip
def test_whatever_happens_the_door_fits_the_state_and_guests_are_sent_away_when_it_leaves(
    leave_on: Any, rejoin: str, linger: bool, story: list[Any]
) -> None:
    """Doors, priority and eviction as an executor would keep them: they always fit the state, and nobody counted is ever ignored."""
    m = Membership(Rules(leave_on, Rejoin.parse(rejoin), linger, ignored=frozenset({"cron"})))
    now, open_, low, vacating = 0.0, None, False, False
    for dt, sessions, idle, load, guests, felt in story:
        now += dt
        f = Facts(now, tuple(sorted(sessions, key=lambda s: s.pid)), idle, load, guests, felt)
        for i in m.step(f):
            match i:
                case Shut():
                    open_ = False
                case Lower():
                    low = True
                case Vacate():
                    vacating = True
                case Admit():
                    open_, low, vacating = True, False, False
        assert open_ == (m.state is State.IN) and low == (m.state is not State.IN)
        assert vacating == (m.state in (State.LEAVING, State.OUT))
        assert bool(m.why) == (m.state is not State.IN)
        if leave_on == "login" and not m.rules.rejoin.idle and m.counted(f.sessions):
            assert m.state is not State.IN
        if not open_:
            assert m.public and not any(s.user in m.public for s in (ANN, BOB))
