"""Who stands in for whom in a cell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mig.cell.family import COMMON_PID_MAX, RESERVED, SPAN, Family, free_span, plan
from mig.cell.spec import CellError
from mig.model import ProcessFacts

PID_MAX = 4194304


def facts(pid: int, ppid: int, pgid: int, sid: int, tpgid: int = -1, **more: object) -> ProcessFacts:
    values: dict[str, object] = {"tree": [pid], "tids": [pid], "tty_nr": 0x8800 if tpgid >= 0 else 0} | more
    return ProcessFacts(
        pid=pid, start=0, boot="", comm="", uid=0, gid=0, ppid=ppid, pgid=pgid, sid=sid, tpgid=tpgid, **values  # type: ignore[arg-type]
    )  # fmt: skip


def cast(f: ProcessFacts) -> Family:
    return plan(f, PID_MAX)


def test_a_foreground_job_of_an_interactive_shell_needs_the_shell_alone() -> None:
    p = cast(facts(200, ppid=100, pgid=200, sid=100, tpgid=200))
    assert (p.leader, p.parent, p.host, p.stand_ins, p.group, p.background) == (100, 100, 100, (), 0, 100)
    assert not p.leads_group and not p.joins


def test_a_command_of_a_script_is_in_its_parents_group() -> None:
    p = cast(facts(200, ppid=150, pgid=150, sid=100, tpgid=150))
    assert (p.leader, p.parent, p.leads_group, p.group, p.joins, p.stand_ins) == (100, 150, True, 150, 0, ())


def test_a_later_command_of_a_pipeline_needs_the_groups_leader() -> None:
    p = cast(facts(201, ppid=100, pgid=200, sid=100, tpgid=200))
    assert (p.stand_ins, p.group, p.joins) == ((200,), 200, 0)


def test_a_script_in_a_pipeline_joins_the_group() -> None:
    p = cast(facts(202, ppid=201, pgid=200, sid=100, tpgid=200))
    assert (p.leader, p.parent, p.stand_ins, p.group, p.joins) == (100, 201, (200,), 200, 200)


def test_a_background_job_leaves_the_terminal_to_another() -> None:
    p = cast(facts(200, ppid=100, pgid=200, sid=100, tpgid=300))
    assert (p.stand_ins, p.background) == ((300,), 300)


def test_an_orphans_parent_is_init_and_its_leader_makes_the_rest() -> None:
    p = cast(facts(200, ppid=1, pgid=199, sid=100, tpgid=100))
    assert (p.leader, p.parent, p.host, p.stand_ins) == (100, 1, 100, (199,))
    assert cast(facts(200, ppid=0, pgid=200, sid=200)).host == 1
    assert cast(facts(200, ppid=1, pgid=1, sid=1)).leader == 1


def test_a_leader_of_its_own_session_needs_no_other() -> None:
    p = cast(facts(200, ppid=100, pgid=200, sid=200, tpgid=200))
    assert (p.leader, p.parent, p.stand_ins, p.group, p.background) == (0, 100, (), 0, 0)


def test_groups_within_the_tree_come_with_it() -> None:
    p = cast(facts(200, ppid=100, pgid=200, sid=100, tpgid=210, tree=[200, 210], tids=[200, 210]))
    assert p.stand_ins == ()


def test_a_pid_of_the_guest_cannot_be_anothers() -> None:
    with pytest.raises(CellError, match="process 200 "):
        cast(facts(300, ppid=200, pgid=300, sid=300, tids=[300, 200]))


def test_a_pid_beyond_the_kernels_limit_is_named() -> None:
    with pytest.raises(CellError, match=r"kernel.pid_max 32768") as e:
        plan(facts(40000, ppid=100, pgid=40000, sid=40000), 32768)
    assert "sysctl" in e.value.hint


@given(st.sets(st.integers(1, COMMON_PID_MAX - 1), max_size=200))
def test_the_worker_is_far_from_all_taken_pids(taken: set[int]) -> None:
    pid = free_span(taken, COMMON_PID_MAX)
    assert RESERVED < pid < COMMON_PID_MAX - SPAN
    assert not taken & set(range(pid, pid + SPAN))


def test_no_room_for_the_worker_is_an_error() -> None:
    with pytest.raises(CellError, match="free pids"):
        free_span(set(range(0, 2000, 100)), 2000)
