"""What happened anywhere in the pool is seen from any node, and a move's number finds it in the logs of its nodes."""

from __future__ import annotations

import json
from typing import Any

from tests.cluster.helpers import migrate


def test_a_move_is_seen_from_another_node_and_its_number_is_in_the_logs(lab: Any) -> None:
    pid = lab.spawn("n1", ["sleep", "1000"])
    migrate(lab, pid, "n2")
    said = lab.run("n3", ["mosctl", "events", "--pool", "--json"], check=True).stdout
    (move,) = [e for e in map(json.loads, said.splitlines()) if e["kind"] == "move" and e["pid"] == pid]
    assert (move["node"], move["from"], move["to"], move["outcome"]) == ("n1", "n1", "n2", "arrived")
    assert all(e["node"] == "n3" for e in map(json.loads, said.splitlines()) if e["kind"] == "node")

    def lines(node: str, files: str) -> list[str]:
        return str(lab.run(node, ["sh", "-c", f"grep -h '{move['mid']}' {files}"], check=True).stdout).splitlines()

    (daemon,) = lines("n1", "/run/moslab/omdiscd.log")
    assert f"process {pid} (sleep) n1 -> n2 arrived, pause_ms=" in daemon
    assert [w for line in lines("n1", "/run/mig/log/agent-*.log") for w in ("freeze", "restore", "go") if line.endswith(f"step {w}")] == [
        "freeze", "restore", "go",
    ]  # fmt: skip
    (keeper,) = lines("n2", "/run/moslab/omdiscd.log")
    assert "prepares for process" in keeper


def test_a_node_that_does_not_answer_is_named(lab: Any) -> None:
    lab.cut("n3")
    try:
        done = lab.run("n1", ["mosctl", "events", "--pool"], check=True)
        assert "no answer from n3" in done.stderr
    finally:
        lab.heal("n3")
