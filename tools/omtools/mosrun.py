"""``mosrun [options] CMD…``: start a command as a job that may move.

It registers its own pid and then *becomes* the command: there is no process in between, so the exit status, signals, the terminal and
``wait`` are the command's own.  It must start quickly; hence no argparse here.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from typing import Any, NamedTuple, NoReturn

from mig.errors import BadInput, MigError, NoDaemon
from mig.paths import in_cell

USAGE = """usage: mosrun [-b | -h | -N NODE | -j NODES] [-L] [-S] [-q] CMD [ARG…]
"""
HELP = (
    USAGE
    + """
Start CMD as a job that may move between the nodes of the pool.  Its exit
status, input, output, terminal and signals are those of CMD started without
mosrun.

  -b          on the best node at once, before its first instruction
  -h          at home: it is never moved by itself
  -N NODE     on this node at once
  -j NODES    on the best of these nodes, given as n1,n2,…
  -L          locked: it stays where it starts; migrate still moves it
  -S          its named unix sockets are for its own processes: they go along
  -A MINUTES  periodic checkpoints (not built yet)
  -q          quiet: do not warn when no omdiscd answers, or options do nothing
  --help, --version

exit status: that of CMD; 127 CMD not found, 126 not executable, and before CMD
  starts: 2 bad input, 3 it cannot be placed there, 6 not permitted, 130 Ctrl-C,
  7 no omdiscd answers on this machine (with -b, -N or -j; otherwise CMD runs
  here)
"""
)
SWITCHES = {"b": "best", "h": "home", "L": "locked", "S": "own_sockets", "q": "quiet"}
_PATIENCE = 60.0
"""Seconds in which omdiscd must have found a place: a node that is overloaded, or starts a hundred jobs at once, takes a while."""
VALUED = {"N": "NODE", "j": "NODES", "A": "MINUTES"}
SEARCH_PATH = b"/usr/local/bin:/usr/bin:/bin"  # what execvp(3) takes when there is no PATH


class Options(NamedTuple):
    """The command line, taken apart.  (A dataclass would double the time that this module takes to import.)"""

    command: list[str]
    best: bool = False
    home: bool = False
    locked: bool = False
    own_sockets: bool = False
    quiet: bool = False
    node: str = ""
    nodes: tuple[str, ...] = ()

    def flags(self) -> dict[str, Any]:
        """As they travel in the ``job`` message."""
        f: dict[str, Any] = {"best": self.best, "home": self.home, "locked": self.locked, "quiet": self.quiet}
        if self.node:
            f["node"] = self.node
        if self.own_sockets:
            f["own_sockets"] = True
        if self.nodes:
            f["nodes"] = list(self.nodes)
        return f

    @property
    def placed(self) -> bool:
        """Whether the user asked for a node, so that running here instead would be wrong."""
        return self.best or bool(self.node or self.nodes)


def main(argv: list[str] | None = None) -> int:
    """Entry point; does not return when the command could be started."""
    args = sys.argv[1:] if argv is None else argv
    if args[:1] == ["--help"]:
        sys.stdout.write(HELP)
        return 0
    if args[:1] == ["--version"]:
        from mig import __version__

        print(f"mosrun {__version__}")
        return 0
    try:
        return _start(parse(args))
    except MigError as e:
        first, *rest = e.lines()
        print(f"mosrun: {first}", *rest, sep="\n", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("mosrun: interrupted; the command was not started", file=sys.stderr)
        return 130


def _start(o: Options) -> int:
    environment = _environment()
    try:
        program = find(os.fsencode(o.command[0]), environment.get(b"PATH", SEARCH_PATH))
        _register(o)
        _become(program, o.command, environment)
    except OSError as e:
        print(f"mosrun: {o.command[0]}: {e.strerror}", file=sys.stderr)
        return 127 if e.errno in (errno.ENOENT, errno.ENOTDIR) else 126


def parse(args: list[str]) -> Options:
    """Options end at the first word that is none, or at ``--``.  Raises :class:`BadInput`."""
    given: dict[str, Any] = {}
    rest = list(args)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        letters = word[1:]
        if letters.isdigit():
            given["node"] = letters  # openMosix's way to name a node
            continue
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in SWITCHES:
                given[SWITCHES[letter]] = True
            elif letter in VALUED:
                value = letters or (rest.pop(0) if rest else "")
                if not value:
                    raise BadInput(f"-{letter} needs a value", hint=USAGE.strip())
                given |= _valued(letter, value)
                break
            else:
                raise BadInput(f"unknown option -{letter}", hint=USAGE.strip())
    if not rest:
        raise BadInput("no command given", hint=USAGE.strip())
    o = Options(rest, **given)
    if o.best + o.home + bool(o.node) + bool(o.nodes) > 1:
        raise BadInput("only one of -b, -h, -N and -j can be given")
    return o


def option_texts() -> dict[str, str]:
    """What the help says of each option of one letter."""
    lines = [line for line in HELP.splitlines() if line.startswith("  -") and line[3] != "-"]
    return {line[2:4]: line[14:].strip() for line in lines}


def _valued(letter: str, value: str) -> dict[str, Any]:
    if letter == "A":
        raise BadInput("periodic checkpoints (-A) are not built yet", hint="run the command without -A")
    if letter == "N":
        return {"node": value}
    nodes = tuple(n for n in value.split(",") if n)
    if not nodes:
        raise BadInput("-j needs the names of nodes, as in -j n1,n2")
    return {"nodes": nodes}


def find(command: bytes, path: bytes) -> bytes:
    """The file that execvp(3) would start; raises ``FileNotFoundError`` (a shell says 127) or ``PermissionError`` (126)."""
    candidates = [command] if b"/" in command else [os.path.join(d or b".", command) for d in path.split(b":")]
    seen = errno.ENOENT
    for file in candidates:
        try:
            if stat.S_ISDIR(os.stat(file).st_mode):
                seen = errno.EACCES if b"/" in command else seen
                continue
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            seen = e.errno or seen
            continue
        if os.access(file, os.X_OK):
            return file
        seen = errno.EACCES
    raise OSError(seen, os.strerror(seen))


def _environment() -> dict[bytes, bytes]:
    """The environment as it was given to us: Python adds LC_CTYPE to its own in the C locale (PEP 538), the kernel keeps the first."""
    with open("/proc/self/environ", "rb") as f:
        pairs = (entry.partition(b"=") for entry in f.read().split(b"\0") if entry)
        return {k: v for k, _, v in pairs if k}


def _register(o: Options) -> None:
    from omtools.client import Client, Lost

    if in_cell():
        _goes_along(o)
        return
    try:
        with Client() as client:
            # with a placement omdiscd arms itself before it answers: the process then moves at its exec, before the first instruction
            client.call("job", wait=_PATIENCE, pid=os.getpid(), flags=o.flags())
    except (NoDaemon, Lost) as e:
        error = e if isinstance(e, NoDaemon) else NoDaemon(f"the connection to omdiscd broke: {e}")
        if o.placed:
            raise error from e
        if not o.quiet:
            print(f"mosrun: {error.message}: {o.command[0]} runs here and will not move", file=sys.stderr)


def _goes_along(o: Options) -> None:
    """A job that was moved starts a part of itself.  Raises :class:`BadInput` when that must run on certain nodes."""
    cmd = o.command[0]
    if o.node or o.nodes:
        why = f"this is part of a job that was moved, and goes where that goes; {cmd} was not started"
        raise BadInput(why, hint="start it outside of that job, or without -N and -j")
    if (o.best or o.home or o.locked) and not o.quiet:
        print(f"mosrun: this is part of a job that was moved: {cmd} goes where that goes, whatever its options say", file=sys.stderr)


def _become(program: bytes, command: list[str], environment: dict[bytes, bytes]) -> NoReturn:
    # Python ignores these two for itself; the command must start with what a shell gives it
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    words = [os.fsencode(w) for w in command]
    try:
        os.execve(program, words, environment)
    except OSError as e:
        if e.errno != errno.ENOEXEC:
            raise
        # a script without #!: a shell runs it, as execvp(3) and every shell do
        os.execve(b"/bin/sh", [b"/bin/sh", program, *words[1:]], environment)
