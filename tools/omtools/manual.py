"""Pages of the manual that are made from the source: ``python -m omtools.manual`` rewrites them, and a test compares.

``docs/cannot-move.md`` comes from the kinds of obstacles, ``docs/man/omdiscd.toml.md`` from the comments of the configuration's fields,
``docs/errors.md`` from the classes of errors.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from mig import errors
from mig.config_file import knobs
from mig.inspect import kinds

ROOT = Path(__file__).parents[2]

_HEAD = """# omdiscd.toml(5)

## NAME

omdiscd.toml – configuration of omdiscd

## DESCRIPTION

*/etc/mig/omdiscd.toml* is a flat TOML file. Every key has a default that suits a machine that nobody configured, and the file may be
missing. Unknown keys and wrong types are errors, so that a typing mistake is not silently a default. `omdiscd --check-config` prints the
values in effect.

Seconds, bytes and bytes per second unless the text says otherwise.
"""  # noqa: RUF001  # the dash of a manual page's NAME

_TAIL = """
## EXAMPLE

    name = "atlas"
    interfaces = ["eth1"]
    seeds = ["192.168.1.10"]
    auto = "all"
    allow_uids = [1000, 1999]

## SEE ALSO

omdiscd(8), mosctl(1)
"""

_ERRORS_HEAD = """# Errors and exit statuses

Every tool says what failed on standard error: a line, a line for each reason, and in parentheses what to do. Its exit status tells the
kind. With `--json` the same stands on standard output as `{"error": {"code": …, "message": …, "reasons": […], "hint": …}}`.

| status | code | |
|---|---|---|
| 0 | | done; after `migrate`: the process runs at its destination |"""

_ERRORS_TAIL = """
## Other statuses

| | |
|---|---|
| `mosctl isup`, `mosctl doctor` | 1: the answer is no |
| `mosrun CMD` | that of CMD; 127: not found, 126: cannot be executed |
| `moslab run NODE -- CMD` | that of CMD; 128+N: ended by signal N |
| any | 130: interrupted by Ctrl-C; 141: the reader of the output went away |

A move is never undone by interrupting `migrate`: what has begun goes on, and `mosps` shows it.
"""


def pages() -> dict[Path, str]:
    """Path and content of each page that is made from the source."""
    return {
        ROOT / "docs/cannot-move.md": kinds.manual(),
        ROOT / "docs/man/omdiscd.toml.md": configuration(),
        ROOT / "docs/errors.md": error_classes(),
    }


def error_classes() -> str:
    """The page of errors: a table of the exit statuses, and a section for each class of :mod:`mig.errors` from its docstring."""
    found = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, errors.MigError)]
    rows, sections = [_ERRORS_HEAD], []
    for c in sorted(found, key=lambda c: (c.exit_code, c.code)):
        meaning, _, advice = (inspect.getdoc(c) or "").replace("``", "`").partition("\n\n")
        meaning = " ".join(meaning.split())
        rows.append(f"| {c.exit_code} | `{c.code}` | {meaning.rstrip('.')} |")
        sections += ["", f"## {c.exit_code}: {c.code}", "", meaning, "", re.sub(r"\.  ", ". ", advice)]
    return "\n".join([*rows, *sections, _ERRORS_TAIL])


def configuration() -> str:
    """The page of omdiscd.toml: sections, keys, defaults and comments of :class:`Config`, in their order."""
    out, section = [_HEAD.rstrip()], ""
    for k in knobs():
        if k.section != section:
            section = k.section
            out += ["", f"## {section.upper()}"]
        out += ["", f"**{k.name}** = `{k.default}`", ": " + "\n".join(k.comment or ["As above."])]
    return "\n".join([*out, _TAIL])


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content)
