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
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
        assert p.stdin is not None and p.stdout is not None
        p.stdin.write(b"x")
        p.stdin.flush()
        assert p.stdout.read(1) == b"x", "it runs: in the middle of its exec it has no environment"
        processes, _ = leftovers(Snapshot.take(), patience=0)
        p.stdin.close()
    assert f"process {p.pid}: cat " in processes
    assert all(f"process {os.getpid()}:" not in line for line in processes)
    assert MARK in os.environ
