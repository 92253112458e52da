"""mosrun becomes its command: what the command then sees is what a shell would have given it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omtools.mosrun import Options, find, parse

from mig.errors import BadInput

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["true"], Options(["true"])),
        (["-b", "a", "-b"], Options(["a", "-b"], best=True)),
        (["-qLh", "a"], Options(["a"], quiet=True, locked=True, home=True)),
        (["-N", "n2", "a"], Options(["a"], node="n2")),
        (["-LNn2", "a"], Options(["a"], locked=True, node="n2")),
        (["-j", "n1,n2", "a", "b"], Options(["a", "b"], nodes=("n1", "n2"))),
        (["--", "-b"], Options(["-b"])),
        (["-b", "--", "a"], Options(["a"], best=True)),
        (["-", "x"], Options(["-", "x"])),
    ],
)
def test_options_end_at_the_command(args: list[str], expected: Options) -> None:
    assert parse(args) == expected


@pytest.mark.parametrize("line", ["", "-b", "-N", "-j , a", "-x a", "--best a", "-b -h a", "-N n1 -b a", "-A 5 a"])
def test_nonsense_is_refused(line: str) -> None:
    with pytest.raises(BadInput):
        parse(line.split())


def test_only_what_was_asked_travels() -> None:
    assert parse(["-L", "a"]).flags() == {"best": False, "home": False, "locked": True, "quiet": False}
    assert parse(["-N", "n2", "a"]).flags()["node"] == "n2"
    assert parse(["-3", "-L", "a", "-4"]) == parse(["-LN", "3", "a", "-4"]), "openMosix's way"
    assert parse(["-S", "a"]).flags()["own_sockets"] is True
    assert parse(["-j", "n2", "a"]).flags()["nodes"] == ["n2"]


def test_the_path_is_searched_as_execvp_does(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    (a / "tool").write_text("")
    (a / "dir").mkdir()
    (b / "tool").write_text("")
    (b / "tool").chmod(0o755)
    path = os.fsencode(f"{a}:{tmp_path}/none:{b}")
    assert find(b"tool", path) == os.fsencode(b / "tool")
    assert find(os.fsencode(b / "tool"), b"") == os.fsencode(b / "tool")
    with pytest.raises(FileNotFoundError):
        find(b"nothing", path)
    with pytest.raises(FileNotFoundError):
        find(b"dir", path)
    with pytest.raises(PermissionError):
        find(b"tool", os.fsencode(a))
    with pytest.raises(PermissionError):
        find(os.fsencode(a), path)
    with pytest.raises(FileNotFoundError):
        find(os.fsencode(b / "tool" / "x"), path)


# -- the real thing, with no daemon in reach --------------------------------------------------------------------------------------


def mosrun(tmp_path: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"], "MIG_RUN": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT}/tools", "EMPTY": "", "LANG": "C",
    } | options.pop("env", {})  # fmt: skip
    command = [sys.executable, "-c", "import sys; from omtools.mosrun import main; sys.exit(main())", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False, **options)


@pytest.mark.parametrize(
    ("args", "status"), [(["true"], 0), (["sh", "-c", "exit 37"], 37), (["nosuch"], 127), (["/etc"], 126), (["/etc/passwd"], 126)]
)
def test_the_exit_status_is_the_commands(tmp_path: Path, args: list[str], status: int) -> None:
    r = mosrun(tmp_path, "-q", *args)
    assert r.returncode == status
    assert bool(r.stderr) == (status in (126, 127))


def test_a_signal_ends_it_as_it_ends_the_command(tmp_path: Path) -> None:
    assert mosrun(tmp_path, "-q", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM


def test_without_a_daemon_it_warns_or_refuses(tmp_path: Path) -> None:
    r = mosrun(tmp_path, "echo", "here")
    assert (r.returncode, r.stdout) == (0, "here\n") and "runs here and will not move" in r.stderr
    assert mosrun(tmp_path, "-q", "true").stderr == ""
    for option in (["-b"], ["-N", "n2"], ["-j", "n2"]):
        r = mosrun(tmp_path, *option, "echo", "here")
        assert (r.returncode, r.stdout) == (7, "") and "omdiscd" in r.stderr


def test_checkpoints_are_not_there_yet_and_it_says_so(tmp_path: Path) -> None:
    r = mosrun(tmp_path, "-A", "5", "true")
    assert r.returncode == 2 and "not built yet" in r.stderr


def test_the_command_sees_our_pid_our_input_and_an_untouched_environment(tmp_path: Path) -> None:
    code = "tr '\\0' '\\n' < /proc/self/environ; cat; ls /proc/self/fd | wc -l; grep SigIgn /proc/self/status"
    r = mosrun(tmp_path, "-q", "sh", "-c", code, input="input\n")
    lines = r.stdout.splitlines()
    plain = subprocess.run(["sh", "-c", code.split("cat; ")[1]], capture_output=True, text=True, check=True)
    assert "LC_CTYPE=C.UTF-8" not in lines and "EMPTY=" in lines and "LANG=C" in lines
    assert lines[-3:] == ["input", *plain.stdout.splitlines()]


def test_a_script_without_an_interpreter_line(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$0 $1"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    assert mosrun(tmp_path, "-q", str(script), "x").stdout == f"{script} x\n"


def test_help_and_version(tmp_path: Path) -> None:
    assert "exit status: that of CMD" in mosrun(tmp_path, "--help").stdout
    assert mosrun(tmp_path, "--version").stdout.startswith("mosrun ")


def test_ctrl_c_before_the_command_has_begun_says_so(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:  # takes the connection, and never says a word
        deaf.bind(str(tmp_path / "control.sock"))
        deaf.listen()
        env = dict(os.environ, MIG_RUN=str(tmp_path), PYTHONPATH=f"{ROOT}:{ROOT}/tools")
        code = "import sys; from omtools.mosrun import main; sys.exit(main(['touch', sys.argv[1]]))"
        p = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "begun")], env=env, stderr=subprocess.PIPE, text=True)
        connection, _ = deaf.accept()
        with connection:
            p.send_signal(signal.SIGINT)
            _, said = p.communicate(timeout=20)
    assert (p.returncode, said) == (130, "mosrun: interrupted; the command was not started\n")
    assert not (tmp_path / "begun").exists()
