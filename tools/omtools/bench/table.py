"""The report as text: tables in Markdown, which read as well on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from omtools.bench.samples import HERE_TO_N2, PEERS, Row, Sample, ratio, rows


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers, aligned."""
    width = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]

    def text(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, width, strict=True))) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(width)) + "|"
    return "\n".join([text(head), rule, *map(text, body)])


def ms(value: float) -> str:
    """Milliseconds with two or three digits that mean something; "" for none."""
    return "" if not value else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def moves(samples: Sequence[Sample]) -> str:
    """Every kind of move and every size, in medians."""
    body = [
        [r.what, f"{r.mib}", ms(r.felt), f"{ms(r.low)}-{ms(r.high)}", ms(r.said), ms(r.total), ms(r.prepare), f"{r.runs}"]
        for r in rows(samples)
    ]
    return table(["move", "MiB", "pause felt", "from-to", "pause told", "total", "before it", "runs"], body)


def ratios(samples: Sequence[Sample]) -> str:
    """How much longer the peers' pauses are; "" without peers."""
    sizes = sorted({s.mib for s in samples})
    body = []
    for peer in PEERS:
        found = [ratio(samples, peer, mib) for mib in sizes]
        if any(found):
            body.append([peer, *(f"{r:.1f} x" if r else "" for r in found)])
    return table(["pause felt, beside home to n2", *(f"{mib} MiB" for mib in sizes)], body) if body else ""


def steps(samples: Sequence[Sample]) -> str:
    """Where the time of our first move goes, step by step."""
    ours = [r for r in rows(samples) if r.what == HERE_TO_N2]
    names = list(dict.fromkeys(name for r in ours for name in r.steps))
    return table(["step of home to n2", *(f"{r.mib} MiB" for r in ours)], [[n, *(ms(_step(r, n)) for r in ours)] for n in names])


def _step(r: Row, name: str) -> float:
    return r.steps.get(name, 0.0)
