"""The documentation is true: links lead somewhere, command lines can be parsed, quoted messages are in the source, nothing is missing."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from omtools import mosctl, mosrun, pam_files
from omtools.completion.commands import PARSERS
from omtools.completion.model import of_parser

from mig import errors
from mig.errors import BadInput, MigError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
PLACEHOLDERS = {
    "PID": "42", "NODE": "n2", "NODES": "n1,n2", "FILE": "f", "N": "3", "$!": "42", "SPEED": "1.5", "S": "5", "UID": "1000", "CORES": "2",
}  # fmt: skip


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    for page in DOCS.rglob("*.md"):
        where = str(page.relative_to(DOCS))
        assert where == "README.md" or f"({where})" in index, where


@pytest.mark.parametrize("picture", sorted((DOCS / "pictures").glob("*.svg")), ids=lambda p: p.name)
def test_pictures_are_drawn_for_everybody(picture: Path) -> None:
    tree = ET.parse(picture).getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert tree.find(f"{svg}title") is not None and tree.find(f"{svg}desc") is not None
    x, y, width, height = map(float, tree.attrib["viewBox"].split())
    for box in tree.iter(f"{svg}rect"):
        a = {k: float(box.attrib[k]) for k in ("x", "y", "width", "height")}
        assert x <= a["x"] and a["x"] + a["width"] <= x + width and y <= a["y"] and a["y"] + a["height"] <= y + height
    assert any(picture.name in p.read_text() for p in PAGES), "shown nowhere"


@pytest.mark.parametrize("picture", sorted(DOCS.rglob("*.svg")), ids=lambda p: p.name)
def test_words_of_pictures_are_not_cut_off(picture: Path) -> None:
    tree = ET.parse(picture).getroot()
    whole = float(tree.attrib["viewBox"].split()[2] if "viewBox" in tree.attrib else tree.attrib["width"])
    for text in tree.iter("{http://www.w3.org/2000/svg}text"):
        said, x, kind = "".join(text.itertext()), float(text.attrib["x"]), text.attrib.get("class", "").split()
        long = len(said) * 0.5 * (12 if "small" in kind else 16 if "title" in kind else float(tree.attrib["font-size"]))
        before = long if text.attrib.get("text-anchor") == "end" else long / 2 if "mid" in kind else 0
        assert x - before >= 0 and x - before + long <= whole, said


# -- command lines ----------------------------------------------------------------------------------------------------------------

COMMAND = re.compile(rf"(?<![\w./-])({'|'.join(PARSERS)})((?: (?:'[^']*'|[^\n;|&#`'<>])*)?)")


def code(page: Path) -> Iterator[str]:
    """What is typed according to a page: lines of its examples, and code inside of its text."""
    text = page.read_text()
    if page.name == "from-openmosix.md":
        text = re.sub(r"^\| [^|]*\|", "|", text, flags=re.MULTILINE)  # its first columns are openMosix's
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE) + re.findall(r"(?:^ {4,}\S.*\n)+", text, re.MULTILINE)
    for block in blocks:
        lines = [line.strip() for line in block.splitlines()]
        prompted = [m[1] for line in lines if (m := re.match(r"(?:root@\w+:\S*)?[#$] (.*)", line))]
        yield from prompted or lines
    # a line of troubleshooting that begins with code quotes a message
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```|^\*\*`[^`]+`", "", text, flags=re.DOTALL | re.MULTILINE))


def typed() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for line in code(page):
            m = COMMAND.match(line) or re.match(rf".* -I\{{\}} ({'|'.join(PARSERS)})( .*)", line)
            if m and len(m[2]) > 1 and not re.search(r"[\[\]{}]…|…$|\{[a-z]+[|,]", m[2]) and not line.endswith(":"):
                yield name(page), f"{m[1]}{m[2]}"


@pytest.mark.parametrize(("page", "line"), sorted(set(typed())), ids=lambda x: x)
def test_a_command_line_can_be_typed(page: str, line: str) -> None:
    line = re.sub(r" {2,}.*", "", line.replace("$!", "42"))  # what stands behind a gap explains
    program, *words = [PLACEHOLDERS.get(w, w) for w in shlex.split(line, comments=True)]
    words = ["42" if w.startswith("$") and w != "$f" else w for w in words]
    if program == "mosrun":
        if words not in (["--help"], ["--version"], ["-A"]) and not set(words) <= {"-b", "-h", "-j", "-L", "-q", "-N", "n1,n2"}:
            mosrun.parse([w for w in words if w != "…"])
        return
    if program == "mosctl" and "-f" in words:
        words[words.index("-f")] = "--follow"
    if len(words) == 1 and program == "mosctl":  # a verb is named, not typed
        assert words[0] in {v.name for v in of_parser(mosctl.parser(), "mosctl").verbs} | {"--help", "--version"}
        return
    parser = PARSERS[program]()
    parser.exit_on_error = False
    try:
        parser.parse_args(words)
    except SystemExit as e:
        assert e.code == 0 or len(words) == 1, f"{page}: {line}"
    except argparse.ArgumentError as e:
        if len(words) == 1:
            return  # an option is named, not typed
        raise AssertionError(f"{page}: {line}: {e}") from e


def test_what_is_named_is_found() -> None:
    lines = [line for _, line in typed()]
    assert len(lines) > 80 and any(line.startswith("mosrun -b povray") for line in lines)


# -- messages and lists -----------------------------------------------------------------------------------------------------------


@cache
def source() -> str:
    """All texts of the source, those of f-strings with their holes as blanks."""
    out = []
    for file in [f for d in ("mig", "daemon", "tools") for f in (ROOT / d).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                out.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                out.append(node.value)
    return "\n".join(out)


@cache
def templates() -> list[re.Pattern[str]]:
    """Messages with holes, as patterns in which a hole is some words."""
    lines = [line for line in source().splitlines() if "\0" in line and len(line.replace("\0", "").strip()) > 12]
    return [re.compile(re.escape(line.split(" (")[0]).replace("\0", "[a-z0-9 ]+")) for line in lines]


def test_messages_that_troubleshooting_quotes_are_said_by_the_source() -> None:
    text = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\*\*`([^`]+)`", text, re.MULTILINE) + re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    assert len(quoted) > 8
    for message in quoted:
        for part in re.split(r"…|/tmp/x|\d+ s\b|n1\b|\bPID\b", message):
            found = part.strip() in source() or any(t.fullmatch(part.strip()) for t in templates())
            assert found, f"{message!r}: nothing says {part!r}"


def test_every_error_and_status_is_documented() -> None:
    page = (DOCS / "errors.md").read_text()
    for c in vars(errors).values():
        if isinstance(c, type) and issubclass(c, MigError):
            assert f"## {c.exit_code}: {c.code}\n" in page
            assert (c.__doc__ or "").count("\n\n") >= 1, f"{c.__name__} does not say what to do"


def test_every_verb_of_mosctl_that_openmosix_had_is_in_the_table() -> None:
    page = (DOCS / "from-openmosix.md").read_text()
    verbs = {v.name for v in of_parser(mosctl.parser(), "mosctl").verbs}
    for old in {
        "status",
        "whois",
        "isup",
        "getload",
        "getspeed",
        "getmem",
        "getfree",
        "getutil",
        "block",
        "noblock",
        "expel",
        "bring",
        "lock",
        "unlock",
        "setspeed",
        "stay",
        "nostay",
        "lstay",
        "nolstay",
        "quiet",
        "noquiet",
    } & verbs:
        assert re.search(rf"`(mosctl )?{old}[` ]", page), old


def test_the_line_of_pam_is_the_one_that_is_installed() -> None:
    line = re.sub(r"\S+/libexec", "/libexec", pam_files.line())
    page = re.sub(r"\S+/libexec", "/libexec", (DOCS / "adaptive-pool.md").read_text())
    assert " ".join(line.split()) in " ".join(page.split())


def test_placeholders_are_refused_where_they_should_be() -> None:
    with pytest.raises(BadInput):
        mosrun.parse(["-Q", "x"])
