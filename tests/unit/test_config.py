"""The configuration file: defaults, types, ranges, and what a person is told about mistakes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mig.config import Config, load, split_address
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


def test_every_knob_is_explained() -> None:
    """A comment stands above every field, or above the group of fields that it belongs to."""
    import mig.config

    lines = Path(mig.config.__file__).read_text().splitlines()
    names = [f.name for f in dataclasses.fields(Config)]
    for name in names:
        at = next(i for i, line in enumerate(lines) if line.startswith(f"    {name}: "))
        above = lines[at - 1].strip()
        assert above.startswith("#") or above.split(":")[0] in names, name
