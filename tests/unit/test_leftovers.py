"""The check that a test run leaves nothing behind, checked itself."""

from __future__ import annotations

import os
import subprocess

from tests.leftovers import MARK, Snapshot, leftovers

NOTHING: frozenset[str] = frozenset()


def test_what_is_new_is_named_by_kind() -> None:
    before = Snapshot(frozenset({"/ (ext4)"}), frozenset({"lo"}), NOTHING, NOTHING, NOTHING)
    after = Snapshot(frozenset({"/ (ext4)", "/mnt (tmpfs)"}), frozenset({"lo", "veth0"}), NOTHING, frozenset({"/cg/mig-x"}), NOTHING)
    assert after.new_since(before) == ["mount: /mnt (tmpfs)", "interface: veth0", "cgroup: /cg/mig-x"]
    assert before.new_since(after) == []


def test_a_lab_that_ran_before_may_go_on() -> None:
    before = Snapshot(NOTHING, NOTHING, NOTHING, frozenset({"/cg/moslab-old"}), frozenset({"old"}))
    inside = frozenset({"/cg/moslab-old", "/cg/moslab-old/n1/mig-cell-1"})
    after = Snapshot(frozenset({"/run/moslab/old/n1 (overlay)"}), NOTHING, NOTHING, inside, frozenset({"old"}))
    assert after.new_since(before) == []


def test_a_process_of_this_run_is_seen_while_it_lives() -> None:
    with subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, start_new_session=True) as p:
        try:
            processes, _ = leftovers(Snapshot.take(), patience=0)
        finally:
            p.kill()
    assert f"process {p.pid}: sleep 60 " in processes
    assert all(f"process {os.getpid()}:" not in line for line in processes)
    assert MARK in os.environ
