"""Who is logged in here: what PAM's notes, utmp and logind say, put together so that each session counts once.

Pure: texts and bytes in, sessions out.  None of the sources is complete.  PAM's notes come at once, but only where its line is installed;
utmp knows sessions with a terminal; logind only runs on systemd.  A session counts that any of them knows and whose process lives, so a
lost message, a crashed login program and an omdiscd that was not there all heal by themselves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

_UTMP = struct.Struct("<hxxi32s4s32s256shhiii16s20x")
"""``struct utmp`` of glibc on x86-64: type, pid, line, id, user, host, exit, session, seconds, microseconds, address.  384 bytes."""
_USER_PROCESS = 7
_PEOPLE = ("user", "user-early", "user-light", "user-incomplete")
"""Classes of logind's sessions behind which a person is; not ``greeter``, ``lock-screen``, ``background``, ``manager``."""
_TEXT = 200


@dataclass(frozen=True)
class Session:
    """One session.  ``pid``: the process that stands for it; ``start``: its start in clock ticks, 0: unknown; ``since``: boot time, s."""

    pid: int
    user: str
    service: str = ""
    tty: str = ""  # pts/3, tty2, :0; "" for none
    host: str = ""
    start: int = 0
    since: float = 0.0
    source: str = "pam"  # pam | utmp | logind
    ident: str = ""  # logind's id
    seat: str = ""

    @property
    def console(self) -> bool:
        """Whether the person sits at this machine: on a virtual console, or before a display of it."""
        if self.host not in ("", "localhost") and not self.host.startswith(":"):
            return False
        tty = self.tty.removeprefix("/dev/")
        return bool(self.seat) or tty.startswith(":") or tty == "console" or (tty.startswith("tty") and tty[3:].isdigit())

    def words(self) -> str:
        """For people of this machine: who, how, where from."""
        how = ", ".join(x for x in (self.service, self.tty if self.tty != self.service else "", self.host and f"from {self.host}") if x)
        return f"{self.user} ({how})" if how else self.user

    def public(self) -> str:
        """For the pool: that somebody is here, not who."""
        return f"somebody is logged in{f' by {self.service}' if self.service else ''}"


def note(pid: int, text: str) -> Session:
    """A note of ``mospam``; raises ``ValueError`` when it is not one."""
    f = dict(line.partition("=")[::2] for line in text.splitlines() if line)
    if not {"start", "since", "service", "user"} <= f.keys() or any(len(v) > _TEXT for v in f.values()) or not f["user"]:
        raise ValueError("not a note of mospam")
    tty = f.get("tty", "").removeprefix("/dev/")
    return Session(pid, f["user"], f["service"], tty, f.get("host", ""), int(f["start"]), float(f["since"]))


def utmp(data: bytes, *, boot: float = 0.0) -> list[Session]:
    """The users' records of a utmp file.  ``boot``: wall time minus boot time, s.  A torn last record is left out."""
    out = []
    for at in range(0, len(data) - _UTMP.size + 1, _UTMP.size):
        kind, pid, line, _, user, host, _, _, _, seconds, _, _ = _UTMP.unpack_from(data, at)
        if kind == _USER_PROCESS and pid > 0 and user.strip(b"\0"):
            out.append(
                Session(pid, _text(user), tty=_text(line), host=_text(host), since=max(0.0, seconds - boot) if boot else 0.0, source="utmp")
            )
    return out


def _text(b: bytes) -> str:
    return "".join(c if c.isprintable() else "?" for c in b.partition(b"\0")[0].decode(errors="replace"))


def logind(ident: str, text: str) -> Session | None:
    """A file of /run/systemd/sessions, as libsystemd reads it; None for one behind which there is no person (greeter, closing)."""
    f = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line and not line.startswith("#"))
    leader = f.get("LEADER", "")
    if f.get("CLASS", "user") not in _PEOPLE or f.get("STATE") == "closing" or not leader.isdigit() or not f.get("USER"):
        return None
    since = int(f["MONOTONIC"]) / 1e6 if f.get("MONOTONIC", "").isdigit() else 0.0
    host = f.get("REMOTE_HOST", "") or ("?" if f.get("REMOTE") == "1" else "")
    return Session(
        int(leader), f["USER"], f.get("SERVICE", ""), f.get("TTY", "") or f.get("DISPLAY", ""), host, since=since, source="logind",
        ident=ident, seat=f.get("SEAT", "") if f.get("REMOTE") != "1" else "",
    )  # fmt: skip


def merge(sources: Iterable[Iterable[Session]], ancestors: dict[int, list[int]]) -> list[Session]:
    """One session of all that mean the same: same process, or one below the other's, or the same terminal.  Earlier sources are kept,
    and learn the terminal, seat and logind's id from later ones.  ``ancestors``: of each session's pid."""
    out: list[Session] = []
    for source in sources:
        known = len(out)
        for s in source:
            i = next((i for i, o in enumerate(out[:known]) if _same(o, s, ancestors)), None)
            if i is None:
                out.append(s)
            else:
                o = out[i]
                real = s.tty if "/" in s.tty or s.tty.startswith(("tty", ":")) else ""
                out[i] = replace(
                    o, tty=real if not _real(o.tty) and real else o.tty, ident=o.ident or s.ident, seat=o.seat or s.seat,
                    service=o.service or s.service, host=o.host or s.host,
                )  # fmt: skip
    return out


def _real(tty: str) -> bool:
    """sshd calls its sessions' terminal "ssh" before they have one."""
    return tty.startswith(("pts/", "tty", ":"))


def _same(a: Session, b: Session, ancestors: dict[int, list[int]]) -> bool:
    if a.pid == b.pid or a.pid in ancestors.get(b.pid, []) or b.pid in ancestors.get(a.pid, []):
        return a.user == b.user
    return _real(a.tty) and a.tty == b.tty and a.user == b.user
