"""Executes the instructions of :class:`mig.migration.machine.Source` and feeds back what happened.

``Actions`` is what a source must be able to do; the home agent and a host's keeper each implement it for their own kind of process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mig.errors import MigError, MoveFailed
from mig.migration import machine as m
from mig.migration.faults import Fault, reach

log = logging.getLogger(__name__)

STEP_TIMEOUT: dict[m.Step, float] = {
    m.Step.ASK: 60.0,
    m.Step.CAPTURE: 30.0,
    m.Step.PRECOPY: 600.0,
    m.Step.HOLD: 10.0,
    m.Step.FREEZE: 10.0,
    m.Step.DUMP: 120.0,
    m.Step.DRAIN: 20.0,
    m.Step.LOCKS: 5.0,
    m.Step.SHIP: 600.0,
    m.Step.RESTORE: 120.0,
    m.Step.FILL: 600.0,
    m.Step.VERIFY: 5.0,
}
"""Seconds.  Generous: a limit is there so that nothing waits for ever, not to judge speed; the steps inside the freeze whose length
depends on memory (dump, ship, restore, fill) get the time that a slow link needs, the others only what a loaded machine needs."""
ANSWER_TIMEOUT = 10.0
"""Seconds to wait for the answer to GO before asking the destination's node on a new connection."""


class Actions(Protocol):
    """What a source does.  ``do`` and ``undo`` raise on failure; ``undo`` must cope with a step that was cut short."""

    async def do(self, step: m.Step) -> None: ...
    async def undo(self, step: m.Step) -> None: ...
    async def write_commit(self) -> None: ...
    async def send_go(self) -> None:
        """Send GO and wait for RUNNING; raises when the answer is lost."""

    async def ask_destination(self) -> str:
        """``running``, ``aborted`` or ``""``."""


@dataclass
class Result:
    """What a move came to.  Times in seconds on the monotonic clock; ``spent`` per step."""

    outcome: m.Outcome
    error: str = ""
    cause: BaseException | None = None
    frozen_at: float = 0.0
    ended_at: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)


_BEFORE = {m.Step.FREEZE: Fault.BEFORE_FREEZE}
_AFTER = {m.Step.FREEZE: Fault.AFTER_FREEZE, m.Step.DUMP: Fault.AFTER_DUMP, m.Step.VERIFY: Fault.BEFORE_COMMIT}


def describe(e: BaseException) -> str:
    """One line of an exception for a user."""
    if isinstance(e, MigError):
        return e.message
    if isinstance(e, TimeoutError) and not str(e):
        return "its time ran out"
    if isinstance(e, EOFError):
        return "the connection to the destination ended"
    return f"{type(e).__name__}: {e}" if str(e) else type(e).__name__


class Runner:
    """One move.  ``progress`` hears the name of each step; ``doubt`` is called once if the outcome becomes unknown."""

    def __init__(
        self,
        actions: Actions,
        plan: list[m.Step],
        *,
        progress: Callable[[str], None] = lambda step: None,
        doubt: Callable[[str], None] = lambda error: None,
    ) -> None:
        self.actions = actions
        self.machine = m.Source(plan)
        self.progress = progress
        self.doubt = doubt
        self.result = Result(m.Outcome.ROLLED_BACK)
        self._step: asyncio.Task[None] | None = None
        self._cancel = ""

    def cancel(self, why: str) -> None:
        """Give the move up if it is not committed yet; it is then rolled back as for any failure."""
        self._cancel = why
        if self._step and not self.machine.committed:
            self._step.cancel()

    async def run(self, timeout: float = 0) -> Result:
        """Do the whole move; returns when it has arrived or is rolled back, however long it is in doubt.  Never raises for a failing step.

        ``timeout`` seconds (0: none) bound what comes before the commit.
        """
        limit = asyncio.get_running_loop().call_later(timeout, self.cancel, f"it took longer than {timeout:g} s") if timeout > 0 else None
        try:
            todo = list(self.machine.handle(m.Begin()))
            while todo:
                todo.extend(await self._execute(todo.pop(0)))
            return self.result
        finally:
            if limit is not None:
                limit.cancel()

    async def _execute(self, instruction: m.Instruction) -> list[m.Instruction]:
        match instruction:
            case m.Do(step=step):
                return self.machine.handle(await self._do(step))
            case m.Undo(step=step):
                try:
                    await self.actions.undo(step)
                except Exception:
                    log.exception("undo of %s failed; going on with the roll-back", step.value)
                return self.machine.handle(m.Done(step, undo=True))
            case m.WriteCommit():
                if self._cancel:
                    return self.machine.handle(m.CommitFailed(self._cancel))
                try:
                    await self.actions.write_commit()
                except OSError as e:
                    return self.machine.handle(m.CommitFailed(f"the journal could not be written: {e}"))
                return self.machine.handle(m.CommitWritten())
            case m.SendGo():
                self.progress("go")
                try:
                    await asyncio.wait_for(self.actions.send_go(), ANSWER_TIMEOUT)
                except Exception as e:  # whatever it is: GO may have been heard, so only the destination knows
                    if not isinstance(e, (OSError, EOFError)):
                        log.exception("GO could not be sent")
                    self.doubt(describe(e))
                    return self.machine.handle(m.AnswerLost(describe(e)))
                return self.machine.handle(m.Running())
            case m.AskDestination(delay=delay):
                await asyncio.sleep(delay)
                try:
                    answer = await self.actions.ask_destination()
                except Exception as e:  # whatever it is, we still do not know
                    log.info("the destination could not be asked: %s", describe(e))
                    answer = ""
                return self.machine.handle(m.Answer(answer))
            case m.Finish(outcome=outcome, error=error):
                self.result.outcome, self.result.error = outcome, error
                self.result.ended_at = time.monotonic()
                return []

    async def _do(self, step: m.Step) -> m.Event:
        if self._cancel:
            return m.Failed(step, self._cancel)
        self.progress(step.value)
        t = time.monotonic()
        if step is m.Step.FREEZE:
            self.result.frozen_at = t
        self._step = asyncio.ensure_future(self._with_faults(step))
        try:
            await asyncio.wait_for(self._step, STEP_TIMEOUT[step])
        except asyncio.CancelledError:
            if not self._cancel:
                raise
            return m.Failed(step, self._cancel)
        except Exception as e:
            self.result.cause = e
            if not isinstance(e, MigError):
                log.info("step %s failed", step.value, exc_info=True)
            return m.Failed(step, f"step {step.value}: {describe(e)}")
        finally:
            self.result.spent[step.value] = time.monotonic() - t
            self._step = None
        return m.Done(step)

    async def _with_faults(self, step: m.Step) -> None:
        if step in _BEFORE:
            await reach(_BEFORE[step])
        await self.actions.do(step)
        if step in _AFTER:
            await reach(_AFTER[step])


def as_error(result: Result, what: str, where: str, *, left: str = "running") -> MigError:
    """The error of a move that was rolled back: the refusal itself if it was one, else a :class:`MoveFailed` naming the state left."""
    if isinstance(result.cause, MigError) and result.cause.exit_code in (2, 3, 6):
        return result.cause
    reasons = list(result.cause.reasons) if isinstance(result.cause, MigError) else []
    hint = result.cause.hint if isinstance(result.cause, MigError) else ""
    return MoveFailed(f"{what}: {result.error}; still {left} on {where}", reasons=reasons, hint=hint)
