"""Simulate pools and write the tables of docs/gossip.md: ``python -m omtools.poolsim`` (``--help``); the figures are in
docs/gossip.json."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from mig.pool.timing import Timing, memberlist

from . import page, scenes

ROOT = Path(__file__).resolve().parents[3]
FIGURES, PAGE = ROOT / "docs" / "gossip.json", ROOT / "docs" / "gossip.md"
PRESETS = {"ours": Timing, "memberlist": memberlist}
CALM_S = 20.0
"""Virtual seconds at rest: ages and bytes are steady then."""
SCENES = ("calm", "loss1", "loss10", "loss30", "partition", "hundredth", "stalls")
"""``hundredth``: a hundredth of the nodes is cut off, which costs a large pool's simulation a fraction of cutting it into halves."""


def simulate(nodes: int, preset: str, scene: str, seed: int, seconds: float, watched: float) -> dict[str, Any]:
    """One run, as a row of the figures."""
    timing = PRESETS[preset]()
    if scene == "calm":
        seconds = min(seconds, CALM_S)
    gc.disable()  # the machines make no cycles, and to look for some in 10,000 tables of 10,000 takes half of the time
    f = scenes.Figures(nodes)
    began = time.process_time()
    if scene == "calm":
        scenes.calm(f, timing, seed, seconds=seconds, deaths=3 if nodes < 1000 else 1)
    elif scene.startswith("loss"):
        scenes.lossy(f, timing, seed, int(scene[4:]) / 100, seconds=seconds)
    elif scene in ("partition", "hundredth"):
        scenes.partitioned(f, timing, seed, seconds=seconds, every=2 if scene == "partition" else 100, watched=watched)
    else:
        scenes.stalls(f, timing, seed, seconds=seconds)
    row: dict[str, Any] = {"nodes": nodes, "preset": preset, "scene": scene, "seed": seed, "seconds": seconds}
    if scene == "calm":
        a = sorted(f.ages)
        row |= {"join": f.join, "leave": f.leave, "death": f.death, "bytes_s": f.bytes_s, "busiest": f.busiest}
        row |= {"age_mean": sum(a) / len(a), "age_p95": a[int(len(a) * 0.95)], "age_max": a[-1]}
    else:
        row["false"] = next(iter(f.false_deaths.values()))
    if scene in ("partition", "hundredth"):
        row |= {"healed": f.healed, "watched": watched}
    row["cpu_s"] = time.process_time() - began
    return {k: rounded(v) for k, v in row.items()}


def rounded(v: Any) -> Any:
    """Numbers as they are published; None for never."""
    if isinstance(v, float):
        return round(v, 2) if v != float("inf") else None
    return [rounded(x) for x in v] if isinstance(v, (list, tuple)) else v


def main() -> int:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m omtools.poolsim", description=__doc__)
    p.add_argument("--nodes", type=int, action="append", metavar="N", help="pool size; may be repeated (default: 10, 100, 1000)")
    p.add_argument("--preset", action="append", choices=PRESETS)
    p.add_argument("--scene", action="append", choices=SCENES)
    p.add_argument("--seed", type=int, action="append")
    p.add_argument("--seconds", type=float, default=60.0, help="of loss, partition or stalls (default 60); at rest 20 at most")
    p.add_argument("--watch", type=float, default=90.0, metavar="SECONDS", help="after a cut, until all see all (default 90)")
    p.add_argument("--write", action="store_true", help=f"only write the tables of {PAGE.name} from the figures that there are")
    args = p.parse_args()
    rows = json.loads(FIGURES.read_text()) if FIGURES.exists() else []
    if not args.write:
        for nodes in args.nodes or (10, 100, 1000):
            for preset in args.preset or PRESETS:
                for scene in args.scene or SCENES:
                    for seed in args.seed or (1,):
                        row = simulate(nodes, preset, scene, seed, args.seconds, args.watch)
                        print(json.dumps(row), flush=True)
                        rows = json.loads(FIGURES.read_text()) if FIGURES.exists() else []
                        rows = [r for r in rows if page.key(r) != page.key(row)] + [row]
                        FIGURES.write_text("[\n" + ",\n".join(json.dumps(r) for r in sorted(rows, key=page.key)) + "\n]\n")
    PAGE.write_text(page.page(PAGE.read_text(), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
