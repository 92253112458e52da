"""Programs whose memory is still arriving, or that change it without a break, over many moves; real programs with their results."""

from __future__ import annotations

import itertools
import os
import random
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mig.memory.ladder import MODES
from tests.cluster.helpers import GUESTS, migrate
from tests.cluster.test_moves import Start, Told, start

__all__ = ["start"]


def test_a_program_that_changes_its_memory_all_the_time(lab: Any, start: Start) -> None:
    t = start("churn", "-m", "48", "-t", "3", "-p", "300", "-f", "/var/tmp/g/mapped")
    for to, mode in (("n2", "pre-copy"), ("n3", "post-copy"), ("home", "pre-copy")):
        result = migrate(lab, t.pid, to, timeout=60, mode=mode)
        assert result["mode"] in (mode, "post-copy")  # under load a thread may not come to a stop: then nothing goes before the freeze
    assert t.ask("all", "all", 60).endswith("wrong=0")
    t.end(9)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("moves", "options"), [(400, ["-t", "3", "-p", "300"]), (100, ["-t", "8", "-b", "100", "-p", "2000"])], ids=["quick", "wide"]
)
def test_five_hundred_moves_over_all_rungs(
    lab: Any, start: Start, moves: int, options: list[str], record_property: Callable[[str, object], None]
) -> None:
    """Three threads that change their memory quickly; eight with 100 MiB scattered over 8 GiB.  ``MOVES=N-M``: only this part of them."""
    first, _, last = os.environ.get("MOVES", f"1-{moves}").partition("-")
    chance = random.Random(int(first) * 1000 + moves)
    t = start("churn", "-m", "64", *options, "-f", "/var/tmp/g/mapped")
    modes: Counter[str] = Counter()
    pauses = []
    for i, to in zip(range(int(first), int(last) + 1), itertools.cycle(["n2", "n3", "home"]), strict=False):
        result = migrate(lab, t.pid, to, timeout=120, mode=chance.choice(MODES))
        modes[result["mode"]] += 1
        pauses.append(result["pause_ms"])
        if i % 10 == 0:
            assert t.ask("all", "all", 60).endswith("wrong=0")
            print(
                f"{i} moves, {dict(modes)}, pause median {sorted(pauses)[len(pauses) // 2]:.0f} ms, {t.ask('count', 'count')}", flush=True
            )
    assert t.ask("all", "all", 60).endswith("wrong=0")
    t.end(9)
    record_property("moves", f"{moves}: {dict(modes)}")


HEAP = """
import hashlib, os, sys, time
n = int(sys.argv[1])
data = [{"id": i, "name": "user %d" % i, "tags": [str(i * 7)], "v": i * 1.5, "b": os.urandom(16)} for i in range(n)]
def check():
    h = hashlib.sha256()
    for d in data: h.update(b"%d %s %s" % (d["id"], d["name"].encode(), d["b"]))
    return h.hexdigest()
first = check()
print("00000000 ready", flush=True)
for line in sys.stdin:
    print("00000001 good" if check() == first else "00000001 ERROR", flush=True)
"""
SQLITE = """
import sqlite3, sys, threading
db = sqlite3.connect("/var/tmp/g/db", isolation_level=None)
db.execute("pragma journal_mode=wal"); db.execute("create table t (id integer primary key, v integer)")
print("00000000 ready", flush=True)
n, stop = 0, []
threading.Thread(target=lambda: [stop.append(line) for line in sys.stdin], daemon=True).start()
while not stop:
    db.execute("begin"); db.executemany("insert into t (v) values (?)", [(n + k,) for k in range(50)]); db.execute("commit")
    n += 50
ok = db.execute("pragma integrity_check").fetchone()[0], db.execute("select count(*), sum(v) from t").fetchone()
print("00000001 good" if ok == ("ok", (n, n * (n - 1) // 2)) else "00000001 ERROR %r" % (ok,), flush=True)
"""
REDIS = """
import hashlib, os, random, socket, subprocess, sys, threading, time
NAME = "/var/tmp/g/redis.sock"
server = subprocess.Popen(["/var/tmp/g/redis-server", "--port", "0", "--unixsocket", NAME, "--dir", "/var/tmp/g", "--save", ""],
                          stdout=subprocess.DEVNULL)
while not os.path.exists(NAME): time.sleep(0.05)
class Client:
    def __init__(self):
        self.sock = socket.socket(socket.AF_UNIX); self.sock.connect(NAME); self.file = self.sock.makefile("rb")
    def __call__(self, *words):
        self.sock.sendall(b"*%d\\r\\n" % len(words) + b"".join(b"$%d\\r\\n%s\\r\\n" % (len(w), w) for w in words))
        head = self.file.readline()
        assert head[:1] != b"-", head
        return self.file.read(int(head[1:]) + 2)[:-2] if head[:1] == b"$" and head != b"$-1\\r\\n" else head[1:-2]
def value(key, version): return hashlib.sha256(b"%d %d" % (key, version)).digest() * 64
COUNT, wrong, stop = int(sys.argv[1]), 0, []
versions, first = [0] * COUNT, Client()
for i in range(COUNT): first(b"SET", b"%d" % i, value(i, 0))
print("00000000 ready", flush=True)
threading.Thread(target=lambda: [stop.append(line) for line in sys.stdin], daemon=True).start()
turns = 0
while not stop:
    turns += 1
    client = Client() if turns % 50 == 0 else first  # new connections too, and a snapshot by a child now and then
    if turns % 20000 == 0 and b"rdb_bgsave_in_progress:0" in first(b"INFO", b"persistence"): first(b"BGSAVE")
    k = random.randrange(COUNT)
    wrong += client(b"GET", b"%d" % k) != value(k, versions[k])
    versions[k] += 1
    client(b"SET", b"%d" % k, value(k, versions[k]))
wrong += sum(first(b"GET", b"%d" % k) != value(k, versions[k]) for k in range(COUNT))
print("00000001 good %d" % turns if not wrong else "00000001 ERROR %d wrong" % wrong, flush=True)
server.kill(); server.wait()
"""


def redis(lab: Any) -> list[str]:
    """The server, which also is in Debian's package of tools (the other one starts a service), and a client in one tree."""
    program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    assert program, "redis-server is missing: make soak installs it"
    lab.run("n1", f"rm -rf /var/tmp/g; install -d -m 777 /var/tmp/g; ln -s {program} /var/tmp/g/redis-server", check=True)
    return ["mosrun", "-S", "python3", "-c", REDIS, os.environ.get("REDIS_KEYS", "100000")]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_redis_serves_its_own_tree_over_ten_moves(lab: Any) -> None:
    """200 MB of data, old and new connections, snapshots by a child: every value is the last one that was set."""
    t = Told(lab, redis(lab), start=120)
    try:
        for to in itertools.islice(itertools.cycle(["n2", "n3", "home"]), 10):
            migrate(lab, t.pid, to, timeout=120)
            time.sleep(1)
        assert int(t.ask("?", "good", 120).split()[1]) > 1000
    finally:
        t.close()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("script", "args"), [(HEAP, [os.environ.get("HEAP_OBJECTS", "1500000")]), (SQLITE, [])], ids=["Python heap", "SQLite under writes"]
)
def test_real_programs_are_right_after_ten_moves(lab: Any, script: str, args: list[str]) -> None:
    lab.run("n1", "rm -rf /var/tmp/g; install -d -m 777 /var/tmp/g", check=True)
    t = Told(lab, ["python3", "-c", script, *args], start=120)
    try:
        for to in itertools.islice(itertools.cycle(["n2", "n3", "home"]), 10):
            migrate(lab, t.pid, to, timeout=120)
        assert t.ask("?", "good", 120) == "good"
    finally:
        t.close()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_xz_with_threads(lab: Any) -> None:
    lab.run("n1", "install -d -m 777 /var/tmp/g; cat /usr/lib/x86_64-linux-gnu/*.so* | head -c 120000000 > /var/tmp/g/in", check=True)
    pid = lab.spawn("n1", ["sh", "-c", "exec xz -T2 -9 -k -f /var/tmp/g/in"])
    for to in itertools.islice(itertools.cycle(["n2", "n3", "home"]), 10):
        if lab.run("n1", f"kill -0 {pid}").returncode:
            break
        migrate(lab, pid, to, timeout=120)
    lab.wait_for(lambda: lab.run("n1", f"kill -0 {pid}").returncode != 0, what="the end of xz", timeout=600)
    assert lab.run("n1", "xz -dc /var/tmp/g/in.xz | cmp - /var/tmp/g/in", timeout=300).returncode == 0


SCENE = """
#version 3.7;
global_settings { assumed_gamma 1 radiosity { count 40 } }
camera { location <0, 3, -8> look_at 0 aperture 0.3 blur_samples 12 focal_point <0, 0, 0> }
light_source { <8, 12, -8>, 1 area_light <2, 0, 0>, <0, 0, 2>, 5, 5 adaptive 1 jitter }
plane { y, -1 pigment { checker rgb 1, rgb <0.2, 0.3, 0.5> } finish { reflection 0.2 } }
#declare R = seed(4711);
#for (I, 1, 3000)
  sphere { <rand(R) * 12 - 6, rand(R) * 3 - 1, rand(R) * 12 - 4>, 0.12
    pigment { rgb <rand(R), rand(R), rand(R)> } finish { specular 0.6 reflection 0.1 } }
#end
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_povray_makes_the_same_picture(lab: Any) -> None:
    """Rendered once in one place, once over ten moves, by one thread: the order of several changes what radiosity finds."""

    def render(out: str, height: int) -> list[str]:
        scene = ["+I/var/tmp/g/scene.pov", f"+O/var/tmp/g/{out}.ppm", f"+W{height * 4 // 3}", f"+H{height}"]
        return ["povray", *scene, "+FP", "+WT1", "-D", "-GA"]

    lab.run("n1", "rm -rf /var/tmp/g; install -d -m 777 /var/tmp/g", check=True)
    lab.path("n1", "/var/tmp/g/scene.pov").write_text(SCENE)
    began = time.monotonic()
    lab.run("n1", render("probe", 48), check=True, timeout=300)
    height = 4 * int(12 * max(1.0, (120 / (time.monotonic() - began)) ** 0.5))
    pid = lab.spawn("n1", ["sh", "-c", f"exec {shlex.join(render('moved', height))} 2> /var/tmp/g/said"])
    for to in itertools.islice(itertools.cycle(["n2", "n3", "home"]), 10):
        assert lab.run("n1", f"kill -0 {pid}").returncode == 0, lab.path("n1", "/var/tmp/g/said").read_text()[-500:]
        migrate(lab, pid, to, timeout=120)
    lab.wait_for(lambda: lab.run("n1", f"kill -0 {pid}").returncode != 0, what="the end of povray", timeout=900)
    lab.run("n1", render("stayed", height), check=True, timeout=900)
    size = height * 4 // 3 * height * 3  # the head before it tells the date
    moved, stayed = (lab.path("n1", f"/var/tmp/g/{name}.ppm").read_bytes()[-size:] for name in ("moved", "stayed"))
    assert len(set(stayed)) > 50, "there is a picture"
    assert moved == stayed


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_java_machine(lab: Any, tmp_path: Path) -> None:
    """Its collector moves objects all the time, compiled code comes and goes, and it has a dozen threads of its own."""
    lab.run("n1", "rm -rf /var/tmp/g; install -d -m 777 /var/tmp/g", check=True)
    subprocess.run(["javac", "-d", str(tmp_path), str(GUESTS / "Check.java")], check=True)
    for f in tmp_path.glob("*.class"):
        shutil.copy(f, lab.path("n1", "/var/tmp/g"))
    t = Told(lab, ["java", "-Xmx600m", "-cp", "/var/tmp/g", "Check", "200"], start=120)
    try:
        before = 0
        for to in itertools.islice(itertools.cycle(["n2", "n3", "home"]), 10):
            migrate(lab, t.pid, to, timeout=120)
            replaced = int(t.ask("?", "good", 120).partition("=")[2])
            assert replaced > before, "its threads go on"
            before = replaced
    finally:
        t.close()
