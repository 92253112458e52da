"""The tables of docs/gossip.md and the figures they come from."""

import json

import pytest
from omtools.poolsim import page
from omtools.poolsim.__main__ import FIGURES, PAGE, simulate


def test_the_published_tables_are_those_of_the_figures():
    text = PAGE.read_text()
    assert page.page(text, json.loads(FIGURES.read_text())) == text


def test_a_page_without_a_place_for_tables_is_refused():
    with pytest.raises(ValueError, match="lacks the lines"):
        page.page("# How the pool knows itself\n", [])


def test_a_pool_that_is_not_whole_when_the_watch_ends_is_not_called_never():
    row = simulate(20, "ours", "partition", 1, 20.0, 0.0)
    assert row["healed"] is None
    assert "| 0 (0) | not run | not run | not within 0 s |" in page.tables([row])
    row = simulate(20, "ours", "partition", 1, 20.0, 30.0)
    assert 0 < row["healed"] < 30
    assert f"| {row['healed']:.1f} s |" in page.tables([row])
