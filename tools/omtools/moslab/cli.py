"""``moslab``: a pool of virtual nodes inside one machine."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tomllib
from collections.abc import Sequence
from typing import Any, NoReturn

from mig import __version__
from mig.errors import BadInput, MigError, NotPermitted

from . import lab as labs

DESCRIPTION = """\
A pool of virtual nodes inside one machine.  Every node is a container with
its own processes, network, host name and writable overlay of the machine's
root file system (what is written there is seen in that node only, and gone
after `down`), and runs its own omdiscd.  The tools are on PATH in every node."""

EPILOG = """\
examples:
  moslab up 3                       n1, n2, n3; returns when all see each other
  moslab run n1 -- bash             a shell in n1
  moslab run n1 -- mosctl status    the pool as n1 sees it
  moslab spawn n1 -- sleep 1000     in the background; prints its PID in n1
  moslab kill n2; moslab start n2   power loss, and the next boot
  moslab down                       nothing is left

`run` passes its standard input and output on as they are (a terminal becomes
a terminal of the node) and ends with the command's exit status: 128+N after
signal N, 127 not found, 126 not executable.  -u takes a number or a name of
the node's /etc/passwd.  `spawn` detaches: no input, output goes to
/run/moslab/out/PID in the node; the command's parent is the node's pid 1.
omdiscd's output is in /run/moslab/omdiscd.log of each node.  It is started
once; after its end `restart-daemon` starts it again.

exit status:
  0 done   2 bad input (no such lab or node, lab exists)
  4 the machine cannot do it   6 not root   for `run` the command's"""

_UNITS = {"": 1, "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter  # keeps line breaks
    p = argparse.ArgumentParser(prog="moslab", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    p.add_argument("--version", action="version", version=f"moslab {__version__}")
    p.add_argument("--lab", default=os.environ.get("MOSLAB", labs.DEFAULT), metavar="NAME", help="which lab (default: $MOSLAB, else 'lab')")
    verbs = p.add_subparsers(dest="verb", required=True, metavar="VERB")

    up = verbs.add_parser("up", help="make a lab")
    up.add_argument("count", nargs="?", type=int, default=3, metavar="N", help="nodes, named n1 to nN (default 3)")
    up.add_argument("--link", default="0", metavar="RATE", help="speed of each node's link, as 1gbit or 100mbit (default: unlimited)")
    up.add_argument("--speed", action="append", default=[], metavar="NODE=X", help="give a node this share of a node's CPU time (0.01-1)")
    up.add_argument("--cpus", type=float, metavar="X", help="CPUs that each node may use (default: 0.9 x cores / N)")
    up.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="setting of every omdiscd.toml")

    for verb, text in (("run", "run a command in a node and wait for it"), ("spawn", "start a command in a node; print its PID there")):
        v = verbs.add_parser(verb, help=text, usage=f"moslab [--lab NAME] {verb} NODE [-u UID] -- CMD [ARG...]")
        v.add_argument("node", metavar="NODE")
        v.add_argument("-u", "--user", default="0", metavar="UID", help="as this user: a number or a name (default: root)")
        v.add_argument("command", nargs="*", metavar="CMD")
    again = [verbs.add_parser("start", help="boot a node after kill: same disk, fresh /run")]
    again.append(verbs.add_parser("restart-daemon", help="end the node's omdiscd if it runs, and start it"))
    for v in again:
        v.add_argument("node", metavar="NODE")
    for v in (up, *again):
        v.add_argument("--no-wait", action="store_true", help="return without waiting until the daemons see each other")
    for verb, text in (
        ("kill", "power loss: every process of the node is gone, its network too"),
        ("cut", "the node's link loses every packet; the node does not notice"),
        ("heal", "the node's link is whole again"),
    ):
        verbs.add_parser(verb, help=text).add_argument("node", metavar="NODE")
    verbs.add_parser("status", help="the lab's nodes").add_argument("--json", action="store_true", help="for programs")
    verbs.add_parser("down", help="remove a lab, whole or broken; nothing is left")
    return p


def rate(text: str) -> int:
    """Bits a second from ``1gbit``, ``100mbit``, ``500kbit`` or a plain number; raises :class:`BadInput`."""
    m = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?bit|)", text.strip().lower())
    if m is None:
        raise BadInput(f"--link {text}: not a rate", hint="as 1gbit or 100mbit")
    bits = int(float(m[1]) * _UNITS[m[2]])
    if bits and bits < 8000:
        raise BadInput(f"--link {text}: less than 8 kbit/s")
    return bits


def assignment(option: str, text: str) -> tuple[str, str]:
    """``A=B`` split; raises :class:`BadInput`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BadInput(f"{option} {text}: must be NAME=VALUE")
    return name.strip(), value.strip()


def toml_value(text: str) -> Any:
    """``text`` as a TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _plan(args: argparse.Namespace) -> labs.Lab:
    speeds = {}
    for text in args.speed:
        node, value = assignment("--speed", text)
        try:
            speeds[node] = float(value)
        except ValueError:
            raise BadInput(f"--speed {text}: {value!r} is not a number") from None
    settings = {name: toml_value(value) for name, value in (assignment("--set", s) for s in args.settings)}
    return labs.plan(args.lab, args.count, speeds=speeds, link=rate(args.link), settings=settings, cpus=args.cpus)


def _command(args: argparse.Namespace) -> list[str]:
    if not args.command:
        raise BadInput(f"{args.verb}: what command?", hint=f"moslab {args.verb} NODE -- CMD ARG...")
    return list(args.command)


def _print_status(status: dict[str, Any]) -> None:
    print(f"{'node':<6}{'state':<7}{'link':<6}{'addr':<16}{'speed':>6}{'cpus':>7}{'omdiscd':>9}")
    for n in status["nodes"]:
        link = "-" if n["state"] == "off" else "cut" if n["cut"] else "ok"
        print(f"{n['name']:<6}{n['state']:<7}{link:<6}{n['addr']:<16}{n['speed']:>6g}{n['cpus']:>7g}{n['omdiscd'] or '-':>9}")


def dispatch(args: argparse.Namespace) -> int:
    """Do what was asked; returns the exit status, raises :class:`MigError`.  Modules are imported as needed: `run` must start fast."""
    if os.geteuid() != 0:
        raise NotPermitted("moslab must be run as root", hint="it makes namespaces, mounts and cgroups")
    if args.verb == "up":
        from . import power, ready

        lab = _plan(args)
        # not only Ctrl-C: an `up` that is told to end takes what it has made with it
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda n, _: sys.exit(128 + n))
        for warning in power.up(lab):
            print(f"moslab: {warning}", file=sys.stderr)
        if not args.no_wait:
            try:
                ready.wait(lab, lab.nodes)
            except BaseException:
                power.down(lab)
                raise
        return 0
    if args.verb == "down":
        from . import power

        power.down(labs.Lab(labs.check_name(args.lab)))
        return 0
    lab = labs.load(args.lab)
    if args.verb == "status":
        from . import power

        status = power.status(lab)
        print(json.dumps(status, indent=1)) if args.json else _print_status(status)
        return 0
    node = lab.node(args.node)
    if args.verb == "run":
        from . import terminal

        return terminal.run(lab, node, _command(args), user=args.user)
    if args.verb == "spawn":
        from . import enter

        print(enter.spawn(lab, node, _command(args), user=args.user))
        return 0
    from . import enter, power, ready

    if args.verb == "restart-daemon":
        enter.start_daemon(lab, node)
    else:
        verb = {"kill": power.kill, "start": power.start, "cut": power.cut, "heal": power.heal}[args.verb]
        verb(lab, node)
    if args.verb in ("start", "restart-daemon") and not args.no_wait:
        ready.wait_for_restarted(lab, node)
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script."""
    words = list(sys.argv[1:] if argv is None else argv)
    # split here: argparse would take options of CMD for ours, and drop a second `--`
    ours = words.index("--") if "--" in words else len(words)
    args = parser().parse_args(words[:ours])
    if words[ours + 1 :]:
        args.command = words[ours + 1 :]
    try:
        status = dispatch(args)
    except MigError as e:
        print("\n".join(f"moslab: {line}" if i == 0 else line for i, line in enumerate(e.lines())), file=sys.stderr)
        status = getattr(e, "exit_status", e.exit_code)
    except OSError as e:  # the kernel refused something that is not the user's fault
        print(f"moslab: {e}", file=sys.stderr)
        status = MigError.exit_code
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
