"""Manual pages for man(1) from the Markdown of docs/man: the few kinds of blocks that these pages use.  Only the standard library: setup.py
runs it before anything else is installed.

A page begins with ``# name(section)``.  Blocks: ``##`` headings, paragraphs, definitions (a term and, in the next line, ``: text``),
lists, indented or fenced examples, tables.  Inside: ``**bold**``, ``*italic*``, `` `code` ``, ``[text](link)``.  The result is in the
man macros of groff_man(7), tables in tbl(1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_INLINE = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*|\*(.+?)\*|\[([^\]]+)\]\(([^)]+)\)")
_CHARACTERS = {"\\": "\\e", "-": "\\-", "–": "\\(en", "…": "...", "→": "\\(->", "×": "\\(mu", "≤": "\\(<=", "≥": "\\(>="}  # noqa: RUF001  # typographic signs


def page(text: str, source: str = "") -> tuple[str, str]:
    """File name (``mosctl.1``) and content of a page.  Raises ``ValueError`` when it does not begin with its title."""
    title = re.match(r"# ([\w.-]+)\((\d)\)\n", text)
    if title is None:
        raise ValueError("a page begins with '# name(section)'")
    name, section = title.groups()
    lines: list[str] = []
    for block in _blocks(text[title.end() :]):
        # a heading begins a paragraph already; in NAME mandb(8) looks for a dash of this kind
        begun = bool(lines) and lines[-1].startswith(".SH")
        named = begun and lines[-1] == ".SH NAME"
        block = block[1:] if begun and block[0] == ".PP" else block
        lines += [line.replace(" \\(en ", " \\- ", 1) for line in block] if named else block
    body = "\n".join(lines)
    return f"{name}.{section}", f'\'\\" t\n.TH {name.upper()} {section} "" "{source}" "openMosix in userspace"\n{body}\n'


def write_all(pages: Path, into: Path, source: str = "") -> list[Path]:
    """Write ``man1/…`` and so on below ``into`` for every page of a directory; returns the files."""
    files = []
    for markdown in sorted(pages.glob("*.md")):
        name, content = page(markdown.read_text(encoding="utf-8"), source)
        file = into / f"man{name[-1]}" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        files.append(file)
    return files


def _blocks(text: str) -> Iterator[list[str]]:
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
        elif line.startswith("```"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
            yield _example(lines[at + 1 : end])
            at = end + 1
        elif line.startswith("## "):
            yield [f".SH {_escape(line[3:])}"]
            at += 1
        else:
            end = at
            while end < len(lines) and (lines[end].strip() or _example_goes_on(lines, at, end)):
                end += 1
            yield _block(lines[at:end])
            at = end


def _example_goes_on(lines: list[str], at: int, end: int) -> bool:
    """An empty line inside of an indented example."""
    return lines[at].startswith("    ") and end + 1 < len(lines) and lines[end + 1].startswith("    ")


def _block(block: list[str]) -> list[str]:
    if block[0].startswith("    "):
        return _example([line[4:] for line in block])
    if block[0].startswith("|"):
        return _table(block)
    if re.match(r"[-*] |\d+\. ", block[0]):
        items = re.split(r"\n(?=[-*] |\d+\. )", "\n".join(block))
        out = []
        for item in items:
            mark, _, text = item.partition(" ")
            out += [".IP \\(bu 2" if mark in "-*" else f".IP {mark} 4", _text(text)]
        return out
    terms = [i for i, line in enumerate(block) if line.startswith(": ")]
    if terms:
        term, text = block[: terms[0]], block[terms[0] :]
        return [".TP", _text(" ".join(term)), _text("\n".join([text[0][2:], *text[1:]]))]
    return [".PP", _text("\n".join(block))]


def _example(lines: list[str]) -> list[str]:
    return [".PP", ".RS 4", ".nf", *(_guard(_escape(line)) for line in lines), ".fi", ".RE"]


def _table(block: list[str]) -> list[str]:
    rows = [[c.strip() for c in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in block]
    rows = [r for r in rows if not all(set(c) <= set("-: ") and c for c in r)]
    count = len(rows[0])
    head = any(rows[0])
    out = [".PP", ".TS"]
    if head:
        out.append(" ".join(["lb"] * count))
    out.append(" ".join(["lt"] * (count - 1) + ["ltx"]) + ".")
    for r in rows[0 if head else 1 :]:
        cells = [_text(c.replace("\\|", "|")) for c in r]
        out.append("\t".join([*cells[:-1], f"T{{\n{cells[-1]}\nT}}"]))
    return [*out, ".TE"]


def _text(text: str) -> str:
    """Running text: one line of input, whatever lines it had."""
    text = " ".join(text.split())
    out, at = [], 0
    for m in _INLINE.finditer(text):
        out.append(_escape(text[at : m.start()]))
        code, bold, italic, label, _link = m.groups()
        if label:
            out.append(_escape(label.replace("`", "")))
        else:
            # inside of bold there may be italic no more: pages write **a** *b*
            font = "I" if italic else "B"
            out.append(f"\\f{font}{_escape(code or bold or italic)}\\fP")
        at = m.end()
    return _guard("".join([*out, _escape(text[at:])]))


def _escape(text: str) -> str:
    return "".join(_CHARACTERS.get(c, c) for c in text)


def _guard(line: str) -> str:
    """A line of text that begins like a request."""
    return "\\&" + line if line.startswith((".", "'")) else line
