"""What the tools print and with which status they end, with a daemon that answers from a list."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from typing import Any, Self

import pytest
from omtools import client, doctor, migrate, mosctl, mosps, output

from mig.errors import BadInput, CannotMove, MoveFailed, NoDaemon, NotPermitted, OutcomeUnknown

NODE = {
    "id": 257, "name": "n1", "addr": "10.0.0.1", "port": 7230, "state": "alive", "speed": 1.0, "cpus": 2.0, "load": 0.5,
    "mem_total": 4 << 30, "mem_free": 1 << 30, "guests": 0, "accepting": True, "why_not": "", "age_s": 0.2, "version": "0.1.0", "boot": "x",
}  # fmt: skip
OTHER = NODE | {"id": 258, "name": "n2", "addr": "10.0.0.2", "state": "dead", "accepting": False, "why_not": "blocked", "load": 1.25}
MOVED = {"pid": 42, "from": "n1", "to": "n2", "pause_ms": 45.4, "total_ms": 1250.0, "bytes": 3 << 20, "rounds": 1, "mode": "full"}
GUEST = {"role": "agent", "pid": 42, "home": "n1", "where": "n2", "state": "running", "nmigs": 2, "locked": True, "cpu_s": 75.0,
         "rss": 5 << 20, "uid": 0, "comm": "awk", "cantmove": [], "helper": 7}  # fmt: skip

Captured = pytest.CaptureFixture[str]


class Daemon:
    """Stands in for :class:`omtools.client.Client`: ``replies`` are items, then the answer, or an error to raise."""

    replies: list[dict[str, Any] | Exception | None] = []
    asked: list[tuple[str, dict[str, Any]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, op: str, *, wait: float = 0, **args: Any) -> dict[str, Any]:
        return [r for r in self.stream(op, **args) if r][-1]

    def stream(self, op: str, *, wait: float | None = None, tick: float | None = None, **args: Any) -> Iterator[dict[str, Any] | None]:
        self.asked.append((op, args))
        for n, r in enumerate(self.replies):
            if isinstance(r, Exception):
                raise r
            yield r if r is None else {"ok": True, "more": n < len(self.replies) - 1} | r


@pytest.fixture(autouse=True)
def daemon(monkeypatch: pytest.MonkeyPatch) -> type[Daemon]:
    monkeypatch.setattr(client, "Client", Daemon)
    monkeypatch.setattr(Daemon, "asked", [])
    monkeypatch.setattr(Daemon, "replies", [])
    return Daemon


# -- migrate ----------------------------------------------------------------------------------------------------------------------


def test_migrate_says_what_it_did(daemon: type[Daemon], capsys: Captured) -> None:
    daemon.replies = [{"step": "dump", "text": "dumping"}, None, {"result": MOVED}]
    assert migrate.main(["42", "n2"]) == 0
    assert capsys.readouterr().out == "42 moved from n1 to n2, paused 45 ms, 1.2 s in all, 3.0M sent\n"
    assert daemon.asked == [("migrate", {"pid": 42, "to": "n2", "dry_run": False})]


def test_migrate_json_has_the_documented_keys(daemon: type[Daemon], capsys: Captured) -> None:
    daemon.replies = [{"result": MOVED}]
    assert migrate.main(["42", "n2", "--json", "--timeout", "5"]) == 0
    assert json.loads(capsys.readouterr().out) == MOVED
    assert daemon.asked[0][1]["timeout"] == 5.0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadInput("no process 42"), 2),
        (CannotMove("no", reasons=["a TCP socket", "a device"], hint="do this"), 3),
        (MoveFailed("rolled back"), 4),
        (OutcomeUnknown("frozen"), 5),
        (NotPermitted("not yours"), 6),
        (NoDaemon("none"), 7),
    ],
)
def test_migrate_ends_with_the_status_of_the_error(daemon: type[Daemon], capsys: Captured, error: Any, status: int) -> None:
    daemon.replies = [error]
    assert migrate.main(["42", "n2", "--json"]) == status
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"migrate: {error.message}", *error.lines()[1:]]
    assert json.loads(out)["error"]["code"] == error.code


@pytest.mark.parametrize("argv", [["0", "n2"], ["-5", "n2"], ["42", "n2", "--timeout", "0"]])
def test_migrate_asks_nobody_about_nonsense(daemon: type[Daemon], capsys: Captured, argv: list[str]) -> None:
    try:
        assert migrate.main(argv) == 2
    except SystemExit as e:
        assert e.code == 2
    assert daemon.asked == [] and capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["42"], ["n2", "42"], ["42", "n2", "more"], ["42", "n2", "--wrong"]])
def test_wrong_usage_is_status_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as e:
        migrate.main(argv)
    assert e.value.code == 2


def test_a_dry_run_prints_the_plan_or_every_reason(daemon: type[Daemon], capsys: Captured) -> None:
    price = [{"node": "n1", "here": True, "price": 1.5, "marginal": 0.5, "rate": 1.0}]
    daemon.replies = [{"result": {"plan": ["goes", "stays"], "reasons": [], "price": price}}]
    assert migrate.main(["42", "n2", "--dry-run"]) == 0
    assert capsys.readouterr().out == "goes\nstays\nprice of n1 (here): 1.500\n"
    daemon.replies = [{"result": {"plan": ["goes"], "reasons": ["one", "two"], "price": []}}]
    assert migrate.main(["42", "n2", "--dry-run"]) == 3
    assert "  - one\n  - two\n" in capsys.readouterr().err
    assert migrate.main(["42", "n2", "--dry-run", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["reasons"] == ["one", "two"]


def test_a_daemon_that_dies_in_the_middle_leaves_the_outcome_unknown(daemon: type[Daemon], capsys: Captured) -> None:
    daemon.replies = [{"step": "dump"}, client.Lost("gone")]
    assert migrate.main(["42", "n2"]) == 5
    assert "mosps" in capsys.readouterr().err
    assert migrate.main(["42", "n2", "--dry-run"]) == 7


def test_no_outcome_within_the_timeout_is_unknown(daemon: type[Daemon]) -> None:
    daemon.replies = [None] * 3  # and no answer: the client has given up
    assert migrate.main(["42", "n2", "--timeout", "0.5"]) == 5


def test_the_progress_line_waits_and_cleans_up(daemon: type[Daemon], capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    daemon.replies = [{"text": "freezing"}, {"result": MOVED}]
    assert migrate.main(["42", "n2"]) == 0
    assert capsys.readouterr().err == ""  # a quick move shows none
    monkeypatch.setattr(migrate, "PATIENCE", 0.0)
    assert migrate.main(["42", "n2"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("\r\x1b[Kfreezing …") and err.endswith("\r\x1b[K")


# -- mosps ------------------------------------------------------------------------------------------------------------------------


def test_mosps_table(daemon: type[Daemon], capsys: Captured) -> None:
    daemon.replies = [{"guests": [GUEST | {"pid": 100, "comm": "xz", "locked": False}, GUEST]}]
    assert mosps.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["PID", "USER", "HOME", "WHERE", "STATE", "MOVES", "LOCK", "CPU", "MEM", "COMMAND"]
    assert lines[1].split() == ["42", "root", "n1", "n2", "running", "2", "L", "1:15", "5.0M", "awk"]
    assert lines[2].split()[0] == "100"
    assert daemon.asked == [("guests", {"all": False})]


def test_mosps_shows_reasons_in_a_last_column(daemon: type[Daemon], capsys: Captured) -> None:
    daemon.replies = [{"guests": [GUEST | {"cantmove": ["one", "two"]}]}]
    assert mosps.main(["-a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("CANNOT MOVE") and lines[1].endswith("one; two")
    assert daemon.asked == [("guests", {"all": True})]


def test_mosps_json_has_exactly_the_documented_keys(daemon: type[Daemon], capsys: Captured) -> None:
    daemon.replies = [{"guests": [GUEST, {"pid": 5}]}]
    assert mosps.main(["--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [list(r) for r in rows] == [list(mosps.JSON_KEYS)] * 2
    contract = ("pid", "home", "where", "state", "nmigs", "locked", "cantmove", "cpu_s", "rss", "uid", "comm")
    assert (*contract, "arriving", "holder", "waiting_for", "waiting_s") == mosps.JSON_KEYS


def test_mosps_tells_for_whose_memory_a_guest_waits(daemon: type[Daemon], capsys: Captured) -> None:
    daemon.replies = [{"guests": [GUEST | {"arriving": 1 << 20, "waiting_for": "n1", "waiting_s": 12.3}]}]
    assert mosps.main(["-a"]) == 0
    assert "waiting for memory from n1, 12 s" in capsys.readouterr().out


# -- mosctl -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(daemon: type[Daemon]) -> type[Daemon]:
    daemon.replies = [{"nodes": [dict(OTHER), dict(NODE)], "self": "n1"}]
    return daemon


def test_mosctl_status_table_and_json(pool: type[Daemon], capsys: Captured) -> None:
    assert mosctl.main(["status"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "ADDRESS", "STATE", "SPEED", "CPUS", "LOAD", "MEM", "FREE", "GUESTS", "ACCEPTS", "AGE", "VERSION"]
    assert first.split() == ["n1*", "10.0.0.1", "alive", "1.00", "2", "0.50", "4.0G", "1.0G", "0", "yes", "0s", "0.1.0"]
    assert "n2" in second and "no: blocked" in second
    assert mosctl.main(["status", "--json", "n2"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert tuple(row) == (*mosctl.STATUS_KEYS, *mosctl.MACHINE_KEYS) and row["name"] == "n2"


@pytest.mark.parametrize(
    ("argv", "status", "out"),
    [
        (["whois"], 0, "257 n1 10.0.0.1\n"),
        (["whois", "10.0.0.2"], 0, "258 n2 10.0.0.2\n"),
        (["whois", "258"], 0, "258 n2 10.0.0.2\n"),
        (["isup"], 0, "yes\n"),
        (["isup", "n2"], 1, "no\n"),
        (["isup", "n2", "--json"], 1, "false\n"),
        (["getload"], 0, "0.50\n"),
        (["getload", "n2"], 0, "1.25\n"),
        (["getspeed", "--json"], 0, "1.0\n"),
        (["getutil"], 0, "100.00\n"),
        (["getfree"], 0, "-1\n"),
    ],
)
def test_mosctl_small_questions(pool: type[Daemon], capsys: Captured, argv: list[str], status: int, out: str) -> None:
    assert mosctl.main(argv) == status
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("verb", ["status", "whois", "isup", "getload", "getspeed"])
def test_mosctl_unknown_node(pool: type[Daemon], capsys: Captured, verb: str) -> None:
    assert mosctl.main([verb, "n9"]) == 2
    assert capsys.readouterr().err == f"mosctl {verb}: no node n9 is known here\n  (known: n1, n2)\n"


@pytest.mark.parametrize(
    ("argv", "asked"),
    [
        (["block"], ("block", {})),
        (["noblock"], ("noblock", {})),
        (["block", "n2"], ("block", {"node": "n2"})),
        (["noblock", "n2", "--json"], ("noblock", {"node": "n2"})),
        (["expel"], ("expel", {"fast": False})),
        (["expel", "n2", "--fast"], ("expel", {"fast": True, "node": "n2"})),
        (["lock", "42"], ("lock", {"pid": 42})),
        (["unlock", "42", "--json"], ("unlock", {"pid": 42})),
        (["stay"], ("switch", {"name": "stay", "on": True})),
        (["nolstay", "--json"], ("switch", {"name": "lstay", "on": False})),
        (["quiet"], ("switch", {"name": "quiet", "on": True})),
    ],
)
def test_mosctl_orders(daemon: type[Daemon], capsys: Captured, argv: list[str], asked: tuple[str, Any]) -> None:
    daemon.replies = [{}]
    assert mosctl.main(argv) == 0
    assert daemon.asked == [asked] and capsys.readouterr().out
    daemon.replies = [NotPermitted("only root may do that")]
    assert mosctl.main(argv) == 6
    assert "only root" in capsys.readouterr().err


WHY = {
    "pid": 42, "comm": "awk", "where": "n1", "text": "process 42 (awk) on n1: 9.0 s of CPU used; it goes to n2, where it gains 3.00 s",
    "expects": "9.0 s of CPU used", "verdict": "it goes to n2", "reasons": ["locked, and a reason so long that it must be broken " * 3],
    "prices": [{"node": "n1", "here": True, "price": 2.0, "marginal": 0.5, "rate": 0.5},
               {"node": "a-long-node-name", "here": False, "price": 1.0, "marginal": 0.25, "rate": 1.0}],
    "nodes": [{"node": "a-long-node-name", "pays": True, "gain_s": 3.0, "cost_s": 0.61, "saved": 0.5, "short": "gains 3.00 s", "why": "x"}],
}  # fmt: skip


@pytest.mark.parametrize("width", [80, 120])
def test_mosctl_why(daemon: type[Daemon], capsys: Captured, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    daemon.replies = [WHY]
    assert mosctl.main(["why", "42"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines if line.startswith(("n1*", "a-long"))]
    assert rows[0] == ["n1*", "2.00", "-0.50", "0.50", "runs", "here"]
    assert rows[1] == ["a-long-node-name", "1.00", "+0.25", "1.00", "0.50", "3.00", "s", "0.61", "s", "gains", "3.00", "s"]
    assert any(line.startswith("  - locked") for line in lines)
    assert mosctl.main(["why", "0"]) == 2


def test_mosctl_status_tells_the_balance(pool: type[Daemon], capsys: Captured) -> None:
    pool.replies[0] |= {"efficiency": 0.874, "policy": "mosix", "auto": "mosrun", "switches": ["stay"]}
    assert mosctl.main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "balance 87 %; policy mosix; here: stay"


def test_mosctl_doctor_joins_what_machine_and_daemon_say(daemon: type[Daemon], capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: [doctor.Check("root", True, "yes")])
    daemon.replies = [{"checks": [{"name": "peers", "ok": True, "text": "2 alive", "remedy": "start more"}]}]
    assert mosctl.main(["doctor"]) == 0
    assert capsys.readouterr().out == "ok   root: yes\nok   peers: 2 alive\n"
    daemon.replies = [NoDaemon("omdiscd is not running", hint="start it")]
    assert mosctl.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("note omdiscd: omdiscd is not running (start it)\n")
    monkeypatch.setattr(doctor, "diagnose", lambda: [doctor.Check("fuse", False, "none", "modprobe fuse")])
    assert mosctl.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0] == {"name": "fuse", "ok": False, "detail": "none", "remedy": "modprobe fuse"}


EVENT = {"t": 0.0, "kind": "move", "pid": 42, "comm": "awk", "home": "n1", "from": "n1", "to": "n2", "outcome": "arrived",
         "pause_ms": 45.0, "total_ms": 300.0, "bytes": 2048, "mode": "full", "reason": "the balancer"}  # fmt: skip


def test_mosctl_events(daemon: type[Daemon], capsys: Captured) -> None:
    daemon.replies = [{"events": [EVENT, {"t": 0.0, "kind": "block"}]}]
    assert mosctl.main(["events"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split("  ", 1)[1] == "move  42 (awk)  n1 → n2  arrived  paused 45 ms  300 ms in all  2.0K  because: the balancer"
    assert second.split("  ", 1)[1] == "block"
    daemon.replies = [{"event": EVENT}, {"event": EVENT}, {"events": []}]
    assert mosctl.main(["events", "-f", "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [EVENT, EVENT]
    assert daemon.asked[-1] == ("events", {"follow": True})


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["lock"], ["lock", "x"], ["status", "a", "b"]])
def test_mosctl_wrong_usage_is_status_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as e:
        mosctl.main(argv)
    assert e.value.code == 2


# -- output -----------------------------------------------------------------------------------------------------------------------


def test_tables_are_cut_to_the_terminal(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_terminal_width", lambda: 20)
    output.table([{"a": "x" * 5, "b": "y" * 30}], [("A", ">", lambda r: r["a"]), ("B", "<", lambda r: r["b"])])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["    A  B", "xxxxx  " + "y" * 12 + "…"]


@pytest.mark.parametrize(("n", "text"), [(0, "0B"), (999, "999B"), (1024, "1.0K"), (15 << 20, "15M"), (3 << 40, "3.0T")])
def test_sizes(n: float, text: str) -> None:
    assert output.size(n) == text


@pytest.mark.parametrize(("s", "text"), [(0, "0:00"), (75, "1:15"), (3600 * 3 + 62, "3:01:02")])
def test_durations(s: float, text: str) -> None:
    assert output.duration(s) == text


@pytest.mark.parametrize(("word", "said"), [("getlod", "did you mean getload"), ("xyzzy", "'xyzzy'; --help lists all")])
def test_a_mistyped_verb_is_not_answered_with_all_of_them(capsys: Captured, word: str, said: str) -> None:
    with pytest.raises(SystemExit):
        mosctl.main([word])
    err = capsys.readouterr().err
    assert said in err and "noquiet" not in err


@pytest.mark.parametrize("program", ["migrate", "mosps", "mosctl", "mosrun", "mosmon", "moslab.cli"])
def test_a_help_fits_80_columns(program: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.suppress(SystemExit):
        importlib.import_module(f"omtools.{program}").main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5 and max(map(len, lines)) <= 80


def test_an_interrupt_is_130() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert output.run(interrupted, "x") == 130


@pytest.mark.parametrize("tool", [migrate, mosps, mosctl])
def test_help_and_version(tool: Any, capsys: Captured) -> None:
    for option in ("--help", "--version"):
        with pytest.raises(SystemExit) as e:
            tool.main([option])
        assert e.value.code == 0
    assert "exit status" in capsys.readouterr().out
