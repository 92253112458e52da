"""``omdiscd``: one per node, root, in the foreground.  The command line; the daemon itself is imported only to be run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import mig
from mig import paths
from mig.errors import MigError


def main() -> int:
    """The console script."""
    args = parser().parse_args()
    try:
        if args.print_config or args.print_unit or args.check_config:
            status = _print(args)
            sys.stdout.flush()
            return status
        return _run(args)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # who reads our output has seen enough
        return 141
    except MigError as e:
        print("\n".join(f"omdiscd: {line}" if i == 0 else line for i, line in enumerate(e.lines())), file=sys.stderr)
        return e.exit_code


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="omdiscd", description="the node daemon: finds peers, tells its load, moves processes")
    p.add_argument(
        "-i",
        dest="interfaces",
        metavar="IF[,IF]",
        type=lambda s: s.split(","),
        default=[],
        help="interfaces on which to look for other nodes",
    )
    p.add_argument("-n", action="store_true", help="stay in the foreground (it always does; accepted as in openMosix)")
    p.add_argument("-c", dest="config", metavar="FILE", type=Path, help=f"configuration file (default: {paths.CONFIG})")
    p.add_argument(
        "--check-config", action="store_true", help="print the configuration as understood and exit; status 2 when it is not valid"
    )
    p.add_argument("--print-config", action="store_true", help="print a configuration file with every key, its default and what it means")
    p.add_argument("--print-unit", action="store_true", help="print a unit for systemd that runs this omdiscd")
    p.add_argument("--debug", action="store_true", help="log more")
    p.add_argument("--version", action="version", version=f"omdiscd {mig.__version__}")
    return p


def _print(args: argparse.Namespace) -> int:
    from mig.config import load
    from mig.config_file import commented
    from mig.trust import keys
    from omdiscd.service import unit

    if args.print_config or args.print_unit:
        print(commented() if args.print_config else unit(), end="")
        return 0
    print(load(args.config).describe())
    if os.geteuid() == 0:
        keys.load()  # raises for a key that is none, or that others may read
    return 0


def _run(args: argparse.Namespace) -> int:
    import asyncio
    import logging

    from mig import logs
    from mig.config import load
    from omdiscd.app import Daemon

    logs.to_stderr(logging.DEBUG if args.debug else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    config = load(args.config)
    if os.geteuid() != 0:
        raise MigError("omdiscd must run as root: it freezes, dumps and restores processes of all users")
    daemon = Daemon(config, args.interfaces, args.config)
    asyncio.run(daemon.run())
    if daemon.anew:  # in the same process: whoever watches it sees no end, guests and their helpers see nothing at all
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return 0


if __name__ == "__main__":
    sys.exit(main())
