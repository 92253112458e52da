"""The files that man and shells look for below a prefix's ``share``.  Only the standard library: setup.py uses it, too."""

from __future__ import annotations

from pathlib import Path

from omtools import roff

COMMANDS = ("migrate", "moslab", "mosctl", "mosmon", "mosps", "mosrun", "omdiscd")
"""Commands with completion.  (mospam is typed by nobody.)"""
_SCRIPTS = Path(__file__).parent / "completion"


def write(pages: Path, share: Path, source: str) -> list[Path]:
    """Write the manual pages of the directory ``pages``, and the scripts for completion, below ``share``; returns the files."""
    files = roff.write_all(pages, share / "man", source)
    # bash-completion and fish look for a file a command, zsh for one that names its commands
    wanted = [("mig.bash", f"bash-completion/completions/{c}") for c in COMMANDS]
    wanted += [("mig.fish", f"fish/vendor_completions.d/{c}.fish") for c in COMMANDS]
    for script, target in [*wanted, ("mig.zsh", "zsh/site-functions/_mig")]:
        file = share / target
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((_SCRIPTS / script).read_bytes())
        files.append(file)
    return files
