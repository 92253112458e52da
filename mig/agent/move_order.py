"""One order to move the guest: what is wanted, and what its caller hears of it: every step, and one answer."""

from __future__ import annotations

import logging
from typing import Any

from mig import logs
from mig.agent.watchers import Reply
from mig.errors import MigError, OutcomeUnknown
from mig.kernel.cgroup import Cgroup
from mig.model import NodeInfo
from mig.tasks import Tasks

log = logging.getLogger(__name__)


class MoveOrder:
    """The order ``m``, about process ``pid``, which is ``here``.  ``mid`` names the move once there is one; ``step``: where it stands."""

    def __init__(self, m: dict[str, Any], reply: Reply, pid: int, comm: str, here: str, tasks: Tasks) -> None:
        self._id, self._reply, self._tasks = m.get("id"), reply, tasks
        self.pid, self.comm, self.here, self.to = pid, comm, here, NodeInfo.from_map(m["to"])
        self.mode = str(m.get("mode", "remote"))
        self.timeout = float(m.get("timeout") or 0)
        self.hold_s = float(m.get("hold_s") or 0)
        self.reason = str(m.get("reason", ""))
        self.memory = str(m.get("memory", "auto")), int(m.get("limit_bps") or 0)
        self.held = Cgroup(m["cgroup"]) if m.get("frozen") else None
        """Where it stands frozen before its first instruction."""
        self.mid, self.step = "", "ask"
        self.answered = False

    def progress(self, step: str) -> None:
        """The move has come to this step."""
        self.step = step
        logs.about(self.mid)
        log.info("process %d (%s) %s -> %s, step %s", self.pid, self.comm, self.here, self.to.name, step)
        text = f"{self.comm} ({self.pid}) {self.here} -> {self.to.name}: {step}"
        self._tasks.spawn(self._reply({"op": "progress", "id": self._id, "step": step, "text": text}))

    async def answer(self, error: MigError | None, result: dict[str, Any]) -> None:
        """The answer; nothing if the caller has one already: what comes after "unknown" is an event."""
        if self.answered:
            return
        self.answered = True
        outcome = {"ok": True, "result": result} if error is None else {"ok": False, "error": error.to_wire()}
        await self._reply({"op": "moved", "id": self._id} | outcome)

    async def answer_unknown(self) -> None:
        """The move was committed, and its destination does not say what became of it."""
        dest = self.to.name
        error = OutcomeUnknown(
            f"{self.comm} ({self.pid}): the move to {dest} was committed and {dest} has not answered; the process stands "
            f"frozen on {self.here} until that node says what became of its copy",
            hint=f"bring {dest} or its network back: it then resolves itself; mosps shows its state",
        )
        await self.answer(error, {})
