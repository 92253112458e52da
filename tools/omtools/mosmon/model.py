"""What mosmon shows and does, without a screen: snapshots and keys go in, canvases and actions come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omtools.mosmon import chart, tables
from omtools.mosmon.canvas import UTF8, Canvas, Glyphs, Style, cut
from omtools.mosmon.chart import Layout, Quantity
from omtools.mosmon.tables import Column, Row

HELP = """\
mosmon shows the pool: a bar, or a row, for each node.

 chart       l load          L load, log scale     s speed and CPUs
             m memory        r raw memory          u utilizability
             w wide  v vertical  V tight  a automatic numbering
             d dead nodes on, off   t totals on, off   left, right: other nodes
 views       c chart   p processes   n nodes   e events   Tab the next one
 tables      up, down, PgUp, PgDn, Home, End: another row
             < > sort by another column    R backwards
             / filter: rows with all of these words; Enter keeps, Esc drops it
 processes   Enter or M  move the selected one to a node, 'home' or 'balance'
             H  send it home        K  lock it, or unlock it
 nodes       X  expel all guests from the selected node
             B  block it, or let guests come again
 any time    ? help   q quit

A load of 1 is 100 % of a standard CPU (speed 1).  Your own node is the bright
one, with a * in tables; yellow ones accept no guests, ? is one that does not
answer now."""


class View(Enum):
    """What fills the screen; the value is its key."""

    CHART = "c"
    PROCESSES = "p"
    NODES = "n"
    EVENTS = "e"


TABLES: dict[View, tuple[Column, ...]] = {View.PROCESSES: tables.PROCESSES, View.NODES: tables.NODES, View.EVENTS: tables.EVENTS}
QUANTITIES = {
    "l": Quantity.LOAD,
    "L": Quantity.LOG_LOAD,
    "s": Quantity.SPEED,
    "m": Quantity.MEMORY,
    "r": Quantity.RAW_MEMORY,
    "u": Quantity.UTILIZABILITY,
}
NOTHING = {
    View.PROCESSES: "no job or guest is known here; start one: mosrun CMD",
    View.NODES: "no node",
    View.EVENTS: "nothing has happened yet",
}


@dataclass(frozen=True)
class Snapshot:
    """What the daemon said last: rows of status, mosps and events.  ``error``: why there is nothing newer."""

    nodes: list[Row] = field(default_factory=list)
    guests: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    me: str = ""
    error: str = ""


@dataclass(frozen=True)
class Quit:
    """End the program."""


@dataclass(frozen=True)
class Order:
    """Ask the daemon for this, and tell the model what came of it: ``doing`` meanwhile, ``done`` afterwards."""

    op: str
    args: dict[str, Any]
    doing: str
    done: str


Action = Quit | Order


@dataclass
class Prompt:
    """A question at the foot of the screen.  ``answer`` gets the text; a yes-no question is answered by one key."""

    question: str
    answer: Callable[[str], list[Action]]
    yes_no: bool = False
    text: str = ""


@dataclass
class Place:
    """Where a table stands: sorted how, and which row is selected."""

    by: int = 0
    backwards: bool = False
    cursor: int = 0
    first: int = 0
    selected: object = None


class Model:
    """The state of one mosmon."""

    def __init__(self, *, glyphs: Glyphs = UTF8, root: bool = True) -> None:
        self.glyphs = glyphs
        self.root = root
        self.snapshot = Snapshot()
        self.view = View.CHART
        self.quantity = Quantity.LOAD
        self.layout = Layout.AUTO
        self.dead = False
        self.totals = False
        self.first = 0
        self.help = False
        self.filter = ""
        self.prompt: Prompt | None = None
        self.message = ""
        self.message_style = Style.PLAIN
        self.places = {v: Place() for v in TABLES}
        self.places[View.EVENTS].backwards = True
        self._page = 10
        self._shown = 0

    # -- events ----------------------------------------------------------------------------------------------------------------

    def update(self, snapshot: Snapshot) -> None:
        """News of the daemon.  Where it has none, the last picture stays, and the foot says so."""
        if snapshot.error and self.snapshot.nodes:
            s = self.snapshot
            snapshot = Snapshot(s.nodes, s.guests, s.events, s.me, snapshot.error)
        self.snapshot = snapshot

    def say(self, text: str, style: Style = Style.PLAIN) -> None:
        """A line at the foot of the screen, until the next key."""
        self.message, self.message_style = text, style

    def key(self, key: str) -> list[Action]:
        """A key was pressed: a character, or the name of a special key."""
        if self.prompt is not None:
            return self._answer(self.prompt, key)
        self.message = ""
        if self.help:
            self.help = False
            return [Quit()] if key == "q" else []
        if key == "q":
            return [Quit()]
        if key == "?":
            self.help = True
        elif key == "/":
            self._ask_filter()
        elif key == "tab":
            views = list(View)
            self.view = views[(views.index(self.view) + 1) % len(views)]
        elif key in [v.value for v in View]:
            self.view = View(key)
        elif key in QUANTITIES:
            self.quantity, self.view = QUANTITIES[key], View.CHART
        elif key in [x.value for x in Layout]:
            self.layout, self.view = Layout(key), View.CHART
        elif key == "d":
            self.dead = not self.dead
        elif key == "t":
            self.totals = not self.totals
        elif self.view is View.CHART:
            self._scroll(key)
        else:
            return self._table_key(key)
        return []

    def _scroll(self, key: str) -> None:
        step = {"left": -1, "right": 1, "pgup": -self._shown, "pgdn": self._shown, "home": -(10**6), "end": 10**6}.get(key, 0)
        self.first = max(0, min(self.first + step, len(self.nodes()) - self._shown))

    def _table_key(self, key: str) -> list[Action]:
        place, rows = self.places[self.view], self.rows()
        if key in ("<", ">"):
            place.by = (place.by + (1 if key == ">" else -1)) % len(TABLES[self.view])
        elif key == "R":
            place.backwards = not place.backwards
        elif rows:
            page = self._page
            moves = {"up": -1, "down": 1, "pgup": -page, "pgdn": page, "home": -(10**9), "end": 10**9}
            if key in moves:
                place.cursor = max(0, min(len(rows) - 1, place.cursor + moves[key]))
                place.selected = _identity(rows[place.cursor])
            elif self.view is View.PROCESSES:
                return self._process_key(key, rows[place.cursor])
            elif self.view is View.NODES:
                return self._node_key(key, rows[place.cursor])
        return []

    def _process_key(self, key: str, r: Row) -> list[Action]:
        pid, what = int(r["pid"]), f"{r['comm']} ({r['pid']})"
        pid = int(r.get("host_pid") or pid) if r.get("role") == "keeper" else pid
        if key in ("enter", "M"):

            def move(to: str) -> list[Action]:
                return [_move(pid, what, to.strip())] if to.strip() else []

            self.prompt = Prompt(f"move {what} from {r['where']} to (node, home, balance): ", move)
        elif key == "H":
            return [_move(pid, what, "home")]
        elif key == "K":
            op, done = ("unlock", "may be moved again") if r.get("locked") else ("lock", "is locked")
            return [Order(op, {"pid": pid}, f"{op}ing {what}", f"{what} {done}")]
        return []

    def _node_key(self, key: str, n: Row) -> list[Action]:
        name, there = str(n["name"]), {"node": str(n["id"])}  # names need not be unique
        if key == "X":

            def expel(yes: str) -> list[Action]:
                return [Order("expel", there, f"expelling all guests from {name}", f"no guest is left on {name}")] if yes == "y" else []

            self.prompt = Prompt(f"expel all guests from {name}, and let no more come? (y/n) ", expel, yes_no=True)
        elif key == "B":
            if n.get("accepting", True):
                return [Order("block", there, f"blocking {name}", f"no more guests come to {name}")]
            return [Order("noblock", there, f"unblocking {name}", f"{name} is not blocked any more")]
        return []

    def _ask_filter(self) -> None:
        before = self.filter

        def keep(text: str) -> list[Action]:
            self.filter = text.strip()
            return []

        self.prompt = Prompt("filter: ", keep, text=before)

    def _answer(self, p: Prompt, key: str) -> list[Action]:
        if key == "esc":
            if p.question == "filter: ":
                self.filter = ""
            self.prompt = None
        elif p.yes_no:
            self.prompt = None
            return p.answer(key)
        elif key == "enter":
            self.prompt = None
            return p.answer(p.text)
        elif key == "backspace":
            p.text = p.text[:-1]
        elif len(key) == 1 and key.isprintable():
            p.text += key
        return []

    # -- what is shown ---------------------------------------------------------------------------------------------------------

    def nodes(self) -> list[Row]:
        """The nodes of the chart: by name, dead ones only if wanted, those of the filter."""
        rows = [n | {"self": n["name"] == self.snapshot.me} for n in self.snapshot.nodes]
        rows = [n for n in rows if self.dead or n.get("state", "alive") in ("alive", "suspect")]
        return tables.matching(sorted(rows, key=_natural), tables.NODES, self.filter)

    def rows(self) -> list[Row]:
        """The rows of the present table, with the cursor on the row that was selected before, where it is still there."""
        place, columns = self.places[self.view], TABLES[self.view]
        source: Sequence[Row] = {
            View.PROCESSES: self.snapshot.guests,
            View.NODES: sorted((n | {"self": n["name"] == self.snapshot.me} for n in self.snapshot.nodes), key=_natural),
            View.EVENTS: self.snapshot.events,
        }[self.view]
        rows = tables.ordered(tables.matching(source, columns, self.filter), columns, place.by, place.backwards)
        if self.view is View.NODES and place.by == 0:
            rows = sorted(rows, key=_natural, reverse=place.backwards)
        if place.selected is not None:
            at = next((i for i, r in enumerate(rows) if _identity(r) == place.selected), None)
            if at is not None:
                place.cursor = at
        place.cursor = max(0, min(place.cursor, len(rows) - 1))
        return rows

    def render(self, width: int, height: int) -> Canvas:
        """The whole screen at this size."""
        canvas = Canvas(max(1, width), max(1, height))
        if self.help:
            for y, line in enumerate(HELP.splitlines()):
                canvas.put(y, 1, line, Style.TITLE if y == 0 else Style.PLAIN)
            canvas.put(canvas.height - 1, 1, "any key goes back", Style.DIM)
            return canvas
        self._head(canvas)
        upper = 1
        if self.totals:
            canvas.put(1, 1, cut(chart.totals(self.snapshot.nodes), canvas.width - 2, self.glyphs), Style.PLAIN)
            upper = 2
        lower = canvas.height - 1
        if self.view is View.CHART:
            self._chart(canvas, upper, lower)
        else:
            self._table(canvas, upper, lower)
        self._foot(canvas)
        return canvas

    def _head(self, canvas: Canvas) -> None:
        alive = sum(n.get("state", "alive") == "alive" for n in self.snapshot.nodes)
        what = chart.unit(self.quantity) if self.view is View.CHART else self.view.name.lower()
        left = f" {what}" + (f"   filter: {self.filter}" if self.filter else "")
        right = f"{alive} of {len(self.snapshot.nodes)} nodes up  ? help "
        canvas.paint(0, Style.TITLE)
        canvas.put(0, 0, cut(left, max(0, canvas.width - len(right) - 1), self.glyphs), Style.TITLE)
        canvas.put(0, max(0, canvas.width - len(right)), right, Style.TITLE)

    def _chart(self, canvas: Canvas, upper: int, lower: int) -> None:
        nodes = self.nodes()
        if not nodes:
            why = "no node matches the filter" if self.filter else "waiting for omdiscd"
            canvas.put(upper + 1, 2, self.snapshot.error or why, Style.DIM)
            return
        self.first, self._shown = chart.draw(canvas, nodes, self.quantity, self.layout, self.glyphs, rows=(upper, lower), first=self.first)
        if 0 < self._shown < len(nodes):
            text = f" nodes {self.first + 1}-{self.first + self._shown} of {len(nodes)}: left, right "
            canvas.put(upper, max(0, canvas.width - len(text)), text, Style.DIM)

    def _table(self, canvas: Canvas, upper: int, lower: int) -> None:
        place, rows = self.places[self.view], self.rows()
        self._page = max(1, lower - upper - 2)
        nothing = "no row matches the filter" if self.filter else self.snapshot.error or NOTHING[self.view]
        place.first = tables.draw(
            canvas, rows, TABLES[self.view], self.glyphs, area=(upper, lower), by=place.by, backwards=place.backwards,
            cursor=place.cursor, first=place.first, nothing=nothing, style=_style,
        )  # fmt: skip

    def _foot(self, canvas: Canvas) -> None:
        y = canvas.height - 1
        if self.prompt is not None:
            canvas.put(y, 0, f" {self.prompt.question}{self.prompt.text}_", Style.TITLE)
        elif self.message:
            canvas.put(y, 0, cut(f" {self.message}", canvas.width, self.glyphs), self.message_style)
        elif self.snapshot.error:
            canvas.put(y, 0, cut(f" {self.snapshot.error}; trying again", canvas.width, self.glyphs), Style.BAD)
        else:
            keys = {
                View.CHART: "l load  s speed  m memory  t totals  p processes  n nodes  e events  q quit",
                View.PROCESSES: "Enter move  H home  K lock  / filter  < > R sort  c chart  q quit",
                View.NODES: "X expel  B block  / filter  < > R sort  c chart  q quit",
                View.EVENTS: "/ filter  < > R sort  c chart  q quit",
            }[self.view]
            canvas.put(y, 0, cut(f" {keys}", canvas.width, self.glyphs), Style.DIM)


def _move(pid: int, what: str, to: str) -> Order:
    return Order("migrate", {"pid": pid, "to": to}, f"moving {what} to {to}", f"{what}: moved to {to}")


def _identity(r: Row) -> object:
    """What makes a row the same one in the next snapshot."""
    if "comm" in r and "where" in r:
        return (r.get("home"), r["pid"], r.get("role"))
    return r["name"] if "name" in r else (r.get("t"), r.get("pid"), r.get("kind"))


def _natural(n: Row) -> tuple[object, ...]:
    """n2 before n10."""
    name = str(n["name"])
    digits = name[len(name.rstrip("0123456789")) :]
    return (name[: len(name) - len(digits)], int(digits or 0), name)


def _style(r: Row) -> Style:
    state = str(r.get("state") or r.get("outcome") or "")
    if state in ("dead", "left", "lost", "in-doubt", "unreachable"):
        return Style.BAD
    if state in ("suspect", "moving", "settling", "stopped", "refused") or r.get("error") or r.get("accepting") is False:
        return Style.WARN
    return Style.OWN if r.get("self") else Style.PLAIN
