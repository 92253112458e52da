"""The bar chart: a bar a node, in openMosix's layouts and quantities."""

from __future__ import annotations

import math
import os.path
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from omtools import output
from omtools.mosmon.canvas import Canvas, Glyphs, Style

Node = dict[str, Any]
"""A row of the daemon's status."""

STRETCH = 9
"""Columns of a bar and its gap where there are few nodes."""
LOG_DECADES = 3
"""The log scale reaches from 1/1000 of its top down."""


class Quantity(StrEnum):
    """What a bar's height means."""

    LOAD = "load"
    LOG_LOAD = "log load"
    SPEED = "speed"
    MEMORY = "memory"
    RAW_MEMORY = "raw memory"
    UTILIZABILITY = "utilizability"


class Layout(Enum):
    """How the nodes' names stand below the bars; the value is openMosix's key for it."""

    WIDE = "w"
    VERTICAL = "v"
    TIGHT = "V"
    AUTO = "a"


@dataclass(frozen=True)
class Bar:
    """A node's bar: the solid part up to ``value``, then free (``+``) up to ``total``."""

    label: str
    value: float
    total: float
    style: Style
    note: str = ""
    dead: bool = False


def unit(q: Quantity) -> str:
    """What the numbers of the scale count."""
    return {
        Quantity.LOAD: "load, 1 = 100 % of a standard CPU",
        Quantity.LOG_LOAD: "load, log scale",
        Quantity.SPEED: "speed, 1 = a standard CPU",
        Quantity.MEMORY: "memory: used, + free",
        Quantity.RAW_MEMORY: "raw memory: used and cached, + unused",
        Quantity.UTILIZABILITY: "utilizability, % of the time not lost to waiting for memory",
    }[q]


def bar_of(n: Node, q: Quantity, label: str) -> Bar:
    """The bar of one node."""
    state = str(n.get("state", "alive"))
    if state != "alive":
        suspect = state == "suspect"
        return Bar(label, 0, 0, Style.WARN if suspect else Style.BAD, note="?" if suspect else "", dead=not suspect)
    total = float(n.get("mem_total", 0))
    style = Style.OWN if n.get("self") else Style.GOOD if n.get("accepting", True) else Style.WARN
    match q:
        case Quantity.LOAD | Quantity.LOG_LOAD:
            return Bar(label, float(n.get("load", 0)), 0, style)
        case Quantity.SPEED:
            cpus = float(n.get("cpus", 1))
            return Bar(label, float(n.get("speed", 0)), 0, style, note=f"{cpus:g}" if cpus != 1 else "")
        case Quantity.MEMORY:
            return Bar(label, total - float(n.get("mem_free", 0)), total, style)
        case Quantity.RAW_MEMORY:
            unused = float(n.get("mem_unused", -1))
            if unused < 0:
                return Bar(label, 0, 0, Style.DIM, note="?")  # a node of an older version
            return Bar(label, total - unused, total, style)
        case Quantity.UTILIZABILITY:
            return Bar(label, 100.0 - max(0.0, float(n.get("psi_mem") or 0.0)), 0, style)


def labels(names: Sequence[str]) -> list[str]:
    """Names short enough for bars: what all of them begin with goes, as long as something tells each apart."""
    if len(names) < 2:
        return list(names)
    prefix = os.path.commonprefix(list(names))  # noqa: RUF071  # of characters: these are no paths
    if any(n == prefix for n in names):
        return list(names)
    while prefix and prefix[-1].isdigit():
        prefix = prefix[:-1]  # 10 and 11 stay 10 and 11
    return [n[len(prefix) :] for n in names]


def ceiling(top: float) -> float:
    """The end of a scale that shows ``top``: 1, 2 or 5 times a power of ten."""
    if top <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(top))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= top * (1 - 1e-9))


def scale_top(bars: Sequence[Bar], q: Quantity) -> float:
    """The value at the upper end of the chart."""
    if q is Quantity.UTILIZABILITY:
        return 100.0
    most = max((max(b.value, b.total) for b in bars), default=0.0)
    return most or 1.0 if q in (Quantity.MEMORY, Quantity.RAW_MEMORY) else max(1.0, ceiling(most))


def height_of(value: float, top: float, rows: int, q: Quantity) -> float:
    """Rows that a value fills."""
    if value <= 0:
        return 0.0
    share = value / top
    if q is Quantity.LOG_LOAD:
        share = 1 + math.log10(max(share, 10.0**-LOG_DECADES)) / LOG_DECADES
    return min(1.0, share) * rows


def value_at(share: float, top: float, q: Quantity) -> str:
    """The label of the scale at this share of its height."""
    if q is Quantity.LOG_LOAD:
        return f"{top * 10 ** (LOG_DECADES * (share - 1)):.3g}"
    v = top * share
    if q in (Quantity.MEMORY, Quantity.RAW_MEMORY):
        return output.size(v)
    return f"{v:.0f}" if top >= 20 else f"{v:.2g}" if top >= 1 else f"{v:.2f}"


def step_of(layout: Layout, wide: int) -> int:
    """Columns from one bar to the next, where the longest label has ``wide`` characters."""
    return {Layout.WIDE: max(wide, 2) + 1, Layout.VERTICAL: 2, Layout.TIGHT: 1}[layout]


def choose(layout: Layout, count: int, columns: int, wide: int) -> Layout:
    """openMosix's automatic numbering: the most readable layout in which all nodes are seen at once, else the tightest."""
    if layout is not Layout.AUTO:
        return layout
    for candidate in (Layout.WIDE, Layout.VERTICAL):
        if count * step_of(candidate, wide) <= columns:
            return candidate
    return Layout.TIGHT


def draw(
    canvas: Canvas,
    nodes: Sequence[Node],
    q: Quantity,
    layout: Layout,
    glyphs: Glyphs,
    *,
    rows: tuple[int, int],
    first: int = 0,
) -> tuple[int, int]:
    """Draw the chart into ``rows`` (from, below the last) of the canvas, beginning with node ``first`` if not all fit.

    Returns the index of the first node shown, and the number of nodes shown.
    """
    whole = [str(n["name"]) for n in nodes]
    roomy = layout in (Layout.WIDE, Layout.AUTO) and len(nodes) * (max(map(len, whole), default=0) + 1) <= canvas.width - 10
    names = whole if roomy else labels(whole)
    bars = [bar_of(n, q, name) for n, name in zip(nodes, names, strict=True)]
    top = scale_top(bars, q)
    margin = max((len(value_at(s, top, q)) for s in (0.0, 0.25, 0.5, 0.75, 1.0)), default=1) + 1
    wide = max((len(b.label) for b in bars), default=1)
    columns = max(1, canvas.width - margin - 2)
    layout = choose(layout, len(bars), columns, wide)
    step = step_of(layout, wide)
    if layout is Layout.WIDE:
        step = max(step, min(STRETCH, columns // max(1, len(bars))))
    below = 1 if layout is Layout.WIDE else min(wide, 6)
    upper, lower = rows
    base = lower - below - 1  # the row of the axis
    tall = base - upper - (1 if any(b.note for b in bars) else 0)
    if tall < 2:
        canvas.put(upper, 0, "the window is too small for a chart", Style.WARN)
        return first, 0
    fit = max(1, columns // step)
    first = max(0, min(first, len(bars) - fit))
    shown = bars[first : first + fit]
    _scale(canvas, base, tall, margin, top, q, glyphs)
    for i, b in enumerate(shown):
        x = margin + 1 + i * step
        thick = 1 if layout is not Layout.WIDE else step - 2 if step > 4 else step - 1
        _bar(canvas, b, x, base, tall, top, q, thick, glyphs)
        if layout is Layout.WIDE:
            canvas.put(base + 1, x, b.label, b.style)
        else:
            canvas.column(x, base + 1, b.label[-below:], b.style)
    return first, len(shown)


def _scale(canvas: Canvas, base: int, tall: int, margin: int, top: float, q: Quantity, glyphs: Glyphs) -> None:
    for y in range(base - tall, base):
        canvas.put(y, margin, glyphs.side, Style.DIM)
    canvas.put(base, margin, glyphs.corner + glyphs.rule * (canvas.width - margin - 1), Style.DIM)
    fifths = q in (Quantity.LOAD, Quantity.SPEED) and f"{top:e}"[0] == "5"  # marks at round numbers
    marks = (1.0, 0.8, 0.6, 0.4, 0.2) if fifths else (1.0, 0.75, 0.5, 0.25)
    for share in marks if tall >= 8 else (1.0, marks[2]):
        text = value_at(share, top, q)
        y = base - max(1, round(tall * share))
        canvas.put(y, margin - 1 - len(text), text, Style.DIM)


def _bar(canvas: Canvas, b: Bar, x: int, base: int, tall: int, top: float, q: Quantity, thick: int, glyphs: Glyphs) -> None:
    if b.dead:
        canvas.column(x, base - min(4, tall), "DEAD"[: min(4, tall)], b.style)
        return
    filled = height_of(b.value, top, tall, q)
    whole = int(filled)
    part = int((filled - whole) * len(glyphs.blocks))
    for i in range(whole):
        canvas.put(base - 1 - i, x, glyphs.blocks[-1] * thick, b.style)
    if part and whole < tall:
        canvas.put(base - 1 - whole, x, glyphs.blocks[part - 1] * thick, b.style)
        whole += 1
    elif b.value > 0 and whole == 0:
        canvas.put(base - 1, x, glyphs.blocks[0] * thick, b.style)  # little is not nothing
        whole = 1
    if b.total:
        for i in range(whole, round(height_of(b.total, top, tall, q))):
            canvas.put(base - 1 - i, x, "+" * thick, Style.FREE)
    if b.note:
        canvas.put(base - 1 - max(whole, 1), x, b.note, Style.DIM)


def totals(nodes: Sequence[Node]) -> str:
    """A line about the whole pool: what its living nodes have together."""
    alive = [n for n in nodes if n.get("state", "alive") == "alive"]

    def total(value: Callable[[Node], Any]) -> float:
        return sum(float(value(n) or 0) for n in alive)

    cpus = total(lambda n: n.get("cpus"))
    power = total(lambda n: float(n.get("speed", 1)) * float(n.get("cpus", 1)))
    used = total(lambda n: float(n.get("mem_total", 0)) - float(n.get("mem_free", 0)))
    # a load is per standard CPU, so that of the pool weighs each node by its power
    load = total(lambda n: float(n.get("load", 0)) * float(n.get("speed", 1)) * float(n.get("cpus", 1))) / power if power else 0.0
    guests = int(total(lambda n: n.get("guests")))
    memory = total(lambda n: n.get("mem_total"))
    return (
        f"nodes {len(alive)} of {len(nodes)}  CPUs {cpus:g}  power {power:.2f}  load {load:.2f}"
        f"  memory {output.size(used)} of {output.size(memory)}  guests {guests}"
    )
