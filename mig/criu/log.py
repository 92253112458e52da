"""CRIU's log, as a user can read it: the first error that matters, and what to do about it."""

from __future__ import annotations

import re

from mig.errors import MigError

_ERROR = re.compile(r"Error \([^)]*\): .*")

NOISE = (
    "RLIMIT_NOFILE",  # CRIU tries to raise its own limit; without CAP_SYS_RESOURCE it goes on with what it has
    "Unable to create tun",  # a feature probe in containers without /dev/net/tun
    "cgroupns not supported. This is not fatal",
)
"""Error lines that CRIU prints on its way to success."""

_REMEDIES: tuple[tuple[str, str], ...] = (
    (r"Can't get rlimit|prlimit.*not permitted", "root lacks CAP_SYS_RESOURCE here: run `make env`, which builds the shim for this"),
    (r"Connected TCP socket|inet: Connected|tcp-established", "the process has network connections of its own, which do not move yet"),
    (r"sk queue|inet:", "the process has network sockets of its own, which do not move yet"),
    (r"ext-unix-sk|External socket|half of stream unix|unix: .*peer", "the process has a unix socket to a process that stays behind"),
    (r"Can't lookup mount", "a file was opened in another mount namespace; start the program from inside the node"),
    (r"anon_inode:\[io_uring\]|io_uring", "programs that use io_uring cannot be moved"),
    (r"Can't dump file \d+ of that type", "the process has a device or a kind of file open that cannot be moved"),
    (r"ghost file .* increase limit", "a deleted file that is still open is too large to travel (limit 64 MiB)"),
    (r"bad size|bad mode|bad build-ID|Can't open file .* on restore", "an open file changed during the move or differs there; try again"),
    (r"Can't fork for|do not match expected|File exists", "a pid of the process is taken in the cell; try again"),
    (r"xsave|CPU (capabilities|features|instruction)|cpu: ", "the CPUs differ: start the program under `mosrun`, or choose another node"),
    (r"outside of its pid namespace|dangling tty|shell-job", "the terminal or session of the process cannot be carried; see `mosps`"),
    (r"file locks are hold|file-locks", "a file lock is shared with a process that stays behind"),
    (r"Can't seize|SEIZE|traced by|Unable to attach|ptrace", "another program traces the process (a debugger or strace?): detach it first"),
    (r"[Nn]ested \w+ namespace|namespace.*not support", "the process lives in namespaces of its own (a container): it cannot be moved"),
    (r"seccomp", "the process has a seccomp filter that CRIU cannot carry"),
    (r"userfaultfd|UFFD|uffd", "this kernel or container does not allow userfaultfd: see `mosctl doctor`"),
    (r"No space left", "the disk or tmpfs for the images is full"),
    (r"Cannot allocate memory", "not enough memory"),
)


def errors(text: str) -> list[str]:
    """All Error lines of a log, without time stamps, noise left out."""
    found = (m.group() for m in map(_ERROR.search, text.splitlines()) if m)
    return [line for line in found if not any(n in line for n in NOISE)]


def first_error(text: str) -> str:
    """CRIU's own first Error line, which names the cause (the later ones only follow from it); empty when there is none."""
    found = errors(text)
    return found[0] if found else ""


def remedy(line: str) -> str:
    """What to do about an error line; empty when we know nothing better than the line itself."""
    return next((text for pattern, text in _REMEDIES if re.search(pattern, line)), "")


class CriuError(MigError):
    """CRIU failed or died.  ``first_error`` quotes its log; the hint is the remedy where one is known."""

    def __init__(self, message: str, *, first_error: str = "", reasons: list[str] | None = None, hint: str = "") -> None:
        super().__init__(message, reasons=reasons or ([first_error] if first_error else None), hint=hint or remedy(first_error))
        self.first_error = first_error
