"""The configuration as one file with every key, made from the comments and defaults of :class:`mig.config.Config`: it cannot drift."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mig.config import Config

_HEAD = """\
# /etc/mig/omdiscd.toml: the configuration of omdiscd, with every key at its default.
#
# Made by: omdiscd --print-config.  A line that is not needed may stay a comment: then the default holds, also a future one.
# omdiscd --check-config tells what is understood; mosctl reload (or SIGHUP) lets a running omdiscd read it again.
# Seconds, bytes and bytes/s unless the text says otherwise.
"""


@dataclass(frozen=True)
class Knob:
    """One key: the section that it is in, its comment (empty: that of the key before), its default as TOML."""

    section: str
    name: str
    comment: tuple[str, ...]
    default: str


def knobs() -> Iterator[Knob]:
    """All keys, in the order of the source."""
    defaults = dict(line.split(" = ", 1) for line in Config().describe().splitlines())
    section, comment = "", list[str]()
    for line in inspect.getsource(Config).splitlines():
        text = line.strip()
        if found := re.match(r"# -- (.*?) -+$", text):
            section, comment = found[1], []
        elif text.startswith("# "):
            comment.append(text[2:])
        elif (name := re.match(r"(\w+): .* = ", text)) and name[1] in defaults:
            yield Knob(section, name[1], tuple(comment), defaults[name[1]])
            comment = []
        elif text == "@classmethod":
            return


def commented() -> str:
    """The file."""
    out, section = [_HEAD.rstrip()], ""
    for k in knobs():
        if k.section != section:
            section = k.section
            out += ["", "", f"# == {section} =="]
        if k.comment:
            out.append("")
        out += [*(f"# {line}" for line in k.comment), f"#{k.name} = {k.default}"]
    return "\n".join(out) + "\n"
