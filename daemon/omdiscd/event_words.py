"""An event as one line of the log, for people and for grep: what happened to which process, between which nodes, in which move."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

_BAD = {"lost": logging.ERROR} | dict.fromkeys(("unknown", "rolled-back", "failed", "frozen", "dead"), logging.WARNING)
_FIGURES = ("pause_ms", "total_ms", "bytes", "rounds", "mode", "status", "addr")
_LONGEST = 400
"""Characters of a reason or an error."""


def level(e: Mapping[str, Any]) -> int:
    """The severity: a lost guest is an error, a move that was rolled back a warning."""
    return _BAD.get(str(e.get("outcome")), logging.INFO)


def line(e: Mapping[str, Any]) -> str:
    """``move 1-42-1764: process 42 (awk) n1 -> n2 arrived, pause_ms=45 …, because …``; what steers a terminal is taken out."""
    head = str(e.get("kind", "event")) + (f" {e['mid']}" if e.get("mid") else "")
    words = []
    if e.get("pid"):
        words.append(f"process {e['pid']}" + (f" ({e['comm']})" if e.get("comm") else ""))
    if e.get("from") and e.get("to"):
        words.append(f"{e['from']} -> {e['to']}")
    elif node := e.get("to") or e.get("from") or e.get("home"):
        words.append(f"node {node}")
    if e.get("outcome"):
        words.append(str(e["outcome"]))
    if e.get("step"):
        words.append(f"in step {e['step']}")
    figures = "".join(f", {k}={e[k]}" for k in _FIGURES if e.get(k) not in (None, ""))
    error = f", error: {str(e['error'])[:_LONGEST]}" if e.get("error") else ""
    reason = f", because {str(e['reason'])[:_LONGEST]}" if e.get("reason") else ""
    text = f"{head}: {' '.join(words)}{figures}{error}{reason}"
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
