"""How long things take to start: a lab, a program by mosrun, and the commands that a person types.

``python -m omtools.bench.starts N`` runs inside a node and prints, as JSON, the times of N runs of ``true``, of ``mosrun true``, and of
each of :data:`COMMANDS`.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mig.errors import MigError
from omtools.bench.lab import moslab
from omtools.moslab import lab as labs
from omtools.moslab import power

PLAIN, MOSRUN, UP, DOWN = "true", "mosrun true", "moslab up 3", "moslab down"
COMMANDS = {
    **{f"{c} --help": [c, "--help"] for c in ("migrate", "mosrun", "mosps", "mosctl", "mosmon", "moslab", "omdiscd")},
    "mosctl status": ["mosctl", "status"], "mosps": ["mosps"], "mosctl getload": ["mosctl", "getload"],
}  # fmt: skip
"""Goals on an idle machine: 150 ms for help, 300 ms for what asks omdiscd."""


def lab_times() -> dict[str, float]:
    """Milliseconds of one ``moslab up 3`` and of its ``down``."""
    name = f"bench-{secrets.token_hex(4)}"
    try:
        began = time.monotonic()
        moslab(name, "up", "3")
        ready = time.monotonic()
        moslab(name, "down")
        return {UP: (ready - began) * 1e3, DOWN: (time.monotonic() - ready) * 1e3}
    finally:
        power.down(labs.Lab(name))


def program_times(lab: labs.Lab, runs: int) -> dict[str, list[float]]:
    """Milliseconds of ``runs`` starts of each, in node n1 of ``lab``; raises :class:`MigError`."""
    moslab_program = str(Path(sys.prefix) / "bin" / "moslab")
    argv = [moslab_program, "--lab", lab.name, "run", "n1", "--", sys.executable, "-m", "omtools.bench.starts", str(runs)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise MigError("the starts could not be measured", reasons=done.stderr.splitlines()[-3:])
    times: dict[str, list[float]] = json.loads(done.stdout)
    return times


def _time(argv: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return (time.monotonic() - began) * 1e3


def main() -> None:
    """Inside the node."""
    found: dict[str, Any] = {PLAIN: [], MOSRUN: []}
    _time(["mosrun", "true"])  # reads the files
    for _ in range(int(sys.argv[1])):
        found[PLAIN].append(_time(["true"]))
        found[MOSRUN].append(_time(["mosrun", "true"]))
        for name, argv in COMMANDS.items():
            found.setdefault(name, []).append(_time(argv))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
