"""What the steps share: where things go, how a command is run and quoted when it fails, stamps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
VENV = ROOT / ".venv"
LIBEXEC = VENV / "libexec" / "mig"
_STAMPS = VENV / "setup"


class SetupError(Exception):
    """A step failed; ``hint`` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def say(text: str) -> None:
    """One line of progress."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def need_root(why: str) -> None:
    """Raise where we are not root."""
    if os.geteuid() != 0:
        raise SetupError(f"root is needed {why}", "run it as root, for instance with sudo")


def environment() -> dict[str, str]:
    """For commands: as ours, without what the bootstrap added, and without questions."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {**env, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


def run(argv: Sequence[str | Path], *, cwd: Path | None = None, hint: str = "", timeout: float = 1800) -> str:
    """Run a command and return what it printed; raises :class:`SetupError` that quotes its last lines."""
    command = [str(a) for a in argv]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except FileNotFoundError as e:
        raise SetupError(f"{command[0]} is missing", hint) from e
    except subprocess.TimeoutExpired as e:
        raise SetupError(f"no end after {timeout:.0f} s: {' '.join(command)}", hint) from e
    if done.returncode:
        last = "\n".join(f"    {line}" for line in done.stdout.strip().splitlines()[-8:])
        raise SetupError(f"failed ({done.returncode}): {' '.join(command)}\n{last}", hint)
    return done.stdout


def stamped(name: str, key: str) -> bool:
    """Whether step ``name`` was done for this very ``key``."""
    try:
        return (_STAMPS / name).read_text() == key
    except FileNotFoundError:
        return False


def stamp(name: str, key: str) -> None:
    """Remember that step ``name`` is done for ``key``."""
    _STAMPS.mkdir(parents=True, exist_ok=True)
    (_STAMPS / name).write_text(key)
