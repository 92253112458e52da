"""The economy with real processes: spreading, standing still, memory, starts, shares by age, and what is told of it.

No time is asserted but those that the tests of a balancer cannot do without: generous ones, in which something must have happened.
"""

from __future__ import annotations

import collections
import json
import re
import time
from typing import Any

import pytest

from .helpers import where

AWK = "BEGIN {for(i=0;i<1000000;i++)for(j=0;j<10000;j++);}"
MEMORY = "import sys, time; x = b'1' * (int(sys.argv[1]) << 20); time.sleep(600)"


def events(lab: Any, kind: str, node: str = "n1") -> list[dict[str, Any]]:
    lines = lab.run(node, "mosctl events --json", check=True).stdout.splitlines()
    return [e for e in map(json.loads, lines) if e["kind"] == kind]


def spread(lab: Any, jobs: list[int]) -> list[int]:
    """How many of n1's jobs run on each of the three nodes."""
    rows = json.loads(lab.run("n1", "mosps -a --json", check=True).stdout)
    at = collections.Counter(r["where"] for r in rows if r["pid"] in jobs and r["home"] == "n1" and r["state"] == "running")
    return [at[n.name] for n in lab.lab.nodes]


def test_ten_loops_on_one_of_three_nodes_end_up_three_three_four(lab: Any) -> None:
    before = {k: len(events(lab, k)) for k in ("move", "balance")}
    jobs = [lab.spawn("n1", ["mosrun", "awk", AWK]) for _ in range(10)]
    lab.wait_for(lambda: sum(s := spread(lab, jobs)) == 10 and max(s) - min(s) <= 1, timeout=150, what="3-3-4")
    told = events(lab, "balance")[before["balance"] :]
    moved = [e for e in events(lab, "move")[before["move"] :] if e["outcome"] == "arrived"]
    assert max(collections.Counter(e["pid"] for e in moved).values()) <= 3
    for m in moved:
        (b, *_) = [e for e in told if (e["pid"], e["to"]) == (m["pid"], m["to"])]
        assert b["pays"] and b["gain_s"] > 0 and b["saved"] > b["added"] * (1 + b["epsilon"])
        said = re.search(r"saves ([\d.]+),", m["reason"])
        assert said and float(said[1]) == pytest.approx(b["saved"], abs=0.011) and b["reason"] == m["reason"]
    assert "balance " in lab.run("n1", "mosctl status", check=True).stdout.splitlines()[-1]
    stays = next(p for p in jobs if where(lab, p) in ("", "n1"))
    why = lab.run("n1", f"COLUMNS=80 mosctl why {stays}", check=True).stdout
    assert max(map(len, why.splitlines())) <= 80 and "more expected" in why and "VERDICT" in why, why


def test_a_guest_s_host_explains_it_too(lab: Any) -> None:
    job = lab.spawn("n1", ["mosrun", "-N", "n2", "awk", AWK])
    lab.wait_for(lambda: where(lab, job) == "n2", what="the job on n2")
    assert "runs on n2; the balancer there decides" in lab.run("n1", f"mosctl why {job}", check=True).stdout

    def on_n2() -> Any:  # its host's own row appears with the host's next look
        return [r for r in json.loads(lab.run("n2", "mosps -a --json", check=True).stdout) if r["pid"] == job]

    (guest,) = lab.wait_for(on_n2, what="n2's own row of its guest")
    print(guest)


def test_who_was_moved_by_hand_is_left_alone_for_a_while(lab: Any) -> None:
    job = lab.spawn("n1", ["mosrun", "awk", AWK])

    def why_on(node: str) -> str:
        r = lab.run(node, "mosctl why $(pgrep -x awk)")
        return str(r.stdout)

    lab.wait_for(lambda: lab.run("n1", "pgrep -x awk").returncode == 0, what="its start")
    lab.run("n1", f"migrate {job} n3", check=True)
    lab.wait_for(lambda: "moved here by hand: left alone for" in why_on("n3"), what="n3 leaves it alone")
    lab.run("n1", f"migrate --free {job} n2", check=True)
    told = lab.wait_for(lambda: (w := why_on("n2")) and "a moment ago" not in w and w, what="n2 has nothing against moving it")
    assert "by hand" not in told


def test_short_of_memory_a_node_sends_its_smallest_sufficient_process_away(own_lab: Any) -> None:
    # a machine with much else to do fills their memory slowly: that must not be worth a move by itself
    lab = own_lab("--set", "mem_total=1500000000", "--set", "mem_reserve=100000000", "--set", "epsilon_home=100", nodes=2)
    sizes = {lab.spawn("n1", ["mosrun", "python3", "-c", MEMORY, str(mb)]): mb for mb in (620, 160, 320)}
    time.sleep(3)
    assert not events(lab, "balance"), "there is room"
    more = lab.spawn("n1", ["python3", "-c", MEMORY, "260"])  # no job: it stays, and makes memory short
    lab.wait_for(lambda: events(lab, "balance"), timeout=60, what="a decision")
    first = events(lab, "balance")[0]
    assert first["why"] == "memory" and "short of memory" in first["reason"] and sizes[first["pid"]] == 160, (first, more)
    lab.wait_for(lambda: where(lab, first["pid"]) == "n2", timeout=60, what="it is on n2")


SOURCE = "int f{0}(int x) {{ int y = {0}; for (int i = 0; i < x; i++) y = y * 31 + i; return y; }}\n"


def test_make_with_mosrun_as_its_compiler(lab: Any) -> None:
    """``make -j6 CC="mosrun -b cc"``: objects are at home, the program works, and not everything was compiled at home."""
    work = lab.path("n1", "/root/project")
    work.mkdir()
    for i in range(6):
        (work / f"f{i}.c").write_text(SOURCE.format(i))
    calls = " + ".join(f"f{i}(9)" for i in range(6))
    declared = "".join(f"int f{i}(int);" for i in range(6))
    (work / "main.c").write_text(f'{declared}\n#include <stdio.h>\nint main(void) {{ printf("%d\\n", {calls}); return 0; }}\n')
    objects = "main.o " + " ".join(f"f{i}.o" for i in range(6))
    (work / "Makefile").write_text(f"sum: {objects}\n\tcc -o $@ {objects}\n")
    before = len(events(lab, "move"))
    done = lab.run("n1", 'cd /root/project && make -j6 CC="mosrun -b cc" && ./sum', timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    plain = lab.run("n1", "cd /root/project && rm *.o sum && make -s && ./sum", check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == plain.stdout.splitlines()[-1]
    targets = {e["to"] for e in events(lab, "move")[before:] if e["outcome"] == "arrived"}
    assert targets & {"n2", "n3"}, "all were compiled at home"


def test_gnu_parallel_through_mosrun(lab: Any) -> None:
    before = len(events(lab, "move"))
    line = "seq 6 | parallel -u -q -j6 mosrun -b awk 'BEGIN{for(i=0;i<3000000;i++);print {}*{}}'"
    done = lab.run("n1", line, timeout=150)
    assert sorted(map(int, done.stdout.split())) == [1, 4, 9, 16, 25, 36], done.stderr
    assert {e["to"] for e in events(lab, "move")[before:]} == {"n2", "n3"}


def test_switches_and_speed(lab: Any) -> None:
    lab.run("n1", "mosctl setspeed 2.5", check=True)
    assert lab.run("n1", "mosctl getspeed", check=True).stdout == "2.50\n"
    lab.run("n1", "mosctl stay && mosctl lstay", check=True)
    lab.restart_daemon("n1")
    assert lab.run("n1", "mosctl getspeed", check=True).stdout == "2.50\n", "kept over a restart"
    assert lab.run("n1", "mosctl status", check=True).stdout.splitlines()[-1].endswith("here: stay, lstay")
    job = lab.spawn("n1", ["mosrun", "awk", AWK])
    assert "this node lets nothing go" in lab.run("n1", f"sleep 2; mosctl why {job}", check=True).stdout
    for bad in ("-1", "nan", "1e9"):
        r = lab.run("n1", f"mosctl setspeed -- {bad}")
        assert r.returncode == 2 and "speed" in r.stderr, r.stderr
    assert lab.run("n1", "mosctl stay", uid=1000).returncode == 6
    lab.run("n1", f"mosctl mask {job} n3 && mosctl nostay && mosctl nolstay && mosctl setspeed 0", check=True)
    other = lab.spawn("n1", ["mosrun", "awk", AWK])
    lab.run("n1", f"mosctl lock {other}", check=True)
    lab.wait_for(lambda: where(lab, job) == "n3", timeout=60, what="where its mask lets it go")
    assert lab.run("n1", f"mosctl mask {job} n9").returncode == 2


PINNED = ("taskset", "-c", "0")
"""On several CPUs three processes may sit so that the old one has a CPU for itself."""


def cpu(lab: Any, pid: int) -> float:
    """CPU seconds of a process of n1."""
    f = lab.path("n1", f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(f[11]) + int(f[12])) / 100


def test_the_young_get_more_of_the_cpu_than_the_old(own_lab: Any) -> None:
    lab = own_lab("--set", "auto=none", nodes=1)
    old = lab.spawn("n1", ["mosrun", *PINNED, "awk", AWK])
    owner = lab.spawn("n1", [*PINNED, "awk", AWK])
    lab.wait_for(lambda: cpu(lab, old) > 6, timeout=150, what="6 s of CPU")
    young, t = lab.spawn("n1", ["mosrun", *PINNED, "awk", AWK]), time.monotonic()
    lab.wait_for(lambda: time.monotonic() - t > 3, what="its group")
    before = {p: cpu(lab, p) for p in (old, owner, young)}
    lab.wait_for(lambda: cpu(lab, young) - before[young] > 1.5, timeout=100, what="the young one works")
    used = {p: cpu(lab, p) - before[p] for p in before}
    # also where this test itself runs with a nice value, which its processes inherit and a group does not
    assert used[young] > 1.3 * used[old], used
    assert used[owner] > 1.3 * used[old], "the owner's own process does not stand back"
    assert "mig-age" not in lab.path("n1", f"/proc/{owner}/cgroup").read_text()
    assert f"mig-age-{old}" in lab.path("n1", f"/proc/{old}/cgroup").read_text()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_nothing_moves_in_a_balanced_pool_for_five_minutes(lab: Any) -> None:
    jobs = [lab.spawn("n1", ["mosrun", "awk", AWK]) for _ in range(6)]
    lab.wait_for(lambda: spread(lab, jobs) == [2, 2, 2], timeout=150, what="2-2-2")
    time.sleep(10)
    before = {n.name: len(events(lab, "balance", n.name)) for n in lab.lab.nodes}
    time.sleep(300)
    assert {n.name: len(events(lab, "balance", n.name)) for n in lab.lab.nodes} == before
    assert spread(lab, jobs) == [2, 2, 2]


@pytest.mark.long
def test_unequal_nodes_get_in_proportion(own_lab: Any) -> None:
    lab = own_lab("--speed", "n2=0.5", "--speed", "n3=0.25")
    jobs = [lab.spawn("n1", ["mosrun", "awk", AWK]) for _ in range(14)]
    lab.wait_for(lambda: (s := spread(lab, jobs)) and sum(s) == 14 and abs(s[0] - 8) <= 1 and abs(s[1] - 4) <= 1, timeout=170, what="8-4-2")
