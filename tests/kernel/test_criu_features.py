"""What this machine's CRIU can do, asked once; and the trial by which set-up chooses one."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from omtools import doctor
from omtools.setup import trial

from mig import paths
from mig.criu import features, layout


@pytest.fixture(autouse=True)
def own_run_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "RUN", tmp_path / "run")


def test_features_are_found_and_kept_for_this_boot() -> None:
    found = features.probe()
    assert found.check, found.problem
    assert found.version[0].isdigit()
    cache = paths.RUN / "criu-features.json"
    written = cache.stat().st_mtime_ns
    assert features.probe() == found
    assert cache.stat().st_mtime_ns == written
    cache.write_text("not json")
    assert features.probe() == found


def test_a_missing_criu_is_a_finding_not_an_exception(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIG_LIBEXEC", str(tmp_path))
    found = features.probe()
    assert not found.check
    assert "does not run" in found.problem
    (criu,) = [c for c in doctor.diagnose() if c.name == "criu"]
    assert criu.ok is False
    assert "make env" in criu.remedy


def test_only_a_stale_empty_kerndat_file_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp = tmp_path / "criu.kdat.tmp"
    monkeypatch.setattr(features, "_KDAT_TMP", tmp)
    features.drop_stale_kerndat()  # none there
    tmp.touch()
    features.drop_stale_kerndat()
    assert tmp.exists()  # a CRIU may be filling it right now
    os.utime(tmp, (time.time() - 60, time.time() - 60))
    features.drop_stale_kerndat()
    assert not tmp.exists()


def test_the_installed_criu_passes_the_trial_and_a_broken_one_does_not(tmp_path: Path) -> None:
    assert trial.problem(Path(layout.base())) == ""
    assert trial.problem(tmp_path)


def test_the_doctor_finds_nothing_wrong_where_the_tests_run() -> None:
    findings = doctor.diagnose()
    assert [c.line() for c in findings if c.ok is False] == []
    assert all(c.remedy for c in findings if c.ok is not True)


def test_a_shim_of_another_version_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would let CRIU dump what it should leave out, and say nothing."""
    assert layout.shim_problem() == ""
    home = tmp_path / "criu"
    home.mkdir()
    monkeypatch.setenv("MIG_LIBEXEC", str(tmp_path))
    assert "there is no" in layout.shim_problem()
    real = (Path(sys.prefix) / "libexec" / "mig" / "criu" / "shim.so").read_bytes()
    (home / "shim.so").write_bytes(real.replace(b"mig-shim-source:", b"mig-shim-source:0", 1))
    assert "another version" in layout.shim_problem()
    (shim,) = [c for c in doctor.diagnose() if c.name == "shim"]
    assert shim.ok is False and "make env" in shim.remedy
