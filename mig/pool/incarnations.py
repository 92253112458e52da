"""How incarnations are counted: a record that changes takes the next multiple of ``STEP``, one that only refutes takes the next number.

So whoever hears of a refutation knows that the record which it has is still good.  When each was taken for a changed record, 8,000 who
refuted within 0.1 s (two halves of 10,000 that met again) were asked for 8,000 records by everybody.  A node that refutes more often than
``STEP`` times runs into the next multiple, and its record is fetched once more.
"""

from __future__ import annotations

from mig.model import NodeInfo

STEP = 1024
"""As incarnations begin with the wall time in milliseconds, each change of a record puts them a second ahead of the clock; a node that
starts anew within that time hears of it, and goes beyond it."""


def changed(incarnation: int) -> int:
    """The incarnation of a record that changes after this one."""
    return (incarnation // STEP + 1) * STEP


def is_record_of(r: NodeInfo, incarnation: int) -> bool:
    """Whether a node had this record in that incarnation, or has had a newer one since.  Older versions (without ``steps``) give the next
    number to a changed record, too: theirs is of one incarnation."""
    return r.incarnation >= incarnation or (r.steps and r.incarnation // STEP == incarnation // STEP)
