"""Completion in the shells themselves, with a mosctl that knows three nodes and a process."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pexpect
import pytest
from omtools import mosctl, mosctl_completion, mosrun
from omtools.completion.commands import PARSERS, mosrun_parser
from omtools.completion.model import Command, Option, Place, of_parser

SCRIPTS = Path(mosctl_completion.__file__).parent / "completion"
MOSCTL = """#!/bin/sh
case "$2" in
    nodes) printf 'n1\\talive, load 0.10\\nn2\\talive\\nbig\\tdead\\n' ;;
    processes) printf '4711\\tawk of n1 on n2\\n' ;;
esac
"""

CASES = [
    ("mosctl stat", ["status"]),
    ("mosctl status ", ["big", "n1", "n2"]),
    ("mosctl events --f", ["--follow"]),
    ("mosctl whois b", ["big"]),
    ("mosctl expel b", ["big"]),
    ("mosctl expel big --f", ["--fast"]),
    ("mosctl pam in", ["install"]),
    ("migrate 471", ["4711"]),
    ("migrate 4711 ", ["balance", "big", "home", "n1", "n2"]),
    ("migrate --timeout 5 4711 h", ["home"]),
    ("mosrun -N b", ["big"]),
    ("mosrun -j n1,b", ["n1,big"]),
    ("mosrun -N n2 cat /etc/passw", ["/etc/passwd", "/etc/passwd-"]),
    ("moslab run b", ["big"]),
    ("moslab --lab x restart", ["restart-daemon"]),
    ("mosmon --view pr", ["processes"]),
    ("omdiscd -c /etc/hostn", ["/etc/hostname"]),
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    program = tmp_path / "bin" / "mosctl"
    program.parent.mkdir()
    program.write_text(MOSCTL)
    program.chmod(0o755)
    return dict(os.environ, PATH=f"{program.parent}:{os.environ['PATH']}", HOME=str(tmp_path), TERM="dumb", LC_ALL="C.UTF-8")


def bash(line: str, environment: dict[str, str]) -> list[str]:
    script = r"""
    source "$1"; compopt() { :; }  # bash knows it only while the user completes
    read -ra COMP_WORDS <<< "$2"; [[ $2 == *' ' ]] && COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _mig_complete "${COMP_WORDS[0]}"; printf '%s\n' "${COMPREPLY[@]}"
    """
    argv = ["bash", "-c", script, "bash", str(SCRIPTS / "mig.bash"), line]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True)
    assert not done.stderr
    return sorted(set(done.stdout.split()))


def fish(line: str, environment: dict[str, str]) -> list[str]:
    argv = ["fish", "-N", "-c", "source $argv[1]; complete -C $argv[2]", str(SCRIPTS / "mig.fish"), line]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True)
    assert not done.stderr
    return sorted({found.split("\t")[0] for found in done.stdout.splitlines()})


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_bash(line: str, expected: list[str], environment: dict[str, str]) -> None:
    assert bash(line, environment) == expected


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_fish(line: str, expected: list[str], environment: dict[str, str]) -> None:
    found = fish(line, environment)
    # a number of a process may be the beginning of others on this machine
    assert (set(expected) <= set(found)) if line == "migrate 471" else found == expected


def test_zsh(environment: dict[str, str]) -> None:
    shell = shutil.which("zsh")
    assert shell, "zsh is missing; `make env` installs it"
    with pexpect.spawn(shell, ["-f", "-i"], env=environment, encoding="utf-8", timeout=60, dimensions=(60, 200)) as z:
        z.sendline("PROMPT='@'@; unsetopt zle_bracketed_paste prompt_sp; autoload -Uz compinit; compinit -u -D")
        z.sendline(f"source {SCRIPTS / 'mig.zsh'}")
        z.sendline("echo rea''dy")
        z.expect_exact("ready\r\n")
        for line, expected in CASES:
            if len(expected) != 1 or line == "migrate 471":
                continue
            z.send(f"{line}\t")
            z.expect_exact(f"{line}{expected[0].removeprefix(line.rsplit(maxsplit=1)[-1])}")
            z.send("\x03")
            z.expect_exact("@@")
        z.send("mosctl whois \t")
        z.expect_exact("n1   -- alive, load 0.10")
        z.expect_exact("@@mosctl whois ")
        z.send("\x03")
        z.expect_exact("@@")
        z.sendline("exit")
        z.expect(pexpect.EOF)


def test_mosruns_parser_is_what_mosrun_says_of_itself() -> None:
    named = {o.names[0] for o in of_parser(mosrun_parser(), "mosrun").options}
    assert {n for n in named if len(n) == 2} == set(mosrun.option_texts())
    assert all(mosrun.option_texts().values())


def test_a_parser_taken_apart() -> None:
    c = of_parser(PARSERS["migrate"](), "migrate")
    assert c.places == (Place("process", "PID"), Place("destination", "{NODE|home|balance}"))
    assert Option(("--timeout",), "give up, and roll back, after so many seconds", Place("none", "S")) in c.options
    verbs = {v.name: v for v in of_parser(mosctl.parser(), "mosctl").verbs}
    assert isinstance(verbs["status"], Command) and verbs["status"].places == (Place("node", "NODE", optional=True),)


def test_mosctl_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, name in mosctl_completion.SCRIPTS.items():
        assert mosctl.main(["completion", shell]) == 0
        assert capsys.readouterr().out == (SCRIPTS / name).read_text()


def test_without_a_daemon_there_are_no_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mig.paths.CONTROL", tmp_path / "none")
    assert mosctl.main(["completion", "nodes"]) == 0
    assert capsys.readouterr() == ("", "")
