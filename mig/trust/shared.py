"""A table that omdiscd writes and all processes of the node read, anew only when it has changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """One file of JSON.  ``form`` and ``parse`` lead from a table to what stands there and back; ``empty`` is read while there is none."""

    def __init__(self, path: Path, empty: T, form: Callable[[T], Any], parse: Callable[[Any], T]) -> None:
        self.path, self._empty, self._form, self._parse = path, empty, form, parse
        self._stamp: tuple[int, int] | None = None
        self._table = empty

    def write(self, table: T) -> None:
        """Replace it, at once for all readers.  No-op when equal."""
        if table == self.read():
            return
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self._form(table)))
        os.replace(fresh, self.path)

    def read(self) -> T:
        """As it is now; not to be changed."""
        try:
            st = self.path.stat()
        except FileNotFoundError:
            return self._empty
        stamp = (st.st_mtime_ns, st.st_ino)
        if stamp != self._stamp:
            self._table = self._parse(json.loads(self.path.read_text()))
            self._stamp = stamp
        return self._table
