"""``none``: jobs start at home and stay where they are.  What users order is done."""

from __future__ import annotations

from mig.economy.policies.base import Policy


class Stay(Policy):
    """Nothing moves by itself."""
