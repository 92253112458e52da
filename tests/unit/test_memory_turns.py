"""Turns of the pager's work that nobody waits for."""

from __future__ import annotations

import os
import threading

from mig.memory.turns import TURN, Crowd, Turns


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_other_turn_is_others_where_cpus_are_short() -> None:
    clock = Clock()
    turns = Turns(lambda: True, clock)
    worked = rested = 0.0
    while clock.now < 101.0:
        pause = turns.rest()
        rested += pause
        worked += TURN / 4
        clock.now += pause + TURN / 4
    assert 0.4 < rested / (rested + worked) < 0.5


def test_a_pause_that_ends_early_is_no_reason_for_another() -> None:
    clock = Clock()
    turns = Turns(lambda: True, clock)
    assert turns.rest() == TURN
    clock.now += TURN / 10  # a page fault came
    assert turns.rest() == 0.0
    clock.now += 2 * TURN
    assert turns.rest() == TURN


def test_no_pause_while_a_cpu_is_free() -> None:
    clock = Clock()
    turns = Turns(lambda: False, clock)
    for _ in range(100):
        assert turns.rest() == 0.0
        clock.now += TURN


def test_a_crowd_is_more_who_run_than_cpus() -> None:
    crowd, stop = Crowd(), threading.Event()
    pids = []
    try:
        for _ in range((os.cpu_count() or 1) + 1):
            pid = os.fork()
            if not pid:
                while True:
                    pass
            pids.append(pid)
        assert any(crowd() or stop.wait(0.01) for _ in range(500))
    finally:
        for pid in pids:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
