"""The journal on both sides, and what a node says of a move when asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from mig.migration import journal as j


def test_records_are_read_back_in_order_and_a_torn_one_is_left_out(tmp_path: Path) -> None:
    log = j.Journal("1-2-3", "source", tmp_path)
    log.write(j.BEGIN, pid=2)
    log.write(j.COMMIT)
    with log.path.open("ab") as f:
        f.write(b"\xff\x00\x00\x00half")
    assert [(r.name, r.data) for r in log.read()] == [(j.BEGIN, {"pid": 2}), (j.COMMIT, {})]


def test_a_move_id_cannot_leave_the_directory(tmp_path: Path) -> None:
    for bad in ("../x", "a/b", ".hidden"):
        with pytest.raises(ValueError):
            j.Journal(bad, "source", tmp_path)


def test_the_verdict(tmp_path: Path) -> None:
    assert j.verdict("unknown", tmp_path) == "aborted"
    log = j.Journal("m", "destination", tmp_path)
    log.write(j.PREPARED)
    assert j.verdict("m", tmp_path) == "pending"
    log.write(j.ABORTED)
    assert j.verdict("m", tmp_path) == "aborted"
    other = j.Journal("n", "destination", tmp_path)
    other.write(j.PREPARED)
    other.write(j.RUNNING)
    assert j.verdict("n", tmp_path) == "running"


def test_unfinished_moves_are_those_without_an_end(tmp_path: Path) -> None:
    moves = {"a": [j.BEGIN], "b": [j.BEGIN, j.COMMIT], "c": [j.BEGIN, j.COMMIT, j.ARRIVED], "d": [j.BEGIN, j.ROLLED_BACK]}
    for mid, names in moves.items():
        for n in names:
            j.Journal(mid, "source", tmp_path).write(n)
    assert j.unfinished(tmp_path) == ["a", "b"]


def test_a_keeper_that_died_before_it_accepted_go_means_aborted(tmp_path: Path) -> None:
    log = j.Journal("k", "destination", tmp_path)
    log.write(j.PREPARED, keeper=1, start=0, boot="another boot")
    assert j.verdict("k", tmp_path) == "aborted"
