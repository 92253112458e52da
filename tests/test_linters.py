"""The linters are tests: a change that they refuse does not pass."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(*argv: str) -> None:
    done = subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, timeout=170)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


def _tree() -> list[Path]:
    # root may test somebody else's clone, which git takes for an attack
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_ruff() -> None:
    _run("ruff", "check", ".")


def test_mypy() -> None:
    _run("mypy")


def test_no_tree_file_names_a_package_registry() -> None:
    """Mirrors and indexes belong to the machine: their names are read from its configuration, never written into the tree."""
    texts = [p.read_text(errors="replace") for p in Path("/etc/apt").glob("sources.list*") if p.is_file()]
    texts += [p.read_text(errors="replace") for p in Path("/etc/apt/sources.list.d").glob("*") if p.is_file()]
    pip = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    hosts = {h for text in (*texts, pip.stdout) for h in re.findall(r"https?://(?:[^/\s'\"@]*@)?([^/\s'\":]+)", text)}
    found = [f"{p.relative_to(ROOT)}: {h}" for p in _tree() for h in hosts if h.encode() in p.read_bytes()]
    assert not found
