"""The benchmark works: one quick round, with everything in its report that the full one has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from omtools.bench.samples import CRIU, OURS, RUNC


def test_one_quick_round(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = subprocess.run([sys.executable, "-m", "omtools.bench", "--quick", "--json", out], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    kinds = [row["what"] for row in result["rows"]]
    assert kinds == [*OURS, CRIU, *([RUNC] if result["machine"]["runc"] else [])]
    for row in result["rows"]:
        assert row["what"] in done.stdout
        assert row["felt"] > 0 and row["total"] > 0
    for sample in result["samples"]:
        assert sample["steps"]
    assert all(result["starts"].values())
    (spread,) = result["spread"]
    assert spread["total"] > 0 and spread["ideal"] > 0 and "ten loops" in done.stdout
