"""openMosix in userspace: the mechanism and the decisions of process migration.

Layout: a pure middle (``migration.machine``, ``economy``, ``inspect.reasons``) that gets facts and returns decisions, and thin
adapters around it (``kernel``, ``criu``, ``deputy``, ``cell``, ``channels``, ``homefs``).  ``docs/architecture.md`` has the picture.
"""

__version__ = "0.1.0"
