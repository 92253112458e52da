"""mosctl's verbs of the adaptive pool: ``pool``, ``expel``, ``bring``, ``pam``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mig.errors import BadInput, MigError
from omtools import output

if TYPE_CHECKING:
    import argparse

Add = Callable[..., None]

SESSION_COLUMNS: tuple[output.Column, ...] = (
    ("USER", "<", lambda s: str(s["user"])),
    ("SERVICE", "<", lambda s: str(s["service"] or "-")),
    ("TERMINAL", "<", lambda s: str(s["tty"] or "-")),
    ("FROM", "<", lambda s: str(s["host"] or "-")),
    ("PROCESS", ">", lambda s: str(s["pid"])),
    ("KNOWN BY", "<", lambda s: str(s["source"])),
    ("COUNTS", "<", lambda s: "yes" if s["counts"] else "no"),
)


def add_verbs(verb: Add) -> None:
    """Add them to mosctl's parser by its ``verb``."""
    verb("pool", _pool, "tell whether this node is in the pool, why not, who is logged in, and when it is back")
    verb(
        "expel", _expel, "let no more guests come to a node, and wait until all that are there have left",
        ("node", {"metavar": "NODE", "nargs": "?", "help": "a node's name, id or address (default: this node)"}),
        ("--fast", {"action": "store_true", "help": "all home at once, without asking who would be best: the machine is about to go down"}),
    )  # fmt: skip
    verb("bring", _bring, "bring all guests whose home is this node back home, and wait for them")
    verb(
        "pam", _pam, "install, remove or show the line by which PAM tells omdiscd of logins",
        ("action", {"choices": ("install", "remove", "show"), "help": "show changes nothing"}),
        ("file", {"metavar": "FILE", "nargs": "*", "help": "files of /etc/pam.d (default: what suits this distribution)"}),
    )  # fmt: skip


def _pool(a: argparse.Namespace) -> int:
    from omtools.client import Client

    with Client() as client:
        p = client.call("pool")["pool"]
    if a.json:
        output.print_json(p)
        return 0
    print(f"{p['node']}: {p['state']}" + (f": {p['why']}" if p["why"] else ""))
    print(f"  leave_on = {p['leave_on']}, rejoin_after = {p['rejoin_after']}")
    if p["rejoins_in_s"] is not None:
        print(f"  back in the pool in {p['rejoins_in_s']:.0f} s, if nobody shows up")
    if p["idle_s"] is not None and p["leave_on"] != "never":
        print(f"  last touched {p['idle_s']:.0f} s ago")
    print(f"  {p['guests']} guest{' runs' if p['guests'] == 1 else 's run'} here" + (f", {p['guest_share']}" if p["guest_share"] else ""))
    for g in p["frozen"]:
        print(f"  frozen: {g['pid']} ({g['comm']}) of {g['home']}: {'; '.join(g['reasons']) or 'nobody has taken it yet'}")
    if p["sessions"]:
        output.table(p["sessions"], SESSION_COLUMNS)
    return 0


class _Progress:
    """One line that is written anew on a terminal, a line an item elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.live = quiet, sys.stderr.isatty()
        self.shown = False

    def count(self, left: int) -> None:
        """How many are still to go."""
        if self.live and not self.quiet:
            print(f"\r\033[K{left} to go" if left else "\r\033[K", end="", file=sys.stderr, flush=True)
            self.shown = bool(left)

    def line(self, text: str) -> None:
        """Something happened."""
        if not self.quiet:
            print(f"\r\033[K{text}" if self.live else text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the cursor at the beginning of a line."""
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _follow(op: str, words: Callable[[dict[str, Any]], str], left_behind: str, *, json: bool, **args: Any) -> int:
    """Stream an operation; Ctrl-C says what state is left."""
    from omtools.client import Client

    progress, items = _Progress(json), list[dict[str, Any]]()
    answer: dict[str, Any] = {}
    try:
        with Client() as client:
            for reply in client.stream(op, **args):
                if reply is None:
                    continue
                if not reply.get("more"):
                    answer = reply
                elif "pid" in reply:
                    items.append({k: v for k, v in reply.items() if k not in ("v", "id", "more", "ok", "here", "left")})
                    progress.line(words(reply))
                if reply.get("more"):
                    progress.count(int(reply.get("left", 0)))
    except KeyboardInterrupt:
        progress.end()
        print(f"mosctl {op}: {left_behind}", file=sys.stderr)
        raise
    except MigError:
        progress.end()
        raise
    progress.end()
    moved = int(answer.get("moved", 0))
    if json:
        output.print_json({"moved": moved, "guests": items})
    else:
        print(f"{moved} guest{'' if moved == 1 else 's'} {'left' if op == 'expel' else 'came home'}")
    return 0


def _expel(a: argparse.Namespace) -> int:
    def words(i: dict[str, Any]) -> str:
        gone = {"arrived": f"went to {i.get('to')}", "stored": f"is stored on {i.get('to')}, whose memory is short"}
        where = gone.get(i["outcome"]) or f"stands frozen: {'; '.join(i['reasons'])}"
        return f"{i['pid']} ({i['comm']}) of {i['home']} {where}"

    where, there = (a.node, f" {a.node}") if a.node else ("the node", "")
    left = f"{where} stays blocked and goes on sending its guests away; `mosctl noblock{there}` ends that"
    return _follow("expel", words, left, json=a.json, fast=a.fast, **({"node": a.node} if a.node else {}))


def _bring(a: argparse.Namespace) -> int:
    def words(i: dict[str, Any]) -> str:
        match i["outcome"]:
            case "arrived":
                return f"{i['pid']} ({i['comm']}) came home from {i['from']}"
            case "ended":
                return f"{i['pid']} ({i['comm']}) has ended, or is home already"
        return f"{i['pid']} ({i['comm']}) stays on {i['from']}: {'; '.join(i['reasons'])}"

    lstay = "this node's own processes do not leave by themselves any more; `mosctl nolstay` ends that"
    left = f"guests that are on their way arrive, the others stay where they are; mosps shows them\n  ({lstay})"
    status = _follow("bring", words, left, json=a.json)
    if not a.json:
        print(f"({lstay})", file=sys.stderr)
    return status


def _pam(a: argparse.Namespace) -> int:
    from omtools import pam_files

    if a.action != "show" and a.json:
        raise BadInput("--json goes with show")
    return pam_files.run(a.action, list(a.file), json=a.json)
