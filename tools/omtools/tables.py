"""Tables that fit a width: first the widest texts are cut, then the last columns left out.  No I/O."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

NARROWEST = 8
"""A text is not cut to fewer cells than this, or than its header has."""
GAP = "  "


def lines(heads: Sequence[str], aligns: Sequence[str], rows: Sequence[Sequence[str]], limit: int | None) -> list[str]:
    """The lines of a table, header first.  ``aligns``: ``<`` or ``>`` a column; ``limit``: cells of the terminal, None for whole lines."""
    texts = [list(heads), *map(list, rows)]
    count = len(heads)
    widths = [max(cells(t[i]) for t in texts) for i in range(count)]
    if limit is not None:
        widths = fit(widths, [max(NARROWEST, cells(h)) if a == "<" else w for h, a, w in zip(heads, aligns, widths, strict=True)], limit)
    shown = [_line(t, aligns, widths) for t in texts]
    return shown if limit is None else [cut(line, limit) for line in shown]


def fit(widths: Sequence[int], least: Sequence[int], limit: int) -> list[int]:
    """Widths that fit ``limit``: the widest columns shrink to their ``least``, then columns go from the end (at least one stays)."""
    w = list(widths)
    floor = [min(have, low) for have, low in zip(widths, least, strict=True)]
    while len(w) > 1 and sum(floor[: len(w)]) + len(GAP) * (len(w) - 1) > limit:
        w.pop()
    while (over := sum(w) + len(GAP) * (len(w) - 1) - limit) > 0:
        room = [have - low for have, low in zip(w, floor, strict=False)]
        if not any(room):
            break
        widest = max((i for i in range(len(w)) if room[i]), key=lambda i: w[i])
        next_widest = max((w[i] for i in range(len(w)) if room[i] and i != widest), default=0)
        w[widest] -= min(room[widest], over, max(1, w[widest] - next_widest))
    return w


def _line(texts: Sequence[str], aligns: Sequence[str], widths: Sequence[int]) -> str:
    out = []
    for text, align, width in zip(texts, aligns, widths, strict=False):
        text = cut(text, width)
        space = " " * (width - cells(text))
        out.append(text + space if align == "<" else space + text)
    return GAP.join(out).rstrip()


def cut(text: str, width: int) -> str:
    """``text``, with its end replaced by an ellipsis when it has more than ``width`` cells."""
    if cells(text) <= width:
        return text
    out, used = [], 0
    for c in text:
        used += cells(c)
        if used > width - 1:
            break
        out.append(c)
    return "".join(out) + "…"


def cells(text: str) -> int:
    """How many columns of a terminal a text takes: two for wide characters, none for combining ones (UAX #11)."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
