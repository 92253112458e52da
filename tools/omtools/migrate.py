"""``migrate PID {NODE|home|balance}``: move a process to another node, back home, or to where it runs best."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from mig.errors import BadInput, CannotMove, MigError, OutcomeUnknown
from mig.memory.ladder import MODES
from omtools import output

if TYPE_CHECKING:
    import argparse

PATIENCE = 0.3
"""Seconds before a progress line appears."""
GRACE = 30.0
"""Seconds that the daemon has beyond --timeout to roll a move back and say so."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = output.parser("migrate", "Move a running process to another node of the pool; it goes on there and does not notice.")
    p.add_argument(
        "pid", metavar="PID", type=output.process_number, help="a process of this machine, or a guest from here that runs elsewhere"
    )
    p.add_argument("to", metavar="{NODE|home|balance}", help="a node's name, id or address; home: back here; balance: where it runs best")
    p.add_argument("--dry-run", action="store_true", help="say what would be done, and every reason against it; touch nothing")
    p.add_argument("--json", action="store_true", help="print pid, from, to, pause_ms, total_ms, bytes, rounds, mode as JSON")
    p.add_argument("--timeout", metavar="S", type=float, help="give up, and roll back, after so many seconds")
    p.add_argument(
        "--mode", choices=MODES, default="auto",
        help="how its memory travels: pre-copy, pre-copy-only (nothing after the pause), post-copy, full (all in the pause); default: auto",
    )  # fmt: skip
    p.add_argument("--free", action="store_true", help="the balancer may move it on at once, not only after hand_hold_s (omdiscd.toml)")
    p.add_argument(
        "--own-sockets", action="store_true",
        help="the named unix sockets that it listens on are for its own processes alone: they go along (once said, always)",
    )  # fmt: skip
    p.add_argument("--limit", metavar="MBIT", type=float, help="megabits a second at the most for what is sent before the pause")
    return p


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    a = parser().parse_args(argv)
    options: dict[str, Any] = {} if a.mode == "auto" else {"mode": a.mode}
    if a.free:
        options["free"] = True
    if a.own_sockets:
        options["own_sockets"] = True
    if a.limit is not None:
        options["limit_bps"] = int(a.limit * 1e6)
    return output.run(lambda: _migrate(a.pid, a.to, a.dry_run, a.json, a.timeout, options), "migrate", json=a.json)


def _migrate(pid: int, to: str, dry_run: bool, json: bool, timeout: float | None, options: dict[str, Any]) -> int:
    if options.get("limit_bps", 1) <= 0:
        raise BadInput("--limit must be more than 0 Mbit/s")
    if pid <= 0:
        raise BadInput(f"{pid} is not the number of a process")
    if timeout is not None and timeout <= 0:
        raise BadInput("--timeout must be more than 0 seconds")
    answer = _ask(pid, to, dry_run, timeout, options, show=sys.stderr.isatty() and not json)
    if dry_run:
        return _tell_plan(pid, to, answer, json)
    result = answer.get("result", {})
    if json:
        output.print_json(result)
    else:
        print(told(result))
    return 0


def _ask(pid: int, to: str, dry_run: bool, timeout: float | None, options: dict[str, Any], *, show: bool) -> dict[str, Any]:
    from omtools.client import Client, Lost

    args: dict[str, Any] = {"pid": pid, "to": to, "dry_run": dry_run, **options}
    if timeout is not None:
        args["timeout"] = timeout
    wait = None if timeout is None else timeout + GRACE
    line = _ProgressLine(f"{pid} → {to}") if show else None
    try:
        with Client() as client:
            for item in client.stream("migrate", wait=wait, tick=0.1, **args):
                if item is not None and not item.get("more"):
                    return item
                if line is not None:
                    line.update(item)
    except Lost as e:
        if dry_run:
            raise
        raise OutcomeUnknown(
            f"omdiscd went away while process {pid} was moving to {to}: {e}",
            hint="the move goes on without it; mosps shows where the process is when omdiscd runs again",
        ) from e
    except KeyboardInterrupt:
        if line is not None:
            line.clear()
        print(f"migrate: interrupted; a move of {pid} that has begun goes on: see mosps", file=sys.stderr)
        raise
    finally:
        if line is not None:
            line.clear()
    raise OutcomeUnknown(f"omdiscd has not told the outcome of moving process {pid} to {to}", hint="mosps shows where it is")


class _ProgressLine:
    """One line on the terminal, rewritten while a move lasts."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._start = time.monotonic()
        self._shown = False

    def update(self, item: dict[str, Any] | None) -> None:
        if item is not None:
            self._text = str(item.get("text") or item.get("step") or self._text)
        passed = time.monotonic() - self._start
        if passed >= PATIENCE:
            self._shown = True
            sys.stderr.write(f"\r\x1b[K{self._text} … {passed:.1f} s")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            self._shown = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def told(r: dict[str, Any]) -> str:
    """A finished move in a sentence."""
    parts = [f"{r.get('pid')} moved from {r.get('from')} to {r.get('to')}"]
    if r.get("was") == "stored":
        parts = [f"{r.get('pid')} runs again, on {r.get('to')}; it was stored on {r.get('from')}"]
    elif r.get("from") == r.get("to"):
        parts = [f"{r.get('pid')} stays on {r.get('to')}"]
    if r.get("pause_ms") is not None:
        parts.append(f"paused {output.milliseconds(float(r['pause_ms']))}")
    if r.get("total_ms") is not None:
        parts.append(f"{output.milliseconds(float(r['total_ms']))} in all")
    if r.get("bytes"):
        parts.append(f"{output.size(float(r['bytes']))} sent")
    if r.get("arriving"):
        parts.append(f"{output.size(float(r['arriving']))} of its memory follow")
    return ", ".join(parts)


def _tell_plan(pid: int, to: str, answer: dict[str, Any], json: bool) -> int:
    plan = answer.get("result", answer)
    reasons = [str(r) for r in plan.get("reasons") or ()]
    error: MigError | None = CannotMove(f"process {pid} cannot move to {to}", reasons=reasons) if reasons else None
    if json:
        output.print_json({k: plan.get(k) for k in ("plan", "reasons", "price")})
    else:
        print(*(plan.get("plan") or ()), sep="\n")
        for n in plan.get("price") or ():
            print(f"price of {n['node']}{' (here)' if n['here'] else ''}: {n['price']:.3f}")
    if error is not None:
        output.complain(error, "migrate")
        return error.exit_code
    return 0
