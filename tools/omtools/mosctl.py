"""``mosctl``: look at the pool and steer this node."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mig.errors import BadInput, NoDaemon
from omtools import mosctl_completion, mosctl_economy, mosctl_pool, output

if TYPE_CHECKING:
    import argparse

EXIT_CODES = """exit status:
  0 done   1 the answer of isup or doctor is no   2 bad input   3 cannot be done, every reason is listed   4 failed   6 not permitted
  7 no omdiscd answers on this machine"""

STATUS_KEYS = ("id", "name", "addr", "state", "speed", "cpus", "load", "mem_total", "mem_free", "guests", "accepting", "age_s", "version")
MACHINE_KEYS = ("mem_unused", "why_not", "pool", "psi_cpu", "psi_mem", "swap_total", "kernel", "cpu", "criu")
"""What --json has beside them: pressures in per cent of the last 10 s, -1 where the kernel counts none; -1 for memory that is not told."""

STATUS_COLUMNS: tuple[output.Column, ...] = (
    ("NAME", "<", lambda n: f"{n['name']}{'*' if n.get('self') else ''}"),
    ("ADDRESS", "<", lambda n: str(n["addr"])),
    ("STATE", "<", lambda n: str(n["state"])),
    ("SPEED", ">", lambda n: f"{n['speed']:.2f}"),
    ("CPUS", ">", lambda n: f"{n['cpus']:g}"),
    ("LOAD", ">", lambda n: f"{n['load']:.2f}"),
    ("MEM", ">", lambda n: output.size(float(n["mem_total"]))),
    ("FREE", ">", lambda n: output.size(float(n["mem_free"]))),
    ("GUESTS", ">", lambda n: str(n["guests"])),
    ("ACCEPTS", "<", lambda n: "yes" if n["accepting"] else f"no{': ' + n['why_not'] if n.get('why_not') else ''}"),
    ("AGE", ">", lambda n: f"{n['age_s']:.0f}s"),
    ("VERSION", "<", lambda n: str(n["version"])),
)

Verb = Callable[["argparse.Namespace"], int]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = output.parser("mosctl", "Look at the pool and steer its nodes.", EXIT_CODES)
    verbs = p.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, run: Verb, text: str, *arguments: tuple[str, dict[str, Any]]) -> None:
        v = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for argument, options in arguments:
            v.add_argument(argument, **options)
        v.add_argument("--json", action="store_true", help="print JSON")
        v.set_defaults(run=run)

    node = ("node", {"metavar": "NODE", "nargs": "?", "help": "a node's name, id or address (default: this node)"})
    one = ("node", {"metavar": "NODE", "nargs": "?", "help": "a node's name, id or address (default: all nodes)"})
    pid = ("pid", {"metavar": "PID", "type": output.process_number, "help": "a process of this machine"})
    verb("status", _status, "show every node of the pool, or one", one)
    verb("whois", _whois, "tell id, name and address of a node", node)
    verb("isup", _isup, "tell whether a node is up: prints yes or no; exit status 0 or 1", node)
    verb("getload", _getload, "print a node's load, in processes per standard CPU", node)
    verb("getspeed", _getspeed, "print a node's speed, relative to a standard CPU", node)
    verb("getmem", _getmem, "print the bytes that a node can give to programs", node)
    verb("getfree", _getfree, "print the bytes of a node's memory that nothing uses, not even caches; -1: it does not tell", node)
    verb("getutil", _getutil, "print a node's utilizability: per cent of the last 10 s not lost to waiting for memory", node)
    verb("block", _block, "let no more guests come to a node; those that are there stay", node)
    verb("noblock", _noblock, "let guests come to a node again", node)
    verb("lock", _lock, "let a process not be moved by itself; migrate still moves it", pid)
    verb("unlock", _unlock, "let a process be moved again", pid)
    mosctl_economy.add_verbs(verb)
    verb(
        "events", _events, "show what moved where and why, the latest last",
        ("--follow", {"action": "store_true", "help": "(-f) go on and print events as they happen"}),
        ("--pool", {"action": "store_true", "help": "those of all nodes, each with the name of its node"}),
        ("--since", {"metavar": "S", "type": float, "help": "only those of the last S seconds"}),
    )  # fmt: skip
    mosctl_pool.add_verbs(verb)
    verb("doctor", _doctor, "tell what this machine can and cannot do, each line with its remedy; exit status 1 if something fails")
    verb(
        "key", _key, "make, show, install or change the cluster's key; the manual tells how a pool changes its key without a stop",
        ("action", {"metavar": "new|show|install|use|drop", "choices": ("new", "show", "install", "use", "drop"), "help": "what to do"}),
        ("file", {"metavar": "FILE", "nargs": "?", "help": "install: the keys (default: standard input)"}),
    )  # fmt: skip
    verb("reload", _reload, "let omdiscd read its configuration and keys again; it says what changed, and what needs a restart")
    mosctl_completion.add_verbs(verb)
    return p


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    # -f is what everybody types, as with tail
    args = ["--follow" if word == "-f" else word for word in (sys.argv[1:] if argv is None else argv)]
    a = parser().parse_args(args)
    return output.run(lambda: int(a.run(a)), f"mosctl {a.verb}", json=a.json)


def _call(op: str, **args: Any) -> dict[str, Any]:
    from omtools.client import Client

    with Client() as client:
        return client.call(op, **args)


def _nodes(name: str | None, *, here: bool = False) -> list[dict[str, Any]]:
    """Every node, or those of that name; ``here``: no name means this node.  Raises :class:`BadInput` for an unknown one."""
    answer = _call("status")
    nodes: list[dict[str, Any]] = answer["nodes"]
    me = answer.get("self", "")
    for n in nodes:
        n["self"] = n["name"] == me
        n["answer"] = answer
    if name is None:
        return [n for n in nodes if n["self"]] if here else sorted(nodes, key=lambda n: str(n["name"]))
    found = [n for n in nodes if name in (n["name"], str(n["id"]), n["addr"])]
    return found or output.no_such_node(name, sorted(str(n["name"]) for n in nodes))


def _status(a: argparse.Namespace) -> int:
    nodes = _nodes(a.node)
    if a.json:
        output.print_json([{k: n.get(k) for k in (*STATUS_KEYS, *MACHINE_KEYS)} for n in nodes])
    else:
        output.table(nodes, STATUS_COLUMNS)
        if a.node is None:
            mosctl_economy.balance_line(nodes)
    return 0


def _whois(a: argparse.Namespace) -> int:
    nodes = [{k: n[k] for k in ("id", "name", "addr")} for n in _nodes(a.node, here=True)]
    if a.json:
        output.print_json(nodes)
    for n in () if a.json else nodes:
        print(n["id"], n["name"], n["addr"])
    return 0


def _isup(a: argparse.Namespace) -> int:
    up = all(n["state"] == "alive" for n in _nodes(a.node, here=True))
    output.print_json(up) if a.json else print("yes" if up else "no")
    return 0 if up else 1


def _getload(a: argparse.Namespace) -> int:
    return _number(a, lambda n: float(n["load"]))


def _getspeed(a: argparse.Namespace) -> int:
    return _number(a, lambda n: float(n["speed"]))


def _getmem(a: argparse.Namespace) -> int:
    return _number(a, lambda n: int(n["mem_free"]))


def _getfree(a: argparse.Namespace) -> int:
    return _number(a, lambda n: int(n.get("mem_unused", -1)))


def _getutil(a: argparse.Namespace) -> int:
    return _number(a, lambda n: 100.0 - max(0.0, float(n.get("psi_mem") or 0.0)))


def _number(a: argparse.Namespace, value: Callable[[dict[str, Any]], float]) -> int:
    for n in _nodes(a.node, here=True):
        v = value(n)
        output.print_json(v) if a.json else print(v if isinstance(v, int) else f"{v:.2f}")
    return 0


def _switch(a: argparse.Namespace, op: str, said: str, **args: Any) -> int:
    answer = _call(op, **args)
    if a.json:
        output.print_json({k: v for k, v in answer.items() if k not in ("v", "id", "more")})
    else:
        print(said)
    return 0


def _block(a: argparse.Namespace) -> int:
    return _switch(a, "block", f"no more guests come to {a.node or 'this node'}", **_there(a))


def _noblock(a: argparse.Namespace) -> int:
    answer = _call("noblock", **_there(a))
    if a.json:
        output.print_json({"accepting": answer.get("accepting", True), "why_not": answer.get("why_not", "")})
    else:
        where = a.node or "this node"
        open_ = answer.get("accepting", True)
        print(f"guests may come to {where}" if open_ else f"{where} is not blocked any more, but {answer['why_not']}")
    return 0


def _there(a: argparse.Namespace) -> dict[str, str]:
    return {"node": a.node} if a.node else {}


def _lock(a: argparse.Namespace) -> int:
    return _switch(a, "lock", f"{a.pid} is locked", pid=_pid(a))


def _unlock(a: argparse.Namespace) -> int:
    return _switch(a, "unlock", f"{a.pid} may be moved", pid=_pid(a))


def _pid(a: argparse.Namespace) -> int:
    if a.pid <= 0:
        raise BadInput(f"{a.pid} is not the number of a process")
    return int(a.pid)


def _events(a: argparse.Namespace) -> int:
    from omtools.events import show

    return show(follow=a.follow, pool=a.pool, since=a.since, json=a.json)


def _key(a: argparse.Namespace) -> int:
    from omtools.keyring import key

    return key(a)


def _reload(a: argparse.Namespace) -> int:
    said = _call("reload")["said"]
    output.print_json(said) if a.json else print("\n".join(said))
    return 0


def _doctor(a: argparse.Namespace) -> int:
    from omtools import doctor

    checks = doctor.diagnose()
    try:
        checks += [doctor.Check(c["name"], c["ok"], c["text"], "" if c["ok"] else c["remedy"]) for c in _call("doctor")["checks"]]
    except NoDaemon as e:
        checks.append(doctor.Check("omdiscd", None, e.message, e.hint))
    if a.json:
        output.print_json([vars(c) for c in checks])
    else:
        print(*(c.line() for c in checks), sep="\n")
    return 1 if any(c.ok is False for c in checks) else 0
