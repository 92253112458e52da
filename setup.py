"""What pyproject.toml cannot say: manual pages and scripts for completion go to where man and shells look."""

import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from omtools import share_files  # noqa: E402

from mig import __version__  # noqa: E402  # the project's own directories come first

found: dict[str, list[str]] = {}
for file in share_files.write(ROOT / "docs" / "man", Path("build") / "share", f"openmosix-userspace {__version__}"):
    found.setdefault(str(file.relative_to("build").parent), []).append(str(file))

setup(data_files=list(found.items()))
