"""The virtual environment ``.venv``, with the project in it as an editable install."""

from __future__ import annotations

import hashlib
import subprocess
import sys

from omtools import share_files
from omtools.setup.base import ROOT, VENV, SetupError, need_root, run, say, stamp, stamped

_HINT = "is the network there, and does this machine's pip configuration (`pip config list`) name an index that answers?"


def create() -> None:
    """Make the environment, or bring it up to date after pyproject.toml changed or the clone was moved."""
    share_files.write(ROOT / "docs" / "man", VENV / "share", "openmosix-userspace")  # an editable install has none
    python = VENV / "bin" / "python"
    key = f"{hashlib.sha256((ROOT / 'pyproject.toml').read_bytes()).hexdigest()} {ROOT}"
    if stamped("python", key) and python.exists():
        return
    need_root("to set up the virtual environment")
    if not _works():
        say(f"creating {VENV}")
        run([sys.executable, "-m", "venv", "--clear", VENV], hint="on Debian and Ubuntu: apt-get install python3-venv")
    say("installing the project and its Python packages")
    run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", f"{ROOT}[test]"], hint=_HINT)
    if not _works():
        raise SetupError(f"{python} does not run", f"remove {VENV} and run it again")
    stamp("python", key)


def _works() -> bool:
    """Whether the environment's interpreter runs and is ours: a copied clone keeps the paths of the old one."""
    try:
        done = subprocess.run(
            [VENV / "bin" / "python", "-c", "import sys, pip; print(sys.prefix)"], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() == str(VENV)
