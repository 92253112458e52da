"""What the owner of a machine wants: when it leaves the pool, when it comes back.  Parsed from the configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

LeaveOn = Literal["login", "console-login", "active-user", "never"]

LEAST_IDLE = 10.0
"""Seconds below which idleness cannot be told: the kernel notes a terminal's input only every 8 s."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


@dataclass(frozen=True)
class Rejoin:
    """Back in the pool ``seconds`` after the last reason to be out; with ``idle`` it is enough that nobody has touched the machine."""

    seconds: float = 300.0
    idle: bool = True

    @classmethod
    def parse(cls, text: str) -> Rejoin:
        """``5m``, ``90s``, ``1h``, ``0`` or ``5m idle``; raises ``ValueError`` for anything else."""
        m = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)(\s+idle)?", text.strip())
        if m is None:
            raise ValueError(f"{text!r} is not a time like '5m', '90s' or '5m idle'")
        seconds = float(m[1]) * _UNITS[m[2]]
        if m[3] and seconds < LEAST_IDLE:
            raise ValueError(f"{text!r}: the kernel notes a terminal's input only every 8 s; at least '{LEAST_IDLE:.0f}s idle'")
        return cls(seconds, bool(m[3]))


@dataclass(frozen=True)
class Rules:
    """The owner's part of :class:`mig.config.Config`; see there."""

    leave_on: LeaveOn = "never"
    rejoin: Rejoin = Rejoin()
    linger: bool = False
    owner_load: float = 0.5
    ignored: frozenset[str] = frozenset()
    """Services of PAM whose sessions are nobody's presence (cron, sudo, …)."""
