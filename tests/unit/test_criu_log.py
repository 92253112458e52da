"""What a user gets to read of CRIU's log."""

from __future__ import annotations

import pytest

from mig.criu.log import CriuError, first_error, remedy
from mig.errors import MigError

LOG = """\
(00.000071) Version: 4.2.1 (gitid 0)
(00.003312) Error (criu/util.c:1534): Can't set RLIMIT_NOFILE for self: Operation not permitted
(00.011010) Warn  (criu/kerndat.c:1153): Can't keep kdat cache on non-tempfs
(00.024516) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.
(00.024600) Error (criu/cr-dump.c:1780): Dump files (pid: 31337) failed with -1
(00.025100) Error (criu/cr-dump.c:2204): Dumping FAILED.
"""


def test_the_first_line_that_matters_is_quoted() -> None:
    line = first_error(LOG)
    assert line == "Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option."
    assert "network connections" in remedy(line)


def test_a_line_of_a_restored_task_counts_too() -> None:
    assert first_error("(00.1)  4242: Error (criu/files-reg.c:2104): Can't open file x on restore: No such file") != ""
    assert first_error("pie: 4242: Error (criu/pie/restorer.c:11): oops").endswith("oops")


def test_no_error_no_quote() -> None:
    assert first_error("") == first_error("(00.1) Warn  (criu/x.c:1): hm\n") == ""
    assert remedy("") == ""


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("Error (criu/files-reg.c:1): File /var/log/x has bad size 12 (expect 10)", "changed"),
        ("Error (criu/files-reg.c:1): Can't dump ghost file /tmp/x of 99999999 size, increase limit", "64 MiB"),
        ("Error (criu/files-reg.c:1): Can't lookup mount=27 for fd=1 path=/x", "another mount namespace"),
        ("Error (criu/cr-restore.c:1): Can't fork for 4242: File exists", "pid of the process is taken"),
        ("Error (criu/cr-dump.c:1): A session leader of 4(4) is outside of its pid namespace", "session"),
        ("Error (criu/files-ext.c:1): Can't dump file 3 of that type [20666] (chr 10:200)", "device"),
        ("Error (criu/cr-dump.c:1): Can't get rlimit 7: Operation not permitted", "CAP_SYS_RESOURCE"),
        ("Error (criu/seize.c:1): SEIZE 4242: can't interrupt task: Operation not permitted", "debugger"),
    ],
)
def test_the_known_pains_have_a_remedy(line: str, word: str) -> None:
    assert word in CriuError("it failed", first_error=line).hint


def test_the_error_travels() -> None:
    e = MigError.from_wire(CriuError("CRIU could not dump the process", first_error=first_error(LOG)).to_wire())
    assert e.reasons == [first_error(LOG)]
    assert "network connections" in e.hint
    assert e.exit_code == 4
