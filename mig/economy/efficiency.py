"""How well a pool is balanced, as openMosix's monitor showed it: 100 % means as equal as whole processes allow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mig.economy.price import NodeView


def best_peak(powers: Sequence[float], threads: int) -> float:
    """The least highest load, in threads per standard CPU, with which ``threads`` can be spread over nodes of these powers."""
    counts = [0] * len(powers)
    for _ in range(threads):
        i = min(range(len(powers)), key=lambda j: ((counts[j] + 1) / powers[j], -powers[j]))
        counts[i] += 1
    return max(c / p for c, p in zip(counts, powers, strict=True))


def efficiency(nodes: Iterable[NodeView]) -> float:
    """The least possible highest load over the real one, 0 to 1; 1 where nothing runs."""
    views = [n for n in nodes if n.power > 0]
    threads = min(1000, round(sum(n.k for n in views)))
    if not views or not threads:
        return 1.0
    peak = max(n.k / n.power for n in views)
    return min(1.0, best_peak([n.power for n in views], threads) / peak) if peak > 0 else 1.0
