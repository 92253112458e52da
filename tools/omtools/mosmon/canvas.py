"""A screen as plain data: rows of characters, each with a style.  Nothing here knows curses, so other faces can use it as well."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Style(StrEnum):
    """What a piece of text means; the screen decides how that looks."""

    PLAIN = "plain"
    TITLE = "title"
    HEAD = "head"
    DIM = "dim"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"
    FREE = "free"
    OWN = "own"
    CURSOR = "cursor"


@dataclass(frozen=True)
class Glyphs:
    """The characters of a drawing: ``blocks[i]`` fills (i + 1)/len of a cell from below."""

    blocks: str
    rule: str
    corner: str
    side: str
    ellipsis: str


UTF8 = Glyphs(blocks="▁▂▃▄▅▆▇█", rule="─", corner="└", side="│", ellipsis="…")
ASCII = Glyphs(blocks="#", rule="-", corner="+", side="|", ellipsis="~")


@dataclass
class Canvas:
    """A grid of cells; what is written outside of them is cut off."""

    width: int
    height: int
    text: list[list[str]] = field(init=False)
    style: list[list[Style]] = field(init=False)

    def __post_init__(self) -> None:
        self.text = [[" "] * self.width for _ in range(self.height)]
        self.style = [[Style.PLAIN] * self.width for _ in range(self.height)]

    def put(self, y: int, x: int, s: str, style: Style = Style.PLAIN) -> None:
        """Write a line of text from column ``x`` of row ``y`` on; control characters become a question mark."""
        if not 0 <= y < self.height:
            return
        for i, c in enumerate(s, x):
            if 0 <= i < self.width:
                self.text[y][i] = c if c.isprintable() else "?"
                self.style[y][i] = style

    def column(self, x: int, y: int, s: str, style: Style = Style.PLAIN) -> None:
        """Write downwards from row ``y``."""
        for i, c in enumerate(s):
            self.put(y + i, x, c, style)

    def paint(self, y: int, style: Style) -> None:
        """Give a whole row one style."""
        if 0 <= y < self.height:
            self.style[y] = [style] * self.width

    def lines(self) -> list[str]:
        """The rows as text without trailing blanks."""
        return ["".join(row).rstrip() for row in self.text]


def cut(s: str, width: int, glyphs: Glyphs) -> str:
    """``s`` in at most ``width`` cells; what is missing at its end is shown to be missing."""
    if len(s) <= width:
        return s
    return s[: max(0, width - 1)] + glyphs.ellipsis[:width]
