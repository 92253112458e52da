"""Everything that can go wrong, as a user meets it.

One class per exit code of the command line; docs/errors.md is made from their docstrings (``python -m omtools.manual``).  A message
says what failed, on which process and node, and in what state it was left; ``hint`` says what to do.  Nothing in ``mig`` exits: only the
tools turn an error into an exit status.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MigError(Exception):
    """Any failure that has no class of its own; the base of the others.

    The message says what failed and what state was left.  Like all of them it is printed as a line, its reasons and a hint, never as a
    traceback.
    """

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, *, reasons: list[str] | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reasons = list(reasons or ())
        self.hint = hint

    def to_wire(self) -> dict[str, Any]:
        """The map that travels in a reply: code, message, reasons, hint."""
        return {"code": self.code, "message": self.message, "reasons": self.reasons, "hint": self.hint}

    @staticmethod
    def from_wire(m: dict[str, Any]) -> MigError:
        """The inverse of :meth:`to_wire`; an unknown code becomes a plain :class:`MigError`."""
        cls = _BY_CODE.get(str(m.get("code")), MigError)
        return cls(str(m.get("message", "unknown error")), reasons=[str(r) for r in m.get("reasons", ())], hint=str(m.get("hint", "")))

    def lines(self) -> list[str]:
        """What a tool prints: the message, a line per reason, the hint."""
        return [self.message, *(f"  - {r}" for r in self.reasons), *([f"  ({self.hint})"] if self.hint else ())]


class BadInput(MigError):
    """No such process, node or argument, or the process is there already; nothing was touched.

    The hint names what would have been right: the nodes that are known, the process that a thread belongs to, the usage.
    """

    code = "bad-input"
    exit_code = 2


class CannotMove(MigError):
    """The process or the destination does not allow the move; ``reasons`` lists every obstacle; nothing was touched.

    Each reason ends with its remedy; cannot-move.md explains them all.  ``migrate --dry-run`` lists them without a move.
    """

    code = "cannot-move"
    exit_code = 3


class MoveFailed(MigError):
    """The move failed before its commit and was rolled back: the process runs where it was.

    The message names the step and the cause, with CRIU's own words where CRIU failed.  Trying again is safe.  If it fails again in the
    same way: ``mosctl doctor`` on both nodes, and the logs in ``/run/mig/log``.
    """

    code = "rolled-back"
    exit_code = 4


class OutcomeUnknown(MigError):
    """The commit was given and no answer came: the process stays frozen until the destination says what became of its copy.

    Nothing needs to be done but to get the other node or the link back: it is asked twice a second, and then the process goes on in exactly
    one place.  ``mosps`` shows it as ``in-doubt`` until then.  Do not thaw it by hand: its copy may be running.
    """

    code = "unknown"
    exit_code = 5


class NotPermitted(MigError):
    """The caller could not have killed this process either, or the command is for root only; nothing was touched.

    Do it as the process's user, or as root.
    """

    code = "not-permitted"
    exit_code = 6


class NoDaemon(MigError):
    """No omdiscd answers on this machine.

    Start ``omdiscd`` as root, and look at what it says.  Guests do not need it to run on.
    """

    code = "no-daemon"
    exit_code = 7


_BY_CODE: dict[str, type[MigError]] = {
    c.code: c for c in (MigError, BadInput, CannotMove, MoveFailed, OutcomeUnknown, NotPermitted, NoDaemon)
}
