"""``mosps``: the jobs and guests of this node, a row each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omtools import output

if TYPE_CHECKING:
    import argparse

EXIT_CODES = """exit status:
  0 done   2 wrong usage   7 no omdiscd answers on this machine"""

JSON_KEYS = (
    *("pid", "home", "where", "state", "nmigs", "locked", "cantmove", "cpu_s", "rss", "uid", "comm"),
    *("arriving", "holder", "waiting_for", "waiting_s"),
)

COLUMNS: tuple[output.Column, ...] = (
    ("PID", ">", lambda r: str(r["pid"])),
    ("USER", "<", lambda r: user(int(r["uid"]))),
    ("HOME", "<", lambda r: str(r["home"])),
    ("WHERE", "<", lambda r: str(r["where"])),
    ("STATE", "<", lambda r: state(r)),
    ("MOVES", ">", lambda r: str(r["nmigs"])),
    ("LOCK", "<", lambda r: "L" if r["locked"] else ""),
    ("CPU", ">", lambda r: output.duration(float(r["cpu_s"]))),
    ("MEM", ">", lambda r: output.size(float(r["rss"]))),
    ("COMMAND", "<", lambda r: str(r["comm"])),
    ("ARRIVING", ">", lambda r: output.size(float(r["arriving"])) if r["arriving"] else ""),
    ("CANNOT MOVE", "<", lambda r: "; ".join(r["cantmove"])),
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = output.parser(
        "mosps", "Show the processes of the pool that this node knows: its own jobs and guests, and guests from elsewhere.", EXIT_CODES
    )
    p.add_argument("-a", "--all", action="store_true", help="those of all users (root sees them anyway)")
    p.add_argument("--json", action="store_true", help=f"print a list of objects: {', '.join(JSON_KEYS)}")
    return p


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    a = parser().parse_args(argv)
    return output.run(lambda: _show(a.all, a.json), "mosps", json=a.json)


def _show(everything: bool, json: bool) -> int:
    from omtools.client import Client

    with Client() as client:
        guests = client.call("guests", all=everything)["guests"]
    rows = sorted((row(g) for g in guests), key=lambda r: (str(r["home"]), int(r["pid"])))
    if json:
        output.print_json(rows)
        return 0
    unused = {name for name, key in (("ARRIVING", "arriving"), ("CANNOT MOVE", "cantmove")) if not any(r[key] for r in rows)}
    output.table(rows, [c for c in COLUMNS if c[0] not in unused])
    return 0


def row(guest: dict[str, Any]) -> dict[str, Any]:
    """The documented keys of a guest's state, each present."""
    empty = {"pid": 0, "home": "", "where": "", "state": "", "nmigs": 0, "locked": False, "cantmove": [],
             "cpu_s": 0.0, "rss": 0, "uid": 0, "comm": "", "arriving": 0, "holder": 0,
             "waiting_for": "", "waiting_s": 0.0}  # fmt: skip
    return {k: guest.get(k, empty[k]) for k in JSON_KEYS}


def state(r: dict[str, Any]) -> str:
    """Its state, or what it waits for: threads that need a page which is not here stand still, the others run."""
    return f"waiting for memory from {r['waiting_for']}, {r['waiting_s']:.0f} s" if r["waiting_for"] else str(r["state"])


def user(uid: int) -> str:
    """The user's name here, or the number."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
