"""Notes of mospam, utmp records and logind's files: parsed, and put together so that each session counts once."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mig.adaptive.sessions import Session, logind, merge, note, utmp

NOTE = "start=4711\nsince=100\nservice=sshd\nuser=ann\ntty=ssh\nhost=10.0.0.9\n"


def record(kind: int, pid: int, line: str, user: str, host: str = "", seconds: int = 1000) -> bytes:
    """A record as login(1) writes it."""
    r = struct.pack("<hxxi32s4s32s256s", kind, pid, line.encode(), b"1", user.encode(), host.encode())
    return r + struct.pack("<hhiii16s20x", 0, 0, 0, seconds, 0, bytes(16))


def test_a_note() -> None:
    s = note(9, NOTE)
    assert s == Session(9, "ann", "sshd", "ssh", "10.0.0.9", 4711, 100.0)
    assert not s.console and s.words() == "ann (sshd, ssh, from 10.0.0.9)" and "ann" not in s.public()


WRONG = ["", "x", "user=ann\n", "start=a\nsince=1\nservice=s\nuser=u\n", NOTE.replace("ann", ""), NOTE + "tty=" + "x" * 300]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_note(text: str) -> None:
    with pytest.raises(ValueError, match=r"note|invalid literal"):
        note(1, text)


def test_utmp_lists_users_and_nothing_else() -> None:
    data = record(2, 0, "~", "reboot") + record(7, 77, "pts/3", "ann", "10.0.0.9") + record(8, 78, "pts/4", "")
    data += record(6, 5, "tty1", "LOGIN")
    assert utmp(data + b"torn", boot=900.0) == [Session(77, "ann", tty="pts/3", host="10.0.0.9", since=100.0, source="utmp")]


@given(st.binary(max_size=2000))
def test_utmp_takes_any_bytes(data: bytes) -> None:
    for s in utmp(data):
        assert s.pid > 0 and s.user.isprintable()


def test_logind_counts_people_only() -> None:
    text = "# This is private data.\nUID=1000\nUSER=ann\nACTIVE=1\nSTATE=active\nREMOTE=0\nTYPE=wayland\nCLASS=user\nSEAT=seat0\nTTY=tty2\n"
    text += "SERVICE=gdm-password\nLEADER=900\nMONOTONIC=5000000\n"
    s = logind("2", text)
    assert s == Session(900, "ann", "gdm-password", "tty2", since=5.0, source="logind", ident="2", seat="seat0") and s.console
    for other in ("CLASS=greeter", "CLASS=manager", "CLASS=background", "STATE=closing", "LEADER="):
        key = other.partition("=")[0]
        assert logind("c1", "\n".join(line for line in text.splitlines() if not line.startswith(key)) + f"\n{other}\n") is None, other


@pytest.mark.parametrize(
    ("tty", "host", "console"),
    [("tty2", "", True), ("/dev/tty1", "", True), (":0", "", True), ("console", "", True), ("pts/1", "", False), ("ssh", "h", False),
     ("tty2", "10.0.0.9", False), ("ttyS0", "", False), ("", "", False), (":0", ":0", True)],
)  # fmt: skip
def test_the_console_is_where_the_person_sits_here(tty: str, host: str, console: bool) -> None:
    assert Session(1, "ann", tty=tty, host=host).console is console


def test_each_session_counts_once() -> None:
    pam = [Session(50, "ann", "sshd", "ssh"), Session(60, "bob", "su-l", "pts/1"), Session(70, "ann", "login", "tty2")]
    # ann's shell below sshd has a terminal by now; bob's su is below it; somebody logged in where PAM's line is not installed
    known = [Session(52, "ann", tty="pts/1", source="utmp"), Session(71, "ann", tty="tty2", source="utmp"), Session(90, "cyd", tty="tty3")]
    manager = [Session(50, "ann", "sshd", "pts/1", source="logind", ident="4")]
    got = merge([pam, known, manager], {52: [51, 50, 1], 60: [53, 52, 51, 50, 1], 71: [70, 1]})
    assert [(s.pid, s.user, s.tty, s.ident) for s in got] == [
        (50, "ann", "pts/1", "4"), (60, "bob", "pts/1", ""), (70, "ann", "tty2", ""), (90, "cyd", "tty3", ""),
    ]  # fmt: skip


def test_two_of_the_same_user_from_one_source_are_two() -> None:
    pam = [Session(50, "ann", "sshd", "ssh"), Session(60, "ann", "su-l", "pts/1")]
    assert len(merge([pam], {60: [50]})) == 2
