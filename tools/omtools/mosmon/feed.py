"""mosmon's line to omdiscd: a thread that asks each second, and one for each order, so that the screen never waits."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from mig.errors import MigError
from omtools import output
from omtools.client import Client, Lost
from omtools.mosmon.canvas import Style
from omtools.mosmon.model import Order, Snapshot

PERIOD = 1.0
"""Seconds between two looks, as the daemon samples."""
KEEP_EVENTS = 1000

News = Snapshot | tuple[str, Style]
"""A picture, or a line for the foot of the screen."""


class Feed:
    """Puts :data:`News` into ``news`` until closed, however often the daemon comes and goes."""

    def __init__(self, client: Callable[[], Client] = Client) -> None:
        self.news: queue.Queue[News] = queue.Queue()
        self._client = client
        self._stop = threading.Event()
        self._look = threading.Event()
        self._events: deque[dict[str, Any]] = deque(maxlen=KEEP_EVENTS)
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        """No more news; the threads end by themselves, or with the program."""
        self._stop.set()
        self._look.set()

    def order(self, o: Order) -> None:
        """Carry out an order of the user's in the background."""
        self.news.put((o.doing + "…", Style.PLAIN))
        threading.Thread(target=self._carry_out, args=(o,), daemon=True).start()

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                with self._client() as c:
                    while not self._stop.is_set():
                        self.news.put(self._snapshot(c))
                        self._look.wait(PERIOD)
                        self._look.clear()
            except (MigError, Lost, OSError) as e:
                self.news.put(Snapshot(error=e.message if isinstance(e, MigError) else str(e)))
                self._stop.wait(PERIOD)

    def _snapshot(self, c: Client) -> Snapshot:
        status = c.call("status")
        guests = c.call("guests", all=True)["guests"]
        since = float(self._events[-1].get("t", 0)) if self._events else 0.0
        self._events.extend(c.call("events", since=since)["events"])
        return Snapshot(status["nodes"], guests, list(self._events), str(status.get("self", "")))

    def _carry_out(self, o: Order) -> None:
        try:
            with self._client() as c:
                said = o.done
                for reply in c.stream(o.op, **o.args):
                    if reply is None:
                        continue
                    if reply.get("more"):
                        if reply.get("text"):
                            self.news.put((str(reply["text"]), Style.PLAIN))
                        elif reply.get("left"):
                            self.news.put((f"{o.doing}: {reply['left']} to go", Style.PLAIN))
                        continue
                    pause = (reply.get("result") or {}).get("pause_ms")
                    if pause is not None:
                        said += f", paused {output.milliseconds(float(pause))}"
            self.news.put((said, Style.GOOD))
        except MigError as e:
            self.news.put((" ".join(line.strip() for line in e.lines()), Style.BAD))
        except (Lost, OSError) as e:
            self.news.put((f"{e}: whether it was done is not known", Style.BAD))
        self._look.set()
