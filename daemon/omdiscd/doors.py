"""Whether this node takes guests in: open as long as nobody has a reason against it.  Several may have one at once."""

from __future__ import annotations

from collections.abc import Callable


class Doors:
    """Reasons by who has them; ``changed`` hears (accepting, why not) at each change."""

    def __init__(self, changed: Callable[[bool, str], None]) -> None:
        self._changed = changed
        self._reasons: dict[str, str] = {}

    def set(self, who: str, why: str) -> None:
        """``who`` wants it shut, for ``why``; "": has nothing against guests any more."""
        before = self.why
        if why:
            self._reasons[who] = why
        else:
            self._reasons.pop(who, None)
        if self.why != before:
            self._changed(not self._reasons, self.why)

    @property
    def why(self) -> str:
        """All reasons; "" while it is open."""
        return "; ".join(self._reasons.values())
