"""When pre-copy ends, and how it is held back."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mig.memory.rounds import MAX_ROUNDS, SHRINK, SMALL, Bucket, Policy

MIB = 1 << 20


def run(policy: Policy, sizes: list[int], seconds: float = 1.0) -> list[int]:
    for i, size in enumerate(sizes):
        if not policy.wants(size, i * seconds):
            return policy.sent
    return policy.sent


@pytest.mark.parametrize(
    ("sizes", "sent", "why"),
    [
        ([1024 * MIB, 100 * MIB, 50 * MIB, 45 * MIB], [1024 * MIB, 100 * MIB, 50 * MIB], "shrink"),
        ([1024 * MIB, 900 * MIB], [1024 * MIB], "shrink"),
        ([1024 * MIB, SMALL - 1], [1024 * MIB], "nothing"),
        ([SMALL // 2, 0], [SMALL // 2], "nothing"),  # the first round is always sent
    ],
)
def test_rounds_end(sizes: list[int], sent: list[int], why: str) -> None:
    p = Policy()
    assert run(p, sizes) == sent
    assert why in p.why


def test_limits() -> None:
    p = Policy(max_seconds=2.5)
    assert len(run(p, [(1024 >> i) * MIB for i in range(8)])) == 3 and "2.5 s" in p.why
    p = Policy()
    assert len(run(p, [(1 << 40) >> i for i in range(20)])) == MAX_ROUNDS
    assert run(Policy(max_rounds=0), [MIB]) == []


def test_a_process_that_must_leave_nothing_behind_goes_on_while_rounds_shrink_at_all() -> None:
    assert run(Policy(to_the_end=True), [100 * MIB, 95 * MIB, 92 * MIB, 93 * MIB]) == [100 * MIB, 95 * MIB, 92 * MIB]


@given(st.lists(st.integers(0, 1 << 40), max_size=30), st.booleans())
def test_every_round_is_smaller_than_the_one_before(sizes: list[int], to_the_end: bool) -> None:
    sent = run(Policy(to_the_end=to_the_end), sizes)
    assert all(b <= (1 if to_the_end else SHRINK) * a for a, b in pairwise(sent))


@given(st.lists(st.tuples(st.integers(1, 10 * MIB), st.floats(0, 2)), max_size=50))
def test_no_more_than_the_bound_and_one_burst(sends: list[tuple[int, float]]) -> None:
    b, now, total = Bucket(MIB), 0.0, 0
    for size, pause in sends:
        now += pause
        total += size
        now += b.delay(size, now)
        assert total <= (now + b.burst) * MIB * 1.000001 + 1
    assert Bucket(0).delay(1 << 40, 5.0) == 0
