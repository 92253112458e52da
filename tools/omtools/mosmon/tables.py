"""The other views, as tables: processes, nodes, events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from omtools import output
from omtools.mosmon.canvas import Canvas, Glyphs, Style, cut

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """Head, alignment (``<`` or ``>``), the text of a row, and what it is sorted by."""

    head: str
    align: str
    text: Callable[[Row], str]
    key: Callable[[Row], Any]
    widest: int = 24


def _stays(r: Row) -> str:
    return "; ".join(str(x) for x in r.get("cantmove") or ()) or ("locked" if r.get("locked") else "")


PROCESSES = (
    Column("PID", ">", lambda r: str(r["pid"]), lambda r: r["pid"]),
    Column("HOME", "<", lambda r: str(r["home"]), lambda r: str(r["home"])),
    Column("WHERE", "<", lambda r: str(r["where"]), lambda r: str(r["where"])),
    Column("STATE", "<", lambda r: str(r["state"]), lambda r: str(r["state"])),
    Column("MOVES", ">", lambda r: str(r["nmigs"]), lambda r: r["nmigs"]),
    Column("LOCK", "<", lambda r: "L" if r.get("locked") else "", lambda r: bool(r.get("locked"))),
    Column("CPU", ">", lambda r: output.duration(float(r["cpu_s"])), lambda r: r["cpu_s"]),
    Column("MEM", ">", lambda r: output.size(float(r["rss"])), lambda r: r["rss"]),
    Column("COMMAND", "<", lambda r: str(r["comm"]), lambda r: str(r["comm"])),
    Column("WHY IT STAYS", "<", _stays, _stays, widest=200),
)

NODES = (
    Column("NAME", "<", lambda r: f"{r['name']}{'*' if r.get('self') else ''}", lambda r: str(r["name"])),
    Column("ADDRESS", "<", lambda r: str(r.get("addr", "")), lambda r: str(r.get("addr", ""))),
    Column("STATE", "<", lambda r: str(r.get("state", "")), lambda r: str(r.get("state", ""))),
    Column("SPEED", ">", lambda r: f"{float(r.get('speed', 0)):.2f}", lambda r: r.get("speed", 0)),
    Column("CPUS", ">", lambda r: f"{float(r.get('cpus', 0)):g}", lambda r: r.get("cpus", 0)),
    Column("LOAD", ">", lambda r: f"{float(r.get('load', 0)):.2f}", lambda r: r.get("load", 0)),
    Column("MEM", ">", lambda r: output.size(float(r.get("mem_total", 0))), lambda r: r.get("mem_total", 0)),
    Column("FREE", ">", lambda r: output.size(float(r.get("mem_free", 0))), lambda r: r.get("mem_free", 0)),
    Column("GUESTS", ">", lambda r: str(r.get("guests", 0)), lambda r: r.get("guests", 0)),
    Column("AGE", ">", lambda r: f"{float(r.get('age_s', 0)):.0f}s", lambda r: r.get("age_s", 0)),
    Column(
        "ACCEPTS", "<", lambda r: "yes" if r.get("accepting", True) else f"no: {r.get('why_not') or '?'}",
        lambda r: bool(r.get("accepting", True)), widest=200,
    ),
)  # fmt: skip


def _what(e: Row) -> str:
    way = f" {e['from']} -> {e['to']}" if e.get("from") and e.get("to") else f" {e.get('to') or e.get('from') or ''}".rstrip()
    pause = f", paused {output.milliseconds(float(e['pause_ms']))}" if e.get("pause_ms") is not None else ""
    said = str(e.get("error") or e.get("reason") or "")
    return f"{e.get('outcome', '')}{way}{pause}{': ' + said if said else ''}"


EVENTS = (
    Column("TIME", "<", lambda r: time.strftime("%H:%M:%S", time.localtime(float(r.get("t", 0)))), lambda r: r.get("t", 0)),
    Column("KIND", "<", lambda r: str(r.get("kind", "")), lambda r: str(r.get("kind", ""))),
    Column("PID", ">", lambda r: str(r.get("pid", "")), lambda r: r.get("pid", 0)),
    Column("COMMAND", "<", lambda r: str(r.get("comm", "")), lambda r: str(r.get("comm", ""))),
    Column("WHAT", "<", _what, _what, widest=400),
)


def matching(rows: Sequence[Row], columns: Sequence[Column], words: str) -> list[Row]:
    """The rows in which every word of the filter occurs, whatever the case."""
    wanted = words.lower().split()
    return [r for r in rows if all(w in " ".join(c.text(r) for c in columns).lower() for w in wanted)]


def ordered(rows: Sequence[Row], columns: Sequence[Column], by: int, backwards: bool) -> list[Row]:
    """Sorted by a column; equal rows keep their order."""
    return sorted(rows, key=columns[by % len(columns)].key, reverse=backwards)


def draw(
    canvas: Canvas,
    rows: Sequence[Row],
    columns: Sequence[Column],
    glyphs: Glyphs,
    *,
    area: tuple[int, int],
    by: int,
    backwards: bool,
    cursor: int,
    first: int,
    nothing: str,
    style: Callable[[Row], Style] = lambda r: Style.PLAIN,
) -> int:
    """Draw a table into the rows ``area`` of the canvas, with the row ``cursor`` in sight; returns the first row shown."""
    upper, lower = area
    tall = max(1, lower - upper - 1)
    first = max(0, min(first, cursor, len(rows) - 1))
    if cursor >= first + tall:
        first = cursor - tall + 1
    shown = rows[first : first + tall]
    texts = [[c.text(r) for c in columns] for r in shown]
    heads = [c.head + (("v" if backwards else "^") if i == by % len(columns) else "") for i, c in enumerate(columns)]
    widths = [min(c.widest, max([len(h), *(len(t[i]) for t in texts)])) for i, (c, h) in enumerate(zip(columns, heads, strict=True))]
    canvas.paint(upper, Style.HEAD)
    _line(canvas, upper, heads, columns, widths, Style.HEAD, glyphs)
    if not rows:
        canvas.put(upper + 2, 2, nothing, Style.DIM)
    for i, (r, t) in enumerate(zip(shown, texts, strict=True)):
        at = first + i == cursor
        if at:
            canvas.paint(upper + 1 + i, Style.CURSOR)
        _line(canvas, upper + 1 + i, t, columns, widths, Style.CURSOR if at else style(r), glyphs)
    return first


def _line(
    canvas: Canvas, y: int, texts: Sequence[str], columns: Sequence[Column], widths: Sequence[int], style: Style, glyphs: Glyphs
) -> None:
    x = 0
    for t, c, w in zip(texts, columns, widths, strict=True):
        room = min(w, canvas.width - x)
        if room <= 0:
            return
        canvas.put(y, x, f"{cut(t, room, glyphs):{c.align}{room}}", style)
        x += w + 2
