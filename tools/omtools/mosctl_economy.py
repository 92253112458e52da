"""``mosctl``'s verbs of the economy: why a process stays or goes, who may leave, how fast a node is."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mig.errors import BadInput
from omtools import output

if TYPE_CHECKING:
    import argparse

AddVerb = Callable[..., None]

SWITCHES = {
    "stay": ("let nothing leave this node by itself", "nothing leaves this node by itself"),
    "nostay": ("let processes leave this node by themselves again", "processes may leave this node by themselves"),
    "lstay": ("let none of this node's own processes leave by themselves; guests may", "this node's own processes stay"),
    "nolstay": ("let this node's own processes leave by themselves again", "this node's own processes may leave by themselves"),
    "quiet": ("tell no new load and decide nothing here", "this node tells no new load and decides nothing"),
    "noquiet": ("tell the load and decide again", "this node tells its load and decides again"),
}
"""Help, and what is said when it is done."""

COLUMNS: tuple[output.Column, ...] = (
    ("NODE", "<", lambda n: f"{n['node']}{'*' if n['here'] else ''}"),
    ("PRICE", ">", lambda n: f"{n['price']:.2f}"),
    ("CHANGE", ">", lambda n: f"{'-' if n['here'] else '+'}{n['marginal']:.2f}"),
    ("SPEED", ">", lambda n: f"{n['rate']:.2f}"),
    ("SAVES", ">", lambda n: _number(n, "saved", "")),
    ("GAIN", ">", lambda n: _number(n, "gain_s", " s")),
    ("COST", ">", lambda n: _number(n, "cost_s", " s")),
    ("VERDICT", "<", lambda n: "runs here" if n["here"] else str(n.get("short", ""))),
)
LEGEND = (
    "PRICE: process-seconds per unit of work; CHANGE: what the process adds there, or takes away by leaving here; SPEED: CPUs that each of "
    "its threads gets; SAVES: what the pool saves here; GAIN and COST in seconds of the process's time."
)


def add_verbs(verb: AddVerb) -> None:
    """Add them to the parser of ``mosctl``."""
    pid = ("pid", {"metavar": "PID", "type": output.process_number, "help": "a process of this machine"})
    verb("why", _why, "tell what each node would cost a process, and why it stays or goes", pid)
    verb(
        "setspeed", _setspeed, "set this node's speed until the next boot, relative to a standard CPU; 0: as measured",
        ("speed", {"metavar": "SPEED", "type": float, "help": "1 is a standard CPU"}),
    )  # fmt: skip
    for name, (text, _) in SWITCHES.items():
        verb(name, _switch, text)
    verb(
        "mask", _mask, "name the only nodes on which a process may run; it is not moved now",
        pid, ("nodes", {"metavar": "NODES", "help": "n1,n2,… or any"}),
    )  # fmt: skip


def balance_line(nodes: Sequence[dict[str, Any]]) -> None:
    """What ``mosctl status`` says below its table: how well the pool is balanced, who decides, what is switched."""
    pool = nodes[0]["answer"] if nodes else {}
    if "efficiency" not in pool:
        return
    words = [f"balance {100 * pool['efficiency']:.0f} %"]
    if (policy := pool.get("policy")) and policy != "economy":
        words.append(f"policy {policy}")
    if pool.get("auto") == "none":
        words.append("nothing is moved by itself (auto = none)")
    if switches := pool.get("switches"):
        words.append(f"here: {', '.join(switches)}")
    print("; ".join(words))


def _call(op: str, **args: Any) -> dict[str, Any]:
    from omtools.client import Client

    with Client() as client:
        return client.call(op, **args)


def _number(n: dict[str, Any], key: str, unit: str) -> str:
    return f"{n[key]:.2f}{unit}" if n.get(key) is not None else ""


def _why(a: argparse.Namespace) -> int:
    answer = _call("why", pid=_pid(a))
    if a.json:
        output.print_json({k: v for k, v in answer.items() if k not in ("v", "id", "more")})
        return 0
    width = min(120, shutil.get_terminal_size((100, 25)).columns)
    print(textwrap.fill(answer["text"], width))
    verdicts = {v["node"]: v for v in answer["nodes"]}
    if answer["prices"]:
        print()
        output.table([verdicts.get(n["node"], {}) | n for n in answer["prices"]], COLUMNS)
        print(textwrap.fill(LEGEND, width))
    for reason in answer["reasons"]:
        print(textwrap.fill(reason, width, initial_indent="  - ", subsequent_indent="    "))
    return 0


def _setspeed(a: argparse.Namespace) -> int:
    answer = _call("setspeed", speed=a.speed)
    output.print_json({"speed": answer["speed"]}) if a.json else print(f"speed {answer['speed']:.2f}")
    return 0


def _switch(a: argparse.Namespace) -> int:
    on = not a.verb.startswith("no")
    answer = _call("switch", name=a.verb.removeprefix("no"), on=on)
    output.print_json({"switches": answer.get("switches", [])}) if a.json else print(SWITCHES[a.verb][1])
    return 0


def _mask(a: argparse.Namespace) -> int:
    names = [] if a.nodes == "any" else [n for n in a.nodes.split(",") if n]
    if not names and a.nodes != "any":
        raise BadInput(f"{a.nodes!r} names no nodes", hint="n1,n2,… or any")
    answer = _call("mask", pid=_pid(a), nodes=names)
    if a.json:
        output.print_json({"pid": answer["pid"], "nodes": answer["nodes"]})
    else:
        print(f"{a.pid} may run on {', '.join(answer['nodes']) or 'any node'}")
    return 0


def _pid(a: argparse.Namespace) -> int:
    if a.pid <= 0:
        raise BadInput(f"{a.pid} is not the number of a process")
    return int(a.pid)
