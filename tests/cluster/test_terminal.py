"""From an interactive shell on a real terminal: jobs that move while it watches, and it does not notice."""

from __future__ import annotations

import re
from typing import Any

import pytest

from .helpers import COUNT, GUESTS, PYTHON, Shell, migrate, numbers, wait_text

ASK = f"{PYTHON} {GUESTS}/ask.py"


def test_a_foreground_job_goes_round_and_is_interrupted(lab: Any) -> None:
    sh = Shell(lab)
    pid = sh.start(f"{COUNT} 0.005 0 /none")
    for to in ("n2", "n3", "home", "n2"):
        migrate(lab, pid, to)
        sh.c.expect_exact("0\r\n")  # output goes on
    sh.c.sendintr()
    out = sh.prompt()
    assert sh.status() == 130
    screen = sh.seen.getvalue()
    printed = screen[screen.index(f"pid {pid}\r\n") + len(f"pid {pid}\r\n") :]
    printed = printed[: printed.index("^C")]
    whole, _, cut = printed.rpartition("\r\n")
    count = numbers(whole + "\r\n", "\r\n")
    assert count > 100
    assert str(count).startswith(cut.rstrip("\r")), "an interrupt flushes what the terminal has not shown yet, as it does at home"
    assert "Traceback" not in out or "KeyboardInterrupt" in out


@pytest.mark.parametrize("to", ["n2", "home"])
@pytest.mark.parametrize("uid", [0, 1000])
def test_exit_status_of_a_foreground_job(lab: Any, to: str, uid: int) -> None:
    sh = Shell(lab, uid)
    pid = sh.start(f"{COUNT} 0.01 37 /tmp/end")
    migrate(lab, pid, "n2")
    if to == "home":
        migrate(lab, pid, to)
    lab.run("n1", "touch /tmp/end", check=True)
    assert numbers(sh.prompt(), "\r\n") > 10, "nothing but the job's own output"
    assert sh.status() == 37
    lab.run("n1", "rm /tmp/end", check=True)


def test_a_bash_that_loops_and_execs(lab: Any) -> None:
    sh = Shell(lab)
    pid = sh.start("bash -c 'echo pid $$; for i in $(seq 60); do echo $i; sleep 0.1; done; exec sh -c \"echo last; exit 5\"'")
    migrate(lab, pid, "n2")
    migrate(lab, pid, "n3")
    out = sh.prompt(60)
    assert out == "".join(f"{i}\r\n" for i in range(1, 61)) + "last\r\n"
    assert sh.status() == 5


def test_quit_by_the_terminal(lab: Any) -> None:
    sh = Shell(lab)
    pid = sh.start("ulimit -c 0; bash -c 'echo pid $$; exec sleep 1000'")
    migrate(lab, pid, "n2")
    sh.c.send("\x1c")
    sh.prompt()
    assert sh.status() == 131


def test_a_background_job_and_wait(lab: Any) -> None:
    sh = Shell(lab)
    sh.run(f"{COUNT} 0.01 37 /tmp/end > /tmp/out &")
    pid = int(sh.run("echo $!"))
    wait_text(lab, "/tmp/out", when=lambda t: t.count("\n") > 3)
    migrate(lab, pid, "n2")
    assert "Running" in sh.run("jobs")
    sh.type("wait %1; echo status $?")
    migrate(lab, pid, "n3")
    lab.run("n1", "touch /tmp/end", check=True)
    assert sh.expect(r"status (\d+)\r\n")[1] == "37"
    out = lab.path("n1", "/tmp/out").read_text()
    assert out.startswith(f"pid {pid}\n") and numbers(out.partition("\n")[2]) > 10
    lab.run("n1", "rm /tmp/end", check=True)


def test_kill_of_a_background_job(lab: Any) -> None:
    sh = Shell(lab)
    sh.run("sleep 1000 &")
    pid = int(sh.run("echo $!"))
    migrate(lab, pid, "n2")
    sh.type("kill %1; wait %1; echo status $?")
    assert sh.expect(r"status (\d+)\r\n")[1] == "143"


@pytest.mark.parametrize("to", ["n2", "home"])
def test_stop_background_foreground(lab: Any, to: str) -> None:
    sh = Shell(lab)
    pid = sh.start(f"{COUNT} 0.01 37 /tmp/end")
    migrate(lab, pid, "n2")
    if to == "home":
        migrate(lab, pid, to)
    sh.c.send("\x1a")
    sh.expect("Stopped")
    sh.prompt()
    assert sh.run("[ $? = 148 ] && echo yes") == "yes\r\n"
    lab.wait_for(lambda: lab.run("n1", f"ps -o stat= -p {pid}").stdout.startswith("T"))
    assert "Stopped" in sh.run("jobs")
    lab.run("n1", "sleep 0.3")
    assert sh.run("echo") == "\r\n", "a stopped job says nothing"
    sh.c.sendline("bg")
    sh.expect(r"\n\d+\r\n\d+\r\n")
    sh.c.sendline("fg")
    sh.expect(r"\n\d+\r\n\d+\r\n")
    lab.run("n1", "touch /tmp/end", check=True)
    sh.prompt()
    assert sh.status() == 37
    lab.run("n1", "rm /tmp/end", check=True)
    screen = sh.seen.getvalue()
    before, _, after = screen[screen.index(f"pid {pid}\r\n") + len(f"pid {pid}\r\n") :].partition("^Z")
    first = [int(x) for x in re.findall(r"(\d+)\r\n", before)]
    resumed = after[after.index("bg\r\n") : after.index(f"{sh.PROMPT}echo $?")]
    rest = beside_the_shell(resumed, f"{COUNT} 0.01 37 /tmp/end")
    # the kernel throws away what a terminal has not shown yet when ^Z is typed (isig() in n_tty.c), of a job that never moved as well
    assert first == list(range(len(first))), "each number once, in order"
    assert rest == list(range(rest[0], rest[0] + len(rest))) and 0 <= rest[0] - len(first) <= 2, "and after the stop"


def beside_the_shell(screen: str, command: str) -> list[int]:
    """The numbers that a job wrote in the background; the shell may write between a number and the end of its line, never into it."""
    for said in (command, "[1]+"):
        screen = screen.replace(said, "")
    return [int(x) for x in re.findall(r"\d+", screen)]


def test_typed_ahead_stays_for_the_shell(lab: Any) -> None:
    sh = Shell(lab)
    pid = sh.start(f"{COUNT} 0.05 0 /tmp/end")
    migrate(lab, pid, "n2")
    sh.c.sendline("echo typed $((6 * 7))")
    migrate(lab, pid, "n3")
    sh.c.sendline("echo more $((6 * 8))")
    lab.run("n1", "touch /tmp/end", check=True)
    sh.expect(r"\ntyped 42\r\n")
    sh.expect(r"\nmore 48\r\n")
    lab.run("n1", "rm /tmp/end", check=True)


def test_a_job_that_reads_lines(lab: Any) -> None:
    sh = Shell(lab)
    pid = sh.start(f"{ASK} lines")
    for to, text in (("n2", "two"), ("n3", "three"), ("home", "home"), ("n2", "back")):
        migrate(lab, pid, to)
        sh.c.send(f"{text}XY\x7f\x7f\n")  # the line discipline edits
        sh.c.expect_exact(f"got {text!r}\r\n")
    sh.c.sendline("two at")
    sh.c.sendline("once")
    sh.c.expect_exact("got 'two at'\r\n")
    sh.c.expect_exact("got 'once'\r\n")
    sh.c.sendeof()
    sh.c.expect_exact("end\r\n")
    sh.prompt()
    assert sh.status() == 7


@pytest.mark.parametrize("to", ["n2", "home"])
def test_a_password_is_not_echoed(lab: Any, to: str) -> None:
    sh = Shell(lab)
    pid = sh.start(f"{ASK} passwords")
    sh.c.expect_exact("Password 1: ")
    migrate(lab, pid, "n2")
    if to == "home":
        migrate(lab, pid, to)
    for i in (1, 2):
        sh.c.sendline(f"secret{i}")
        sh.c.expect_exact(f"length 7 sum {sum(f'secret{i}'.encode())}\r\n")
        if i == 1:
            sh.c.expect_exact("Password 2: ")
    sh.prompt()
    assert "secret" not in sh.seen.getvalue()
    assert "visible" in sh.run("echo visible"), "the terminal echoes again"


def test_keys_one_by_one(lab: Any) -> None:
    sh = Shell(lab)
    pid = sh.start(f"{ASK} keys", r"pid (\d+)\r\n")
    migrate(lab, pid, "n2")
    for key, name in (("a", "61"), ("\x03", "03"), ("\x1b[A", "1b 5b 41"), ("\x04", "04"), ("\r", "0d"), ("ü", "c3 bc")):
        sh.c.send(key)
        for byte in name.split():
            sh.c.expect_exact(f"<{byte}>")
    migrate(lab, pid, "n3")
    sh.c.send("q")
    sh.c.expect_exact("<71>")
    sh.prompt()
    assert sh.status() == 0
    assert "sane" in sh.run("echo sane")
    assert "-icanon" not in sh.run("stty -a")


def test_size_of_the_window(lab: Any) -> None:
    sh = Shell(lab, dimensions=(30, 90))
    pid = sh.start(f"{ASK} size")
    sh.c.expect_exact("size 30x90\r\n")
    for to, size in (("n2", (41, 101)), ("n3", (24, 80)), ("home", (50, 120))):
        migrate(lab, pid, to)
        sh.c.setwinsize(*size)
        sh.c.expect_exact("size {}x{}\r\n".format(*size))
    sh.c.sendintr()
    sh.prompt()


def test_size_changed_during_the_move(lab: Any) -> None:
    sh = Shell(lab, dimensions=(30, 90))
    pid = sh.start(f"{ASK} size")
    sh.c.expect_exact("size 30x90\r\n")
    sh.c.send("\x1a")
    sh.prompt()
    sh.c.setwinsize(33, 99)
    migrate(lab, pid, "n2")
    sh.type("fg")
    sh.c.expect_exact("size 33x99\r\n")
    sh.c.sendintr()
    sh.prompt()


def test_the_terminal_by_its_names(lab: Any) -> None:
    sh = Shell(lab)
    name = sh.run("tty").strip()
    pid = sh.start(f"{ASK} names")
    for to in ("n2", "n3", "home"):
        migrate(lab, pid, to)
        sh.c.sendline(to)
        sh.c.expect_exact(f"{to}: {name} {name} by name, by /dev/tty\r\n")
    sh.c.sendeof()
    sh.prompt()


def test_much_output_at_once(lab: Any) -> None:
    sh = Shell(lab)
    pid = sh.start("bash -c 'echo pid $$; read; seq 1 30000'")
    migrate(lab, pid, "n2")
    sh.c.sendline("")
    out = sh.prompt(60)
    assert out == "\r\n" + "".join(f"{i}\r\n" for i in range(1, 30001))


def test_a_pipeline_on_the_terminal(lab: Any) -> None:
    sh = Shell(lab)
    double = f"{PYTHON} {GUESTS}/double.py 0.0005"
    pid = sh.start(f"seq 0 9999 | {double} | cat; echo statuses ${{PIPESTATUS[*]}}")
    for to in ("n2", "n3", "home"):
        migrate(lab, pid, to)
    out = sh.expect(r"(?s)^((?:\d+\r\n)+)statuses 0 0 0\r\n", 60)[1]
    assert out == "".join(f"{2 * i}\r\n" for i in range(10000))


def test_a_pipeline_is_interrupted(lab: Any) -> None:
    sh = Shell(lab)
    pid = sh.start(f"yes 1 | {PYTHON} {GUESTS}/double.py 0.01 | cat > /dev/null; echo statuses ${{PIPESTATUS[*]}}")
    migrate(lab, pid, "n2")
    sh.c.sendintr()
    out = sh.prompt()
    assert "Terminated" not in out
    assert sh.status() == 130
    lab.wait_for(lambda: lab.run("n1", "pgrep -c yes").stdout == "0\n")
