"""The line by which PAM tells of sessions: shown, put into files of /etc/pam.d, taken out again.

A file is changed by appending one line, ``optional``, so that nothing which it does can refuse a login; it is written anew beside the old
one, with its owner and mode, and renamed.  Files that another tool makes anew (Debian's common-session by pam-auth-update) are not touched:
their own way of adding a module is used or told.
"""

from __future__ import annotations

import os
from pathlib import Path

from mig import paths
from mig.errors import BadInput, MigError, NotPermitted
from omtools import output

DIRECTORY = Path("/etc/pam.d")
MARK = "# openMosix: tells omdiscd of logins (mospam(8))"
SUGGESTED = (
    "sshd", "login", "remote", "su-l", "gdm-password", "gdm-autologin", "lightdm", "lightdm-autologin", "sddm", "sddm-autologin", "xdm",
)  # fmt: skip
"""Services behind whose sessions a person is.  Files of them that exist get the line."""


def line() -> str:
    """The line for this installation."""
    run = f" --run {paths.RUN}" if str(paths.RUN) != "/run/mig" else ""
    return f"session  optional  pam_exec.so quiet seteuid {program()}{run}"


def program() -> Path:
    """The compiled helper."""
    return paths.libexec() / "mospam"


def chosen(names: list[str]) -> list[Path]:
    """The files meant; raises :class:`BadInput` for one that is not there or not a service's."""
    if not names:
        return [f for f in (DIRECTORY / n for n in SUGGESTED) if f.is_file()]
    out = []
    for n in names:
        f = DIRECTORY / n
        if "/" in n or n.startswith(".") or not f.is_file():
            raise BadInput(f"there is no service {n} in {DIRECTORY}", hint="name a file of it, as: mosctl pam install sshd")
        out.append(f)
    return out


def has(text: str) -> bool:
    """Whether a file's text has our line, of this or another installation."""
    return any(_ours(x) for x in text.splitlines())


def _ours(text: str) -> bool:
    words = text.split()
    return text.strip() == MARK or (
        "pam_exec.so" in words and any(w.rpartition("/")[2] == "mospam" for w in words) and not text.lstrip().startswith("#")
    )


def added(text: str) -> str:
    """The text with our line at its end, once."""
    kept = removed(text)
    return kept + ("" if kept.endswith("\n") or not kept else "\n") + f"{MARK}\n{line()}\n"


def removed(text: str) -> str:
    """The text without our lines."""
    return "".join(x for x in text.splitlines(keepends=True) if not _ours(x))


def _write(f: Path, text: str) -> None:
    real = f.resolve()
    st = real.stat()
    fresh = real.with_name(f".{real.name}.mig-new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
        os.fchmod(fd, st.st_mode & 0o7777)
        os.fchown(fd, st.st_uid, st.st_gid)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(fresh, real)


def run(action: str, names: list[str], *, json: bool = False) -> int:
    """Do it; returns the exit status.  Raises :class:`BadInput`, :class:`NotPermitted`, or :class:`MigError` when nothing can be done."""
    files = chosen(names)
    texts = {f: f.read_text(errors="surrogateescape") for f in files}
    if action == "show":
        rows = [{"service": f.name, "installed": has(t)} for f, t in texts.items()]
        if json:
            output.print_json({"line": line(), "program": str(program()), "services": rows})
            return 0
        print(line())
        for r in rows:
            print(f"  {DIRECTORY / str(r['service'])}: {'has it' if r['installed'] else 'has it not'}")
        if not program().exists():
            print(f"  ({program()} is not there: run `make env`)")
        return 0
    if os.geteuid() != 0:
        raise NotPermitted(f"only root may change {DIRECTORY}")
    if action == "install" and not program().exists():
        raise MigError(f"{program()} is not there; nothing was changed", hint="make env compiles it")
    if not files:
        raise BadInput(f"none of {', '.join(SUGGESTED)} is in {DIRECTORY}; nothing was changed", hint="name the service's file")
    for f, text in texts.items():
        new = added(text) if action == "install" else removed(text)
        if new == text:
            print(f"{f}: {'has the line already' if action == 'install' else 'has no line of ours'}")
        else:
            _write(f, new)
            print(f"{f}: the line was {'added' if action == 'install' else 'removed'}")
    if action == "install":
        print('It counts from the next login on. omdiscd.toml decides what follows: leave_on = "login" (see docs/adaptive-pool.md).')
    return 0
