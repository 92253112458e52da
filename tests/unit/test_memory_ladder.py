"""The ladder of modes, and which memory may be left out of a dump."""

from __future__ import annotations

import pytest

from mig.memory import hide
from mig.memory.ladder import Situation, choose

BIG = 1 << 30


@pytest.mark.parametrize(
    ("wanted", "situation", "mode", "why"),
    [
        ("auto", Situation(BIG), "pre-copy", ""),
        ("auto", Situation(20 << 20), "post-copy", "before the freeze"),
        ("auto", Situation(1 << 20), "full", "left out"),
        ("auto", Situation(BIG, record_locks=True), "full", "record locks"),
        ("auto", Situation(BIG, lazy=False), "full", "userfaultfd"),
        ("leaving", Situation(BIG), "pre-copy-only", "go down"),
        ("leaving", Situation(20 << 20), "full", "before the freeze, and its node may go down"),
        ("leaving", Situation(1 << 20), "full", "left out"),
        ("leaving", Situation(BIG, record_locks=True), "full", "record locks"),
        ("pre-copy-only", Situation(1 << 20), "pre-copy-only", ""),
        ("pre-copy-only", Situation(BIG, lazy=False), "full", "userfaultfd"),
        ("pre-copy", Situation(BIG, no_shim="there is no shim.so"), "full", "make env"),
        ("full", Situation(BIG), "full", ""),
        ("post-copy", Situation(1 << 20), "post-copy", ""),
        ("pre-copy", Situation(1 << 20), "pre-copy", ""),
        ("post-copy", Situation(BIG, record_locks=True), "full", "record locks"),
    ],
)
def test_the_highest_rung_that_is_possible_and_worth_it(wanted: str, situation: Situation, mode: str, why: str) -> None:
    """What was asked for is kept unless it cannot be; then the next lower one, with the reason."""
    got, reason = choose(wanted, situation)
    assert got == mode
    assert (why in reason) if why else not reason


def area(line: str, flags: str = "rd wr mr mw me ac") -> hide.Area:
    """One area of smaps."""
    (found,) = hide.parse_smaps(f"{line}\nSize: 4 kB\nRss:          2048 kB\nSwap:            512 kB\nVmFlags: {flags}\n")
    return found


ANON = "7f0000000000-7f0000200000 rw-p 00000000 00:00 0"


def test_plain_private_memory_is_hidden_and_counted() -> None:
    """Anonymous memory, with or without a name, and the heap."""
    for path in ("", " [heap]", " [anon:glibc: malloc arena]"):
        a = area(ANON + " " * 20 + path)
        assert a.hidden
        assert a.size == 2560 << 10


@pytest.mark.parametrize(
    "line",
    [
        ANON.replace("rw-p", "rw-s"),
        ANON.replace("rw-p", "---p"),
        ANON.replace("00:00 0", "08:01 4711") + " /lib/libc.so",
        ANON.replace("7f0000200000", "7f00000ff000"),
        ANON + " [stack]",
        ANON + " [vdso]",
        ANON + " /dev/zero (deleted)",
    ],
)
def test_everything_else_is_left_to_criu(line: str) -> None:
    """Shared, unreadable, of a file, small, the stack, anything with a name that we do not know."""
    assert not area(line).hidden


@pytest.mark.parametrize("flag", sorted(hide.UNSAFE))
def test_a_flag_that_is_not_known_to_be_safe_forbids_it(flag: str) -> None:
    """A restore would not register it with userfaultfd, or a fork would not copy it."""
    assert not area(ANON, f"rd wr mr mw me ac {flag}").hidden


def test_without_flags_nothing_is_hidden() -> None:
    """A kernel that does not print them."""
    (a,) = hide.parse_smaps(f"{ANON}\nRss: 2048 kB\n")
    assert not a.hidden


def test_what_was_read_before_the_freeze_serves_if_nothing_changed() -> None:
    """The heap may have grown; anything new is a reason to read again."""
    heap = "55d000000000-55d000200000 rw-p 00000000 00:00 0                          [heap]"
    before = hide.parse_smaps(f"{ANON}\nVmFlags: rd wr\n{heap}\nVmFlags: rd wr ac\n")
    grown = heap.replace("55d000200000", "55d000400000")
    now = hide.refresh(before, f"{ANON}\n{grown}\n")
    assert now is not None
    assert [(a.line, a.flags) for a in now] == [(ANON, "VmFlags: rd wr"), (grown, "VmFlags: rd wr ac")]
    assert hide.refresh(before, f"{ANON}\n{ANON.replace('7f', '7e')}\n") is None
