"""The line in files of /etc/pam.d, the doors, the weights of guests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omdiscd import guest_share
from omdiscd.doors import Doors
from omtools import mosctl, pam_files

SSHD = "# PAM of sshd\n@include common-auth\nsession optional pam_exec.so /usr/local/bin/notify\n@include common-session\n"


def test_the_line_is_added_once_and_removed_without_a_trace() -> None:
    once = pam_files.added(SSHD)
    assert once.startswith(SSHD) and once.endswith(f"{pam_files.line()}\n") and pam_files.has(once) and not pam_files.has(SSHD)
    assert pam_files.added(once) == once
    assert pam_files.removed(once) == SSHD
    assert pam_files.line().split()[:2] == ["session", "optional"], "it must not be able to refuse a login"


def test_a_line_of_another_installation_is_replaced() -> None:
    old = SSHD + "session optional pam_exec.so seteuid /opt/old/mospam --run /run/x\n"
    assert pam_files.has(old) and pam_files.added(old) == pam_files.added(SSHD)


def test_a_file_without_a_last_line_end_and_one_that_is_commented_out() -> None:
    assert pam_files.added("session required pam_unix.so").startswith("session required pam_unix.so\n# openMosix")
    assert not pam_files.has("# session optional pam_exec.so /x/mospam\n")


@given(st.text(max_size=300))
def test_any_other_text_is_left_as_it_is(text: str) -> None:
    if not pam_files.has(text):
        assert pam_files.removed(text) == text


@pytest.fixture
def pam_d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sshd").write_text(SSHD)
    (tmp_path / "sshd").chmod(0o640)
    (tmp_path / "cron").write_text("session required pam_unix.so\n")
    monkeypatch.setattr(pam_files, "DIRECTORY", tmp_path)
    return tmp_path


def test_install_touches_what_is_meant_and_keeps_its_mode(pam_d: Path, capsys: Any) -> None:
    assert mosctl.main(["pam", "install"]) == 0
    assert pam_files.has((pam_d / "sshd").read_text()) and not pam_files.has((pam_d / "cron").read_text())
    assert (pam_d / "sshd").stat().st_mode & 0o777 == 0o640 and sorted(p.name for p in pam_d.iterdir()) == ["cron", "sshd"]
    assert mosctl.main(["pam", "install", "sshd"]) == 0 and "already" in capsys.readouterr().out
    assert mosctl.main(["pam", "remove", "sshd", "cron"]) == 0
    assert (pam_d / "sshd").read_text() == SSHD


@pytest.mark.parametrize("name", ["nothing", "../passwd", ".hidden", ""])
def test_files_that_are_no_services(pam_d: Path, capsys: Any, name: str) -> None:
    assert mosctl.main(["pam", "install", name]) == 2
    assert "there is no service" in capsys.readouterr().err


def test_a_door_is_open_when_nobody_has_anything_against_it() -> None:
    told: list[tuple[bool, str]] = []
    d = Doors(lambda on, why: told.append((on, why)))
    d.set("owner", "out: somebody")
    d.set("administrator", "blocked")
    d.set("administrator", "blocked")
    d.set("owner", "")
    d.set("owner", "")
    d.set("administrator", "")
    assert told == [(False, "out: somebody"), (False, "out: somebody; blocked"), (False, "blocked"), (True, "")]


def keeper(pid: int, home: str = "n1") -> Any:
    return SimpleNamespace(state=SimpleNamespace(host_pid=pid, home=home, state="running"))


def test_guests_together_weigh_as_one_process_of_that_nice_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unified cgroups, by the files that would be written; v1's are tried for real in a lab."""
    keepers = [keeper(1), keeper(2), keeper(3, home="here")]
    for i in (1, 2, 3):
        (tmp_path / f"mig-cell-{i}" / "guest").mkdir(parents=True)
        (tmp_path / f"mig-cell-{i}" / "cpu.weight").write_text("100")
        (tmp_path / f"mig-cell-{i}" / "cpu.idle").write_text("0")
    monkeypatch.setattr(guest_share.cgroup, "of", lambda pid: tmp_path / f"mig-cell-{pid}" / "guest")

    def files(i: int) -> tuple[str, str]:
        return (tmp_path / f"mig-cell-{i}" / "cpu.weight").read_text(), (tmp_path / f"mig-cell-{i}" / "cpu.idle").read_text()

    share = guest_share.GuestShare(SimpleNamespace(keepers=lambda: keepers), "here", 10)  # type: ignore[arg-type]  # all it asks of Guests
    share.apply()
    assert files(1) == files(2) == ("5", "0") and files(3) == ("100", "0"), "one that came home is its owner's own"
    keepers.pop(0)
    share.apply()
    assert files(2) == ("11", "0")
    share.idle = True
    share.apply()
    assert files(2) == ("11", "1") and share.how == "idle priority"
    keepers[0].state.state = "moving"
    share.apply()
    assert files(2) == ("305", "0"), "while it moves it must get on"
    keepers[0].state.state = "running"
    share.idle = False
    share.apply()
    assert files(2) == ("11", "0")


def test_left_alone_means_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_share.cgroup, "of", lambda pid: tmp_path / "none")
    share = guest_share.GuestShare(SimpleNamespace(keepers=lambda: [keeper(1)]), "here", -1)  # type: ignore[arg-type]
    share.apply()
    assert share.how == "as everybody (guest_nice = -1)" and not list(tmp_path.iterdir())
