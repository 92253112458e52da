"""mosmon on a terminal: keys from curses into the model, canvases from the model onto the screen."""

from __future__ import annotations

import contextlib
import curses
import os
import queue

from omtools.mosmon.canvas import ASCII, UTF8, Canvas, Glyphs, Style
from omtools.mosmon.feed import Feed
from omtools.mosmon.model import Model, Order, Quit, Snapshot

TICK = 100
"""Milliseconds that a key is waited for before news are looked at."""
POOR_TERMINALS = ("linux", "dumb", "vt")
"""Terminals (by the beginning of their names) whose fonts lack partial blocks."""
KEYS = {
    curses.KEY_UP: "up", curses.KEY_DOWN: "down", curses.KEY_LEFT: "left", curses.KEY_RIGHT: "right", curses.KEY_PPAGE: "pgup",
    curses.KEY_NPAGE: "pgdn", curses.KEY_HOME: "home", curses.KEY_END: "end", curses.KEY_ENTER: "enter", curses.KEY_BACKSPACE: "backspace",
}  # fmt: skip
CHARACTERS = {"\n": "enter", "\r": "enter", "\t": "tab", "\x1b": "esc", "\x7f": "backspace", "\b": "backspace"}


def glyphs(encoding: str, term: str) -> Glyphs:
    """What the terminal can draw."""
    return UTF8 if encoding.upper().replace("-", "") == "UTF8" and not term.startswith(POOR_TERMINALS) else ASCII


def attributes(colour: bool) -> dict[Style, int]:
    """curses attributes of each style; without colour what matters is still told apart."""
    plain = {
        Style.PLAIN: curses.A_NORMAL, Style.TITLE: curses.A_REVERSE, Style.HEAD: curses.A_BOLD, Style.DIM: curses.A_DIM,
        Style.GOOD: curses.A_NORMAL, Style.WARN: curses.A_NORMAL, Style.BAD: curses.A_BOLD, Style.FREE: curses.A_DIM,
        Style.OWN: curses.A_BOLD, Style.CURSOR: curses.A_REVERSE,
    }  # fmt: skip
    if not colour:
        return plain
    curses.start_color()
    curses.use_default_colors()
    pairs = {
        Style.GOOD: curses.COLOR_GREEN, Style.WARN: curses.COLOR_YELLOW, Style.BAD: curses.COLOR_RED, Style.FREE: curses.COLOR_CYAN,
        Style.OWN: curses.COLOR_GREEN,
    }  # fmt: skip
    for number, (style, c) in enumerate(pairs.items(), 1):
        curses.init_pair(number, c, -1)
        plain[style] |= curses.color_pair(number)
    return plain


class Screen:
    """One mosmon in one terminal."""

    def __init__(self, window: curses.window, model: Model, feed: Feed) -> None:
        self.window, self.model, self.feed = window, model, feed
        self.styles = attributes(curses.has_colors() and not os.environ.get("NO_COLOR"))
        window.keypad(True)
        window.timeout(TICK)
        with contextlib.suppress(curses.error):  # a terminal without that
            curses.curs_set(0)

    def run(self) -> None:
        """Until the user quits."""
        self._draw()
        while True:
            changed = self._news()
            key = self._key()
            if key:
                for action in self.model.key(key):
                    match action:
                        case Quit():
                            return
                        case Order():
                            self.feed.order(action)
            if key or changed:
                self._draw()

    def _news(self) -> bool:
        changed = False
        while True:
            try:
                news = self.feed.news.get_nowait()
            except queue.Empty:
                return changed
            changed = True
            if isinstance(news, Snapshot):
                self.model.update(news)
            else:
                self.model.say(*news)

    def _key(self) -> str:
        """The next key, or an empty string when none came; a change of the window's size is the key ``resize``."""
        try:
            key = self.window.get_wch()
        except curses.error:
            return ""
        if isinstance(key, int):
            return "resize" if key == curses.KEY_RESIZE else KEYS.get(key, "unknown")
        return CHARACTERS.get(key, key)

    def _draw(self) -> None:
        height, width = self.window.getmaxyx()
        canvas = self.model.render(width, height)
        self.window.erase()
        for y in range(canvas.height):
            self._row(canvas, y)
        self.window.noutrefresh()
        curses.doupdate()

    def _row(self, canvas: Canvas, y: int) -> None:
        text, styles = canvas.text[y], canvas.style[y]
        x = 0
        while x < canvas.width:
            end = x
            while end < canvas.width and styles[end] is styles[x]:
                end += 1
            try:
                self.window.addstr(y, x, "".join(text[x:end]), self.styles[styles[x]])
            except curses.error:
                pass  # the last cell of the screen: written, but the cursor cannot go on; or the window has just shrunk
            x = end
