"""Jobs of mosrun: placed before their first instruction, balanced while they run, and like any other program for whoever started them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .helpers import servant, where

MOSRUN = str(Path(sys.prefix) / "bin" / "mosrun")

LOOP = "while True: pass"


def moves(lab: Any) -> list[dict[str, Any]]:
    """The moves that n1 knows of."""
    events = lab.run("n1", "mosctl events --json", check=True).stdout.splitlines()
    return [e for e in map(json.loads, events) if e["kind"] == "move"]


def test_a_job_for_a_node_runs_there_and_its_pipes_and_status_are_home_s(lab: Any) -> None:
    before = len(moves(lab))
    squares = "while read x; do echo $((x * x)); done; sleep 1; exit 37"
    done = lab.run("n1", f"seq 5 | mosrun -N n2 sh -c '{squares}' | cat; echo ${{PIPESTATUS[*]}}")
    assert done.stdout.split() == ["1", "4", "9", "16", "25", "0", "37", "0"], done.stderr
    lab.wait_for(lambda: len(moves(lab)) > before, what="the event of the move")
    (move,) = moves(lab)[before:]
    assert (move["from"], move["to"], move["outcome"]) == ("n1", "n2", "arrived")


def test_the_best_node_for_a_job_is_not_the_busy_one(lab: Any) -> None:
    for _ in range(3):
        lab.spawn("n1", ["mosrun", "-h", "-L", "python3", "-c", LOOP])

    def loaded() -> bool:
        nodes = json.loads(lab.run("n1", "mosctl status --json", check=True).stdout)
        return any(n["name"] == "n1" and n["load"] > 1.5 for n in nodes)

    lab.wait_for(loaded, what="n1 is loaded")
    job = lab.spawn("n1", ["mosrun", "-b", "python3", "-c", LOOP])
    lab.wait_for(lambda: where(lab, job) in ("n2", "n3"), what="the job is placed")


def test_one_that_was_moved_before_its_mosrun_asked_is_a_job_all_the_same(lab: Any) -> None:
    """`mosrun CMD & migrate $! n2`: mosrun would end with an error, and CMD never start."""
    pid = lab.spawn("n1", ["python3", "-c", LOOP])
    lab.run("n1", f"migrate {pid} n2", check=True)

    def ask(flags: str) -> Any:
        code = f"from omtools.client import Client; print(Client().call('job', pid={pid}, flags={{{flags}}})['hold'])"
        return lab.run("n1", [sys.executable, "-c", code])

    refused = ask("'nodes': ['n3']")
    assert refused.returncode and "was moved by another order before it had asked for its nodes" in refused.stderr
    assert ask("'best': True, 'locked': True").stdout.strip() == "False"
    rows = json.loads(lab.run("n1", "mosps --json", check=True).stdout)
    assert [r["locked"] for r in rows if r["pid"] == pid] == [True]


def test_in_a_job_that_was_moved(lab: Any) -> None:
    """A script may call it wherever it runs; what it starts is part of the job."""
    with servant(lab, 1000) as s:
        for to in ("n2", "home"):
            s.move(to)

            def run(*words: str) -> tuple[int, str, str]:
                said = s.ask(f"(lambda r: (r.returncode, r.stdout, r.stderr))(subprocess.run({words!r}, capture_output=True, text=True))")
                return tuple(said)

            assert run(MOSRUN, "-S", "echo", "it") == (0, "it\n", "")
            assert run(MOSRUN, "-qb", "echo", "it") == (0, "it\n", "")
            for option in ("-b", "-h", "-L"):
                status, out, said = run(MOSRUN, option, "echo", "it")
                assert (status, out) == (0, "it\n") and "echo goes where that goes" in said, said
            for option in ("-Nn3", "-jn3"):
                status, out, said = run(MOSRUN, option, "echo", "it")
                assert (status, out) == (2, "") and "echo was not started" in said, said
        s.move("n3")
        status, out, said = run(MOSRUN.replace("mosrun", "migrate"), "1", "n2")
        assert status == 7 and "part of a job that was moved to another machine" in said, said


def test_the_balancer_spreads_jobs_and_leaves_others_alone(lab: Any) -> None:
    mine = [lab.spawn("n1", ["mosrun", "python3", "-c", LOOP]) for _ in range(3)]
    others = lab.spawn("n1", ["python3", "-c", LOOP])
    lab.wait_for(lambda: len({where(lab, p) for p in mine} - {"n1"}) == 2, timeout=60, what="a job on n2 and one on n3")
    assert where(lab, others) in ("", "n1"), "auto = mosrun: what mosrun did not start stays"


def test_balance_moves_to_where_it_runs_best_and_a_lock_holds(lab: Any) -> None:
    jobs = [lab.spawn("n1", ["python3", "-c", LOOP]) for _ in range(2)]

    def best() -> str:
        r = lab.run("n1", f"migrate --json {jobs[0]} balance")
        return str(json.loads(r.stdout)["to"]) if r.returncode == 0 else ""

    lab.wait_for(lambda: best() in ("n2", "n3"), what="another node is better")
    assert where(lab, jobs[0]) in ("n2", "n3")
    lab.run("n1", f"mosctl lock {jobs[0]}", check=True)
    rows = json.loads(lab.run("n1", "mosps --json", check=True).stdout)
    assert [r["locked"] for r in rows if r["pid"] == jobs[0]] == [True]
