"""Tables that fit the terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omtools import output, tables

ROWS = [["n1", "10.0.0.1", "yes", "0.1.0"], ["n2", "10.0.0.2", "no: blocked by its administrator", "0.1.0"]]
HEADS, ALIGNS = ["NAME", "ADDRESS", "ACCEPTS", "VERSION"], ["<", "<", "<", "<"]


def test_whole_lines_for_programs() -> None:
    assert tables.lines(HEADS, ALIGNS, ROWS, None)[2] == "n2    10.0.0.2  no: blocked by its administrator  0.1.0"


def test_long_texts_are_cut_first_and_then_columns_go() -> None:
    assert tables.lines(HEADS, ALIGNS, ROWS, 40) == [
        "NAME  ADDRESS   ACCEPTS          VERSION",
        "n1    10.0.0.1  yes              0.1.0",
        "n2    10.0.0.2  no: blocked by…  0.1.0",
    ]
    assert tables.lines(HEADS, ALIGNS, ROWS, 24) == ["NAME  ADDRESS   ACCEPTS", "n1    10.0.0.1  yes", "n2    10.0.0.2  no: blo…"]
    assert tables.lines(HEADS, ALIGNS, ROWS, 3) == ["NA…", "n1", "n2"]


def test_numbers_are_not_cut() -> None:
    lines = tables.lines(["LOAD", "MEM"], [">", ">"], [["1234567890", "1"]], 12)
    assert lines == ["      LOAD", "1234567890"]


def test_wide_and_combining_characters() -> None:
    assert [tables.cells(t) for t in ("abc", "日本", "e\u0301")] == [3, 4, 1]
    assert tables.cut("日本語", 4) == "日…"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 200))
def test_what_fits_is_as_wide_as_it_can_be(widths: list[int], limit: int) -> None:
    got = tables.fit(widths, [8] * len(widths), limit)
    total = sum(got) + 2 * (len(got) - 1)
    assert total <= limit or len(got) == 1
    assert all(g <= w and g >= min(w, 8) for g, w in paired(got, widths))
    if got != widths[: len(got)]:
        assert total == limit or len(got) == 1 or len(got) < len(widths)


def paired(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    return list(zip(a, b, strict=False))


def test_nothing_that_steers_the_terminal_comes_through(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([{"comm": "\x1b]0;mine\x07\nawk"}], (("COMMAND", "<", lambda r: str(r["comm"])),))
    assert capsys.readouterr().out == "COMMAND\n?]0;mine??awk\n"


def test_on_a_terminal_no_line_is_wider_than_it() -> None:
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 30))
    code = "from omtools import output; output.table([{'a': 'x' * 50, 'b': 'y' * 50}], [(k, '<', lambda r, k=k: r[k]) for k in 'ab'])"
    subprocess.run([sys.executable, "-c", code], stdout=side, check=True, env=dict(os.environ, PYTHONPATH=":".join(sys.path)))
    os.close(side)
    lines = os.read(main, 4096).decode().splitlines()
    os.close(main)
    assert lines == ["a               b", "x" * 13 + "…  " + "y" * 13 + "…"] and all(len(line) <= 30 for line in lines)
