"""Policies by name: those of this package, and those that other distributions add by an entry point of the group :data:`GROUP`."""

from __future__ import annotations

from mig.economy.policies.base import Policy, Situation, Suggestion
from mig.economy.policies.economy import Economy
from mig.economy.policies.epvm import EPvm
from mig.economy.policies.mosix import Mosix
from mig.economy.policies.none import Stay
from mig.economy.policies.roundrobin import RoundRobin

__all__ = ["BUILT_IN", "GROUP", "Policy", "Situation", "Suggestion", "make", "names"]

GROUP = "openmosix.policies"
BUILT_IN: dict[str, type[Policy]] = {"economy": Economy, "mosix": Mosix, "epvm": EPvm, "roundrobin": RoundRobin, "none": Stay}
"""Known without a look at what is installed; pyproject.toml names them as entry points too."""


def names() -> list[str]:
    """Every policy that can be named in the configuration."""
    from importlib import metadata  # it takes longer to import than all of ours

    return sorted({*BUILT_IN, *(e.name for e in metadata.entry_points(group=GROUP))})


def make(name: str) -> Policy:
    """A new policy; raises ``LookupError`` for an unknown name, ``TypeError`` for an entry point that is no :class:`Policy`."""
    if kind := BUILT_IN.get(name):
        return kind()
    from importlib import metadata

    for e in metadata.entry_points(group=GROUP):
        if e.name == name:
            policy = e.load()()
            if not isinstance(policy, Policy):
                raise TypeError(f"the entry point {name} of {GROUP} makes a {type(policy).__name__}, not a Policy")
            return policy
    raise LookupError(f"there is no policy {name!r}; known: {', '.join(names())}")
