"""Guests for tests: programs that verify themselves.  ``build`` compiles those in C."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Guests:
    """Where the programs lie; each one's head comment says what it takes and tells."""

    verify: Path
    tree: Path
    holder: Path
    files: Path
    churn: Path


def build(directory: Path) -> Guests:
    """Compile into ``directory``, which must be readable for the users that will run them.

    Raises ``CalledProcessError`` with the compiler's words in ``stderr``.
    """
    for name in ("verify", "tree", "holder", "churn"):
        subprocess.run(
            ["gcc", "-O2", "-Wall", "-pthread", "-o", directory / name, _HERE / f"{name}.c"],
            check=True,
            capture_output=True,
            text=True,
        )
    shutil.copy(_HERE / "files.py", directory)
    return Guests(directory / "verify", directory / "tree", directory / "holder", directory / "files.py", directory / "churn")
