"""Manual pages for man(1), and the files of a wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from omtools import roff, share_files
from omtools.completion.commands import PARSERS

ROOT = Path(__file__).parents[2]
PAGE = """# tool(1)

## NAME

tool – does this

## OPTIONS

**-a** *FILE*, **--all**
: All of it,
over two lines.

A paragraph with `code`, a [link](x.md) and a - dash.

    .example \\ 'x'

    after an empty line

| key | |
|---|---|
| `a` | *b* |

* one
* two
"""  # noqa: RUF001  # the dash of a manual page's NAME


def test_each_kind_of_block() -> None:
    name, page = roff.page(PAGE, "tool 1")
    assert name == "tool.1"
    assert page.splitlines() == [
        "'\\\" t", '.TH TOOL 1 "" "tool 1" "openMosix in userspace"', ".SH NAME", "tool \\- does this", ".SH OPTIONS",
        ".TP", "\\fB\\-a\\fP \\fIFILE\\fP, \\fB\\-\\-all\\fP", "All of it, over two lines.",
        ".PP", "A paragraph with \\fBcode\\fP, a link and a \\- dash.",
        ".PP", ".RS 4", ".nf", "\\&.example \\e 'x'", "", "after an empty line", ".fi", ".RE",
        ".PP", ".TS", "lb lb", "lt ltx.", "key\tT{", "", "T}", "\\fBa\\fP\tT{", "\\fIb\\fP", "T}", ".TE",
        ".IP \\(bu 2", "one", ".IP \\(bu 2", "two",
    ]  # fmt: skip


def test_a_page_without_title_is_refused() -> None:
    with pytest.raises(ValueError, match="begins with"):
        roff.page("## NAME\n")


def test_groff_has_nothing_to_say_against_our_pages(tmp_path: Path) -> None:
    files = roff.write_all(ROOT / "docs" / "man", tmp_path)
    assert {f.stem for f in files if f.suffix in (".1", ".8")} >= set(PARSERS)
    for file in files:
        done = subprocess.run(["groff", "-t", "-man", "-Tutf8", "-ww", str(file)], capture_output=True, text=True, check=True)
        assert not done.stderr, file
        assert "**" not in done.stdout and "`" not in done.stdout, f"{file}: Markdown came through"


def test_what_is_installed_has_every_command(tmp_path: Path) -> None:
    files = {str(f.relative_to(tmp_path)) for f in share_files.write(ROOT / "docs" / "man", tmp_path, "x")}
    assert set(share_files.COMMANDS) == set(PARSERS)
    for c in PARSERS:
        assert f"bash-completion/completions/{c}" in files and f"fish/vendor_completions.d/{c}.fish" in files
    assert "zsh/site-functions/_mig" in files and "man/man5/omdiscd.toml.5" in files


@pytest.mark.long
def test_a_wheel_carries_them(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".venv", ".git", "build", "out", "*.egg-info", ".*cache"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(tree)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = [n.partition(".data/data/")[2] for n in zipfile.ZipFile(wheel).namelist()]
    assert {"share/man/man1/mosctl.1", "share/man/man8/omdiscd.8", "share/zsh/site-functions/_mig"} <= set(names)
    assert f"share/bash-completion/completions/{next(iter(PARSERS))}" in names
