"""Shares by age where the cpu controller is cgroup v2's.  Only the layout of files: a machine with a v1 cpu controller cannot have both."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from omdiscd import shares
from omdiscd.shares import PREFIX, Shares, Wanted


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hierarchy whose root is ``tmp_path``; a new directory has the files that the kernel makes."""
    plain = Path.mkdir

    def mkdir(self: Path, *args: int, **kwargs: bool) -> None:
        plain(self, *args, **kwargs)
        (self / "cgroup.procs").touch()
        (self / "cgroup.subtree_control").touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(shares.cgroup, "root", lambda: tmp_path)
    monkeypatch.setattr(shares, "own_cgroup", lambda controller: None)
    monkeypatch.setattr(shares, "_v1_root", lambda: None)
    return tmp_path


def make(tree: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> Shares:
    monkeypatch.setattr(shares.cgroup, "of", lambda pid: own)
    return Shares(*(SimpleNamespace() for _ in range(3)))  # type: ignore[arg-type]  # apply asks nothing of them


def test_an_old_job_gets_a_group_beside_its_own(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tree / "user" / "session"
    own.mkdir(parents=True)
    (own.parent / "cgroup.subtree_control").touch()
    me, group = os.getpid(), own.parent / f"{PREFIX}{os.getpid()}"
    x = make(tree, own, monkeypatch)
    monkeypatch.setattr(os, "getpriority", lambda which, who: 0)
    x.apply([Wanted(me, (me,), 0.25, guest=False)])
    assert (own.parent / "cgroup.subtree_control").read_text() == "+cpu"
    assert (group / "cpu.weight").read_text() == "25" and (group / "cgroup.procs").read_text() == str(me)
    monkeypatch.setattr(shares.cgroup, "of", lambda pid: group)
    x.apply([Wanted(me, (me,), 0.02, guest=False)])
    assert (group / "cpu.weight").read_text() == "2" and len(list(own.parent.glob(f"{PREFIX}*"))) == 1, "in its group it stays"


def test_the_root_s_processes_and_those_about_to_move_are_left(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.getpid()
    make(tree, tree, monkeypatch).apply([Wanted(me, (me,), 0.25, guest=False)])
    make(tree, tree / "mig-P17", monkeypatch).apply([Wanted(me, (me,), 0.25, guest=False)])
    assert not list(tree.iterdir())


def test_a_guest_s_cell_has_the_weight_and_one_of_idle_priority_none(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me, cell = os.getpid(), tree / "mig-cell-1"
    cell.mkdir()
    (cell / "cpu.idle").write_text("0")
    x = make(tree, cell / "guest", monkeypatch)
    monkeypatch.setattr(os, "getpriority", lambda which, who: 0)
    x.guest_weight = lambda count: 40.0 / count
    x.apply([Wanted(me, (me,), 0.5, guest=True)])
    assert (cell / "cpu.weight").read_text() == "20"
    (cell / "cpu.idle").write_text("1")
    x.apply([Wanted(me, (me,), 0.1, guest=True)])
    assert (cell / "cpu.weight").read_text() == "20"
