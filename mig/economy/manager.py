"""Between a policy and the world: prices what it suggests, caps what is done at once, and lets targets answer before anything moves.

Both generators yield what they need to know or to have done and get the answer sent back, so that the daemon (over sockets) and the
simulator (at once) run the same decisions.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from mig.economy.judge import NEW_S, Candidate, Verdict, hold_up, judge
from mig.economy.policies.base import Policy, Situation, Suggestion
from mig.economy.price import NodeView

MOVES = 2
"""Moves of one decision: more of them only share the line."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Tell the live state of node ``node``, places promised to others than ``candidate`` included; None: no answer, or it takes nobody."""

    node: int
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class Enact:
    """Reserve the place and begin the move; answer whether it began.  ``target``: live where it was asked."""

    candidate: Candidate
    target: NodeView
    verdict: Verdict
    kind: str


AWAY = 0.1
"""Process-seconds per unit of work that another node must be better by: nodes that differ in free memory alone are not worth a journey."""

S = TypeVar("S")
A = TypeVar("A")
R = TypeVar("R")


class Dialogue(Generic[S, A, R]):
    """A decision that is under way: ``step`` is what it wants next, None once it is over and ``result`` stands.

    Whoever can ask, over sockets or at once, does so and says the answer.
    """

    def __init__(self, decision: Generator[S, A | None, R]) -> None:
        self._decision = decision
        self.result: R | None = None
        self.step: S | None = None
        self.answer(None)

    def answer(self, answer: A | None) -> None:
        """The answer to ``step``; the next one stands then."""
        try:
            self.step = self._decision.send(answer)
        except StopIteration as e:
            self.step, self.result = None, e.value


Moves = Generator["Ask | Enact", "NodeView | bool | None", None]
Start = Generator[Ask, "NodeView | None", list[NodeView]]


def moves(policy: Policy, s: Situation, *, most: int = MOVES) -> Moves:
    """Drive one decision of ``policy``: up to ``most`` moves, each confirmed by its target."""
    live: dict[int, NodeView] = {}
    for _ in range(most):
        if not s.candidates or not s.others:
            return
        done = yield from _one(policy, s, live)
        if done is None:
            return
        s = _after(s, done)
        live.pop(done.target.id, None)  # its next answer counts the place that it has just reserved


def _one(policy: Policy, s: Situation, live: dict[int, NodeView]) -> Generator[Ask | Enact, NodeView | bool | None, Enact | None]:
    asked: set[int] = set()
    for x in policy.suggest(s):
        t: NodeView | None = x.target
        if policy.asks:
            if x.target.id not in asked and len(asked) >= policy.asks:
                continue
            asked.add(x.target.id)
            if x.target.id not in live:
                answer = yield Ask(x.target.id, x.candidate)
                if not isinstance(answer, NodeView):
                    continue
                live[x.target.id] = answer
            t = live[x.target.id]
        assert t is not None
        v = judge(s.me, t, x.candidate, s.knobs, s.nodes, active=s.active, lasted=s.lasts(t))
        if not _wanted(policy, x, t, v, s):
            continue
        enact = Enact(x.candidate, t, v, x.kind)
        if (yield enact) is True:
            return enact
    return None


def _wanted(policy: Policy, x: Suggestion, t: NodeView, v: Verdict, s: Situation) -> bool:
    if x.kind == "memory":
        return t.fits(x.candidate.rss + s.knobs.mem_reserve)  # a node that swaps sends away whatever the price says
    return v.pays if policy.priced else True


def _after(s: Situation, done: Enact) -> Situation:
    """The situation once ``done`` is under way."""
    k, mem = done.candidate.k, done.candidate.rss
    others = [t.plus(k, mem) if t.id == done.target.id else t for t in s.others]
    candidates = [c for c in s.candidates if c.pid != done.candidate.pid]
    local = max(0.0, s.local - k)
    return replace(s, me=s.me.plus(-k, -mem), others=others, candidates=candidates, active=s.active + 1, local=local)


def start(policy: Policy, job: Candidate, s: Situation) -> Start:
    """Where a job that has not begun may start, the best first, judged by the live state of those that were asked; home is always among
    them."""
    answers: list[tuple[float, int, NodeView]] = []
    if policy.asks > 1:  # home is known for nothing
        answers.append((policy.cost(job, s.me, s), 0, s.me))
    for n in policy.start(job, s):
        if n.id == s.me.id:
            if not answers:
                answers.append((policy.cost(job, s.me, s), 0, s.me))
        elif not policy.asks:
            return [n, s.me]
        elif (live := (yield Ask(n.id, job))) is not None:
            journey = AWAY + hold_up(s.me, s.me.k, live, live.k + job.k, s.knobs) / NEW_S
            answers.append((policy.cost(job, live, s) + journey, len(answers), live))
        if len(answers) >= policy.asks + (policy.asks > 1):
            break
    found = [a[-1] for a in sorted(answers, key=lambda a: a[:2])]
    return found if any(n.id == s.me.id for n in found) else [*found, s.me]
