"""``mosctl events``: what happened, a line an event."""

from __future__ import annotations

import sys
import time
from typing import Any

from omtools import output


def show(*, follow: bool, pool: bool, since: float | None, json: bool) -> int:
    """Print them; ``since``: only those of the last seconds.  With ``follow`` until Ctrl-C."""
    from omtools.client import Client

    args: dict[str, Any] = {"follow": follow}
    if pool:
        args["pool"] = True
    if since is not None:
        args["since"] = time.time() - since
    with Client() as client:
        for item in client.stream("events", wait=None if follow else 15.0, **args):
            if item is None:
                continue
            for event in [item["event"]] if "event" in item else item.get("events", []):
                output.print_json(event, line=True) if json else print(line(event), flush=True)
            if silent := item.get("silent"):
                print(f"mosctl events: no answer from {', '.join(silent)}", file=sys.stderr)
    return 0


def line(e: dict[str, Any]) -> str:
    """An event as a line: when, on which node (of the pool's), what, who, from where to where, and how it ended."""
    words = [time.strftime("%H:%M:%S", time.localtime(float(e.get("t", 0))))]
    if e.get("node"):
        words.append(f"{e['node']}:")
    words.append(str(e.get("kind", "event")))
    if e.get("pid"):
        words.append(f"{e['pid']} ({e['comm']})" if e.get("comm") else str(e["pid"]))
    if e.get("from") and e.get("to"):
        words.append(f"{e['from']} → {e['to']}")
    elif node := e.get("to") or e.get("from") or e.get("home"):
        words.append(str(node))
    if e.get("outcome"):
        words.append(str(e["outcome"]))
    if e.get("step"):
        words.append(f"in step {e['step']}")
    if e.get("pause_ms") is not None:
        words.append(f"paused {output.milliseconds(float(e['pause_ms']))}")
    if e.get("total_ms") is not None:
        words.append(f"{output.milliseconds(float(e['total_ms']))} in all")
    if e.get("gain_s") is not None:
        words.append(f"gains {e['gain_s']:.1f} s, costs {e.get('cost_s', 0):.2f} s")
    if e.get("bytes"):
        words.append(output.size(float(e["bytes"])))
    because = f"  because: {e['reason']}" if e.get("reason") else ""
    failed = f"  failed: {e['error']}" if e.get("error") else ""
    return output.plain("  ".join(words) + because + failed)
