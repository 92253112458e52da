"""The economy's figures as sentences, for events and ``mosctl why``."""

from __future__ import annotations

from typing import Any

from mig.economy.judge import Candidate, Verdict, expected_rest
from mig.economy.manager import Enact
from mig.economy.price import NodeView


def reason(c: Candidate, target: NodeView, v: Verdict) -> str:
    """Why it goes to ``target``, or stays, in one sentence."""
    rates = f"{v.r_there:.2f} CPU a thread on {target.name}, {v.r_here:.2f} here; saves {v.saved:.2f}, costs there {v.added:.2f}"
    if v.pays:
        return f"{rates}; the pool is expected to gain {v.gain:.1f} s after {c.cpu_s:.1f} s of CPU, {_mib(c.rss)} to send"
    if v.why_not == "room":
        return f"stays: {target.name} has no room for {_mib(c.rss)}"
    if v.why_not == "gain":
        return f"stays: {rates}; it would gain {max(0.0, v.gain + v.cost):.2f} s and the move costs {v.cost:.2f} s"
    if v.why_not == "helpers":
        return f"stays: {rates}; the move itself would hold up the others for {v.held_up:.1f} process-seconds, more than it saves"
    return f"stays: {rates} (times {1 + v.epsilon:g}: not worth it)"


def moved(x: Enact, here: str) -> str:
    """Why a move was ordered, in one sentence."""
    if x.kind == "memory":
        return f"{here} is short of memory; {reason(x.candidate, x.target, x.verdict).removeprefix('stays: ')}"
    if x.kind == "home":
        return f"its I/O goes home ({100 * x.candidate.drag:.0f} % of its time); {reason(x.candidate, x.target, x.verdict)}"
    return reason(x.candidate, x.target, x.verdict).removeprefix("stays: ")


def verdict(v: Verdict) -> str:
    """The verdict on one target in a few words."""
    if v.pays:
        return f"gains {seconds(v.gain)}"
    if v.why_not == "room":
        return "no room"
    if v.why_not == "gain":
        return "no better" if v.saved <= v.added else f"gains {seconds(v.gain + v.cost)}, too little"
    if v.why_not == "helpers":
        return f"holds up others {seconds(v.held_up)}"
    return f"must save {v.added * (1 + v.epsilon):.2f}"


def seconds(s: float) -> str:
    """A time of the economy: 0.35 s, 12 s."""
    return f"{s:.2f} s" if abs(s) < 10 else f"{s:.0f} s"


def expectation(c: Candidate) -> str:
    """What is expected of a process, and why."""
    times = f"{c.k:.0f} threads that want a CPU" if c.k > 1 else "one thread that wants a CPU"
    tail = f"; {100 * c.drag:.0f} % of its time elsewhere goes into I/O with home" if c.drag >= 0.01 else ""
    return f"{c.cpu_s:.1f} s of CPU used, so about {expected_rest(c) * c.k:.1f} s more expected; {_mib(c.rss)}, {times}{tail}"


def figures(v: Verdict) -> dict[str, Any]:
    """All figures of a verdict as plain values, for events and JSON; times in seconds."""
    return {
        "pays": v.pays, "gain_s": round(v.gain, 3), "cost_s": round(v.cost, 3), "send_s": round(v.send_s, 3),
        "saved": round(v.saved, 3), "added": round(v.added, 3), "held_up": round(v.held_up, 3),
        "rate_here": round(v.r_here, 3), "rate_there": round(v.r_there, 3), "epsilon": v.epsilon,
    }  # fmt: skip


def _mib(n: int) -> str:
    return f"{n >> 20} MiB"
