"""``mosctl why``: what every node would cost a process, what a move there would gain and cost, and why it stays or goes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mig.economy import words
from mig.economy.judge import Verdict, judge
from omdiscd.peers import reservation

if TYPE_CHECKING:
    from mig.economy.price import NodeView
    from omdiscd.balancer import Balancer
    from omdiscd.moves import Subject


async def explain(s: Subject, balancer: Balancer) -> dict[str, Any]:
    """``{pid, comm, where, text, expects, prices, nodes, reasons}``.

    ``prices``: of each open node and this one by gossip; ``nodes``: of each that was asked ``{node, pays, why, short, gain_s, cost_s, …}``;
    ``reasons``: rules that keep it from moving by itself; ``text``: all of it in a sentence.
    """
    if not s.body:
        text = f"process {s.pid} ({s.comm}) runs on {s.where}; the balancer there decides: mosctl why, typed there, tells more"
        empty: dict[str, Any] = {"prices": [], "nodes": [], "reasons": [], "expects": ""}
        return {"pid": s.pid, "comm": s.comm, "where": s.where, "text": text, **empty}
    targets = balancer.targets
    reasons = await balancer.why_not(s.body)
    c = balancer.candidate(s.body, s.comm)
    me, nodes = balancer.mover.sampler.mine(), targets.open()
    lasted = balancer.gaps.lasted(time.monotonic(), (v.id for v in targets.views()))  # a question changes no decision
    rows: list[dict[str, Any]] = []
    best: tuple[float, str] | None = None
    for n in nodes:
        live: NodeView | None = await targets.ask(n, reservation(targets.me().id, s.home_pid))
        if live is None:
            rows.append({"node": n.name, "pays": False, "short": "no answer", "why": f"{n.name} does not answer, or accepts nobody"})
            continue
        if c.only and n.name not in c.only:
            rows.append({"node": n.name, "pays": False, "short": "not allowed", "why": f"it may run only on {', '.join(sorted(c.only))}"})
            continue
        v: Verdict = judge(me, live, c, targets.knobs, len(nodes) + 1, lasted=lasted.get(live.id, 0.0))
        rows.append({"node": n.name, "why": words.reason(c, live, v), "short": words.verdict(v), **words.figures(v)})
        if v.pays and (best is None or v.gain > best[0]):
            best = v.gain, n.name
    if reasons:
        end = f"it stays: {reasons[0]}"
    elif best:
        end = f"it goes to {best[1]}, where the pool gains {words.seconds(best[0])}"
    else:
        end = "it stays: no node is better"
    expects = words.expectation(c)
    text = f"process {s.pid} ({s.comm}) on {s.where}: {expects}; {end}"
    prices = balancer.mover.price_rows(c)
    return {
        "pid": s.pid, "comm": s.comm, "where": s.where, "text": text, "expects": expects, "verdict": end, "prices": prices, "nodes": rows,
        "reasons": reasons,
    }  # fmt: skip
