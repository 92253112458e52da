"""Pages of the manual that are made from the source: ``python -m omtools.manual`` rewrites them, and a test compares.

``docs/cannot-move.md`` comes from the kinds of obstacles, ``docs/man/omdiscd.toml.md`` from the comments of the configuration's fields.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from mig.config import Config
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
    uids = [1000, 1999]

## SEE ALSO

omdiscd(8), mosctl(1)
"""


def pages() -> dict[Path, str]:
    """Path and content of each page that is made from the source."""
    return {ROOT / "docs/cannot-move.md": kinds.manual(), ROOT / "docs/man/omdiscd.toml.md": configuration()}


def configuration() -> str:
    """The page of omdiscd.toml: sections, keys, defaults and comments of :class:`Config`, in their order."""
    defaults = dict(line.split(" = ", 1) for line in Config().describe().splitlines())
    out = [_HEAD.rstrip()]
    comment: list[str] = []
    for line in inspect.getsource(Config).splitlines():
        text = line.strip()
        if section := re.match(r"# -- (.*?) -+$", text):
            out += ["", f"## {section[1].upper()}"]
            comment = []
        elif text.startswith("# "):
            comment.append(text[2:])
        elif (name := re.match(r"(\w+): .* = ", text)) and name[1] in defaults:
            out += ["", f"**{name[1]}** = `{defaults[name[1]]}`", ": " + "\n".join(comment or ["As above."])]
            comment = []
        elif text == "@classmethod":
            break
    return "\n".join([*out, _TAIL])


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content)
