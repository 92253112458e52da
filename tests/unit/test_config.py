"""The configuration file: defaults, types, ranges, and what a person is told about mistakes."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mig.config import Config, load, split_address
from mig.config_file import knobs
from mig.errors import BadInput


def test_defaults_make_sense() -> None:
    assert Config().mistakes() == []


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    p = subprocess.run([sys.executable, "-m", "omdiscd.command", "--print-config"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (p.returncode, p.stderr) == (141, "")


def test_describe_is_toml_that_means_the_same() -> None:
    c = Config.from_map({"name": 'a "b" \\c', "seeds": ["10.0.0.1", "10.0.0.2:99"], "cpus": 0.6, "allow_root_guests": True, "id": 7})
    assert Config.from_map(tomllib.loads(c.describe())) == c


def test_whole_numbers_are_accepted_for_floats() -> None:
    assert Config.from_map({"cpus": 2}).cpus == 2.0


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("auto", "some", "'mosrun'"),
        ("port", "7230", "whole number"),
        ("port", 0, "1..65535"),
        ("port", True, "whole number"),
        ("speed", -1.0, "negative"),
        ("dead_s", 2.0, "suspect_s"),
        ("addr", "here", "not an IP address"),
        ("multicast", "10.0.0.1", "not a multicast address"),
        ("seeds", ["10.0.0.1:0"], "seeds"),
        ("seeds", "10.0.0.1", "list"),
        ("allow_uids", [1], "2 values"),
        ("allow_uids", [9, 1], "greater"),
        ("allow_gids", [0, 9], "allow_root_guests"),
        ("transfers", 0, "greater than 0"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: object, told: str) -> None:
    with pytest.raises(BadInput) as e:
        Config.from_map({key: value})
    assert len(e.value.reasons) == 1
    assert key in e.value.reasons[0] and told in e.value.reasons[0]


def test_every_mistake_is_listed_and_a_near_key_suggested() -> None:
    with pytest.raises(BadInput) as e:
        Config.from_map({"balanc_s": 1.0, "port": "x", "zzz": 1})
    assert len(e.value.reasons) == 3
    assert "balance_s" in e.value.reasons[0]


def test_a_missing_default_file_is_defaults_and_a_missing_named_one_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mig.paths.CONFIG", tmp_path / "none.toml")
    assert load() == Config()
    with pytest.raises(BadInput, match="no configuration file"):
        load(tmp_path / "none.toml")


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    f = tmp_path / "c.toml"
    f.write_text("a = = b")
    with pytest.raises(BadInput, match="not TOML"):
        load(f)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10.0.0.1", ("10.0.0.1", 7230)),
        ("10.0.0.1:9", ("10.0.0.1", 9)),
        ("fe80::1", ("fe80::1", 7230)),
        ("[fe80::1]:9", ("fe80::1", 9)),
        ("[fe80::1]", ("fe80::1", 7230)),
    ],
)
def test_addresses(text: str, meant: tuple[str, int]) -> None:
    assert split_address(text, 7230) == meant


@pytest.mark.parametrize("text", ["", "host", "10.0.0.1:", "10.0.0.1:x", "10.0.0.1:99999", "[::1]9x"])
def test_not_addresses(text: str) -> None:
    with pytest.raises(ValueError):
        split_address(text, 7230)


def explained() -> list[tuple[str, str]]:
    """Every key and its comment, or that of the group to which it belongs."""
    out, last = [], ""
    for k in knobs():
        last = " ".join(k.comment) or last
        out.append((k.name, last))
    return out


def test_every_knob_is_explained() -> None:
    assert [name for name, _ in explained()] == [f.name for f in dataclasses.fields(Config)]
    assert all(comment for _, comment in explained())


NUMBERS = [f.name for f in dataclasses.fields(Config) if type(f.default) in (int, float) and f.name not in ("id", "port")]
TURNED = re.compile(r"\b(More|Longer|Shorter|Higher|Lower|Lower numbers): ([^;]+); cost: (\S+ \S+)")


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_says_which_way_to_turn_it_what_that_gives_and_costs_and_why_it_is_what_it_is(name: str) -> None:
    comment = dict(explained())[name]
    turned = TURNED.search(comment)
    assert turned, comment
    # the reason for the default: something is said beside what it is and what turning it does, or 0 leaves it to the machine
    assert len(comment.split(". ")) >= 3 or "0: " in comment, comment
