"""The source's side of a migration as a state machine without I/O: events in, instructions out.

A move is a plan of steps, each with an undo.  Before the commit every doubt is an abort: what was begun is undone in reverse order and
the process goes on where it was.  The commit is one instruction (:class:`WriteCommit`).  After it the process is never thawed here by our
own decision: an answer that does not come makes us ask the destination's node until it knows (docs/states.md).

The runner (:mod:`mig.migration.runner`) executes instructions and feeds back what happened.  Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto


class Step(Enum):
    """The steps of a move before its commit, in the order in which they are done."""

    ASK = "ask"
    """The destination agrees and prepares a cell; undo: tell it to drop the cell."""
    CAPTURE = "capture"
    """The tree into a cgroup of its own, the dump worker started; undo: back to the old cgroup."""
    PRECOPY = "pre-copy"
    """Memory sent while the process runs; undo: forget it."""
    HOLD = "hold"
    """Input from home stops at a mark; undo: input flows again."""
    FREEZE = "freeze"
    """The process stands still; undo: thaw."""
    DUMP = "dump"
    """CRIU writes the images, the process stays frozen; undo: nothing, the images are dropped with the work directory."""
    DRAIN = "drain"
    """What the process wrote is on its way home, what it has not read is taken out to travel with it; undo: give it back."""
    LOCKS = "locks"
    """File locks are handed over; undo: taken again (before the thaw)."""
    SHIP = "ship"
    """Images to the destination, where the restore begins; undo: it drops its copy, and names of sockets lead to the old ones again."""
    RESTORE = "restore"
    """The destination restores up to its barrier and says ready; undo: as SHIP's."""
    FILL = "fill"
    """What the images lack is fetched by the destination, if nothing may stay behind; undo: nothing."""
    VERIFY = "verify"
    """A last look whether the destination is still there."""


PLAN: tuple[Step, ...] = tuple(Step)


class State(Enum):
    """Where the machine is."""

    IDLE = auto()
    WORKING = auto()  # a step before the commit is being done
    UNDOING = auto()  # rolling back
    COMMITTING = auto()  # the commit record is being written
    COMMITTED = auto()  # GO sent, the answer awaited
    IN_DOUBT = auto()  # no answer: asking the destination's node
    DONE = auto()


class Outcome(Enum):
    """How a move ends."""

    ARRIVED = "arrived"
    ROLLED_BACK = "rolled-back"


# -- events -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Begin:
    """Start the move."""


@dataclass(frozen=True)
class Done:
    """A step, or the undo of one, has been done."""

    step: Step
    undo: bool = False


@dataclass(frozen=True)
class Failed:
    """The step under way failed, or its time ran out."""

    step: Step
    error: str


@dataclass(frozen=True)
class Cancelled:
    """Somebody wants the move no more, or its total time ran out; without effect after the commit."""

    error: str


@dataclass(frozen=True)
class CommitWritten:
    """The commit is in the journal."""


@dataclass(frozen=True)
class CommitFailed:
    """The journal could not be written: nothing is committed."""

    error: str


@dataclass(frozen=True)
class Running:
    """The destination's answer to GO, or to the question: its copy runs."""


@dataclass(frozen=True)
class AnswerLost:
    """GO was sent, or may have been; the connection ended before an answer."""

    error: str


@dataclass(frozen=True)
class Answer:
    """What the destination's node says when asked: ``running``, ``aborted``, or ``""`` when it could not be asked or does not know yet."""

    state: str


Event = Begin | Done | Failed | Cancelled | CommitWritten | CommitFailed | Running | AnswerLost | Answer


# -- instructions -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Do:
    """Do a step; answer with :class:`Done` or :class:`Failed`."""

    step: Step


@dataclass(frozen=True)
class Undo:
    """Undo a step; answer with ``Done(step, undo=True)`` whatever happens: a failing undo is logged, never a reason to stop."""

    step: Step


@dataclass(frozen=True)
class WriteCommit:
    """THE COMMIT: write it to the journal, durably."""


@dataclass(frozen=True)
class SendGo:
    """Tell the destination to run its copy; answer with :class:`Running` or :class:`AnswerLost`."""


@dataclass(frozen=True)
class AskDestination:
    """Ask the destination's node what became of its copy, after ``delay`` seconds; answer with :class:`Answer`."""

    delay: float


@dataclass(frozen=True)
class Finish:
    """The move is over."""

    outcome: Outcome
    error: str = ""


Instruction = Do | Undo | WriteCommit | SendGo | AskDestination | Finish


class InvalidTransition(Exception):
    """An event that cannot happen in this state: a bug of the runner; the message carries the whole story."""


class Source:
    """The machine.  ``handle(event)`` returns the instructions to execute, in order.

    ``plan`` may leave out steps that this move does not need (a first move has no input to hold).
    ``ask_every`` is the pause between two questions in doubt, in seconds: short enough that a mended link resolves it at once, long
    enough not to be a load.
    """

    def __init__(self, plan: Iterable[Step] = PLAN, *, ask_every: float = 0.5) -> None:
        self.plan = list(plan)
        self.ask_every = ask_every
        self.state = State.IDLE
        self.begun: list[Step] = []
        self.error = ""
        self.story: list[Event] = []

    @property
    def committed(self) -> bool:
        """Whether the commit may have been written: from here on the process may run elsewhere."""
        return self.state in (State.COMMITTED, State.IN_DOUBT)

    def handle(self, event: Event) -> list[Instruction]:
        """Take one event; raises :class:`InvalidTransition` for one that has no place here."""
        self.story.append(event)
        match self.state, event:
            case State.IDLE, Begin():
                self.state = State.WORKING
                return self._next()
            case State.WORKING, Done(step=step, undo=False) if self.begun and step is self.begun[-1]:
                return self._next()
            case State.WORKING, Failed(step=step, error=error) if self.begun and step is self.begun[-1]:
                return self._roll_back(error)
            case (State.WORKING, Cancelled(error=error)):
                return self._roll_back(error)
            case State.UNDOING, Done(step=step, undo=True) if self.begun and step is self.begun[-1]:
                self.begun.pop()
                return self._undo_next()
            case State.COMMITTING, CommitWritten():
                self.state = State.COMMITTED
                return [SendGo()]
            case State.COMMITTING, CommitFailed(error=error):
                return self._roll_back(error)
            case (State.COMMITTED | State.IN_DOUBT, Running()) | (State.IN_DOUBT, Answer(state="running")):
                self.state = State.DONE
                return [Finish(Outcome.ARRIVED)]
            case State.COMMITTED, AnswerLost(error=error):
                self.state = State.IN_DOUBT
                self.error = error
                return [AskDestination(0.0)]
            case State.IN_DOUBT, Answer(state="aborted"):
                # the destination's own word that its copy never ran and never will: the only way back after a commit
                return self._roll_back(self.error or "the destination aborted")
            case State.IN_DOUBT, Answer():
                return [AskDestination(self.ask_every)]
            case (State.UNDOING | State.COMMITTING | State.COMMITTED | State.IN_DOUBT | State.DONE, Cancelled()):
                return []
            case State.UNDOING | State.DONE, Failed():
                return []  # the step that was cut short by a cancellation ends now
        raise InvalidTransition(f"{event} in {self.state.name}; story: {self.story}")

    def _next(self) -> list[Instruction]:
        if len(self.begun) == len(self.plan):
            self.state = State.COMMITTING
            return [WriteCommit()]  # <=== the commit
        step = self.plan[len(self.begun)]
        self.begun.append(step)
        return [Do(step)]

    def _roll_back(self, error: str) -> list[Instruction]:
        self.state = State.UNDOING
        self.error = error
        return self._undo_next()

    def _undo_next(self) -> list[Instruction]:
        if self.begun:
            return [Undo(self.begun[-1])]
        self.state = State.DONE
        return [Finish(Outcome.ROLLED_BACK, self.error)]
