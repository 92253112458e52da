"""Local share by age: managed jobs get a share of their node's CPUs that falls with the CPU time that they have had.

Jobs that have had little are probably nearly done (Harchol-Balter & Downey, 1997), so letting them first halves the mean slowdown; the rule
is a soft form of *foreground-background*, which is optimal for the mean where hazard rates fall (Righter & Shanthikumar, *Scheduling
multiclass single server queueing systems to stochastically maximize the number of successful departures*, Prob. Eng. Inf. Sci. 3, 1989).
"""

from __future__ import annotations

YOUNG_S = 4.0
"""CPU seconds up to which a job has its full share; twice as old, half the share."""
LEAST = 0.02
"""No job's share falls below this part of a young one's: even the oldest gets on."""


def share(cpu_s: float, young_s: float = YOUNG_S, least: float = LEAST) -> float:
    """The share of a job that has used ``cpu_s`` CPU seconds, as a part of a new one's: ``clip(young_s / cpu_s, least, 1)``."""
    return 1.0 if cpu_s <= young_s else max(least, young_s / cpu_s)
