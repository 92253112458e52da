"""The guest's terminal: a real pty as home's, whose master is the user; a second pty as the cell's, with real programs as guests."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace

from mig.channels.cell_terminal import CellTerminal
from mig.channels.home_terminal import POLL, HomeTerminal
from mig.channels.tty_modes import get_modes, set_modes
from tests.kernel.channels_lab import connection, in_loop, until

# The process that stands at home for the guest (argument: who has the terminal first); a line "f" or "b" gives and takes the terminal,
# "o" starts, or ends, another process of its job.
DEPUTY = """
import fcntl, os, select, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"deputy got SIGINT\\n"))
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(w)
    os.setpgid(0, 0)
    # not for ever: a signal in the moment before the call would be told of only after it
    while not select.select([r], [], [], 0.1)[0]:
        pass
    os._exit(0)
os.setpgid(pid, pid)
other = 0
sys.stderr.write(f"{pid}\\n")
sys.stderr.flush()
with open(int(sys.argv[1])) as commands:
    for line in commands:
        if line != "o\\n":
            os.tcsetpgrp(0, pid if line == "f\\n" else os.getpgrp())
        elif other:
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
        elif (other := os.fork()) == 0:
            os.close(w)
            os.read(r, 1)
            os._exit(0)
        else:
            os.setpgid(other, pid)
        sys.stderr.write("done\\n")
        sys.stderr.flush()
"""


class Stage:
    """Home's pty with a user and a deputy, the cell's pty with a guest, and the channel between them."""

    def __init__(self, *command: str, foreground: bool = True) -> None:
        self.user, self.home_slave = os.openpty()
        os.set_blocking(self.user, False)
        self.screen = bytearray()
        asyncio.get_running_loop().add_reader(self.user, self._read)
        commands, self._tell = os.pipe()
        self._leader = subprocess.Popen(
            [sys.executable, "-S", "-c", DEPUTY, str(commands)],
            stdin=self.home_slave,
            stdout=self.home_slave,
            stderr=subprocess.PIPE,
            pass_fds=[commands],
            text=True,
        )
        os.close(commands)
        assert self._leader.stderr is not None
        self.deputy = int(self._leader.stderr.readline())
        self.foreground: list[bool] = []
        self.hangups = 0
        if foreground:
            self.give_terminal(True)
        self.cell_master, slave = os.openpty()
        termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(self.home_slave))
        ready, go = os.pipe()
        waiting = ["sh", "-c", f'read go </dev/fd/{ready}; exec "$@"', "sh"]
        self.guest = subprocess.Popen(["setsid", "-c", *waiting, *command], stdin=slave, stdout=slave, stderr=slave, pass_fds=[ready])
        os.close(ready)
        self.slave = slave
        self.home = HomeTerminal(self.home_slave, self.deputy, on_foreground=self.foreground.append, on_hangup=self._hung_up)
        self.cell = self.new_cell(b"")
        self.cell.start()
        os.write(go, b"\n")
        os.close(go)

    def new_cell(self, prefix: bytes) -> CellTerminal:
        a, b = connection()
        cell = CellTerminal(os.dup(self.cell_master), b, prefix=prefix, pids=lambda: [self.guest.pid])
        self.home.attach(a)
        return cell

    async def move(self, *, give_up: bool = False) -> None:
        """The guest stands still, the channel goes over to a new connection, the guest goes on."""
        await self.home.hold()
        os.kill(self.guest.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.guest.pid, os.WSTOPPED | os.WNOWAIT)
        await self.cell.drain()
        rest = self.cell.rest()
        if give_up:
            self.cell.resume()
            self.home.resume()
        else:
            old, self.cell = self.cell, self.new_cell(rest)
            self.cell.start()
            old.close()
        os.kill(self.guest.pid, signal.SIGCONT)

    def give_terminal(self, to_guest: bool) -> None:
        self.tell(b"f\n" if to_guest else b"b\n")

    def tell(self, command: bytes) -> None:
        """A command of the deputy's leader."""
        os.write(self._tell, command)
        assert self._leader.stderr is not None and self._leader.stderr.readline() == "done\n"

    def type(self, text: bytes) -> None:
        os.write(self.user, text)

    async def see(self, text: bytes) -> None:
        """Wait until ``text`` is on the screen, and take everything up to it away."""
        try:
            await until(lambda: text in self.screen)
        except BaseException:
            print("the screen shows", bytes(self.screen))
            raise
        del self.screen[: self.screen.index(text) + len(text)]

    async def end(self) -> int:
        """Wait for the guest's end and all that it wrote; returns its status."""
        await until(lambda: self.guest.poll() is not None)
        await self.cell.finish()
        await self.home.finished()
        return self.guest.wait()

    async def __aenter__(self) -> Stage:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.guest.poll() is None:
            self.guest.kill()
        await until(lambda: self.guest.poll() is not None)
        self.cell.close()
        self.home.close()
        os.close(self._tell)
        await until(lambda: self._leader.poll() is not None)
        assert self._leader.stderr is not None
        self._leader.stderr.close()
        if self.user >= 0:
            self.hang_up()
        for fd in (self.home_slave, self.cell_master, self.slave):
            os.close(fd)

    def hang_up(self) -> None:
        asyncio.get_running_loop().remove_reader(self.user)
        os.close(self.user)
        self.user = -1

    def _hung_up(self) -> None:
        self.hangups += 1

    def _read(self) -> None:
        self.screen += os.read(self.user, 65536)


def home_lflag(stage: Stage) -> int:
    return int(termios.tcgetattr(stage.home_slave)[3])


@in_loop
async def test_cat_echoes_once_by_the_line_and_once_by_the_program() -> None:
    async with Stage("cat") as stage:
        stage.type(b"hello\n")
        await stage.see(b"hello\r\nhello\r\n")
        stage.type(b"mistake\x7f\x7f\x7f\x7f\x7f\x7f\x7fright\n")  # home edits the line
        await stage.see(b"right\r\nright\r\n")
        stage.type(b"\x04")
        assert await stage.end() == 0


@in_loop
async def test_lines_typed_ahead_come_one_by_one_and_the_rest_stays_for_the_shell() -> None:
    script = "sleep 0.1; read a; read b; echo got $a-$b"
    async with Stage("bash", "-c", script) as stage:
        stage.type(b"one\ntwo\nls\n")
        await stage.see(b"got one-two\r\n")
        assert await stage.end() == 0
        os.set_blocking(stage.home_slave, False)
        assert os.read(stage.home_slave, 100) == b"ls\n"


@in_loop
async def test_python_input_with_and_without_readline() -> None:
    for module in ("sys", "readline"):
        async with Stage(sys.executable, "-c", f"import {module}; print('got', input('? ') + input('?? '))") as stage:
            await stage.see(b"? ")
            stage.type(b"one\n")
            await stage.see(b"?? ")
            await stage.move()
            stage.type(b"two\n")
            await stage.see(b"got onetwo\r\n")
            assert await stage.end() == 0


@in_loop
async def test_a_password_is_not_echoed_and_typeahead_before_the_prompt_is_flushed() -> None:
    # it asks when the typed line is there: what comes later than the prompt is the password, on any terminal
    program = "import getpass, select; select.select([0], [], []); print('secret', getpass.getpass('Password: '))"
    async with Stage(sys.executable, "-c", program) as stage:
        stage.type(b"early\n")
        await stage.see(b"Password: ")
        assert not home_lflag(stage) & termios.ECHO
        stage.type(b"xyzzy\n")
        await stage.see(b"secret ")
        await stage.see(b"xyzzy\r\n")
        assert await stage.end() == 0
        assert home_lflag(stage) & termios.ECHO


@in_loop
async def test_modes_set_on_both_sides_at_once_end_as_the_guest_s() -> None:
    """An editor goes back to raw mode on SIGCONT, a moment after the shell has set the terminal for it: what crosses must not part them."""
    async with Stage("sleep", "100") as stage:
        await asyncio.sleep(0.1)  # the two know of each other's modes
        guests = replace(get_modes(stage.slave), lflag=get_modes(stage.slave).lflag & ~termios.ICANON)
        set_modes(stage.slave, guests, extproc=True)
        homes = get_modes(stage.home_slave)
        set_modes(stage.home_slave, replace(homes, cc=homes.cc[: termios.VEOF] + b"\x05" + homes.cc[termios.VEOF + 1 :]), extproc=False)
        time.sleep(2 * POLL)  # when the loop goes on, each side tells its own before it hears the other's
        await asyncio.sleep(3 * POLL)
        assert get_modes(stage.slave) == get_modes(stage.home_slave) == guests
        # and home is heard again afterwards
        set_modes(stage.home_slave, homes, extproc=False)
        await until(lambda: get_modes(stage.slave) == homes)
        stage.guest.kill()


@in_loop
async def test_raw_mode_like_an_editor_and_back() -> None:
    program = """
import os, sys, termios, tty
old = termios.tcgetattr(0)
os.write(1, b'cooked\\n')
tty.setraw(0)
new = termios.tcgetattr(0); new[1] &= ~termios.ONLCR; termios.tcsetattr(0, termios.TCSANOW, new)
os.write(1, b'raw\\n!')
while (c := os.read(0, 1)) != b'q':
    os.write(1, b'<%02x>' % ord(c))
os.write(1, b'bye\\n')
termios.tcsetattr(0, termios.TCSADRAIN, old)
os.write(1, b'back\\r\\n')
"""
    async with Stage(sys.executable, "-S", "-c", program) as stage:
        await stage.see(b"!")
        assert not home_lflag(stage) & (termios.ICANON | termios.ECHO | termios.ISIG)
        stage.type(b"a\x03\x1b[A")
        await stage.see(b"<61><03><1b><5b><41>")
        await stage.move()
        stage.type(b"q")
        await stage.see(b"bye\nback\r\r\n")
        assert await stage.end() == 0
        assert home_lflag(stage) & termios.ICANON


@in_loop
async def test_output_is_processed_once_byte_for_byte() -> None:
    program = r"import os,sys; [os.write(1, b'%d\n\r\r\na\rb\t\n' % i) for i in range(3000)]"
    async with Stage(sys.executable, "-S", "-c", program) as stage:
        expected = b"".join(b"%d\n\r\r\na\rb\t\n" % i for i in range(3000)).replace(b"\n", b"\r\n")
        assert await stage.end() == 0
        await until(lambda: len(stage.screen) >= len(expected))
        assert stage.screen == expected


@in_loop
async def test_a_talkative_guest_moves_often_and_loses_nothing() -> None:
    # print, not os.write: a signal may cut a blocked write short, at home as well
    program = "import os\nfor i in range(40000): print('%06d' % i, flush=True)\nos.read(0, 1)"
    async with Stage(sys.executable, "-S", "-c", program) as stage:
        for i in range(20):
            await stage.move(give_up=i % 4 == 3)
            await asyncio.sleep(0.002)
        stage.type(b"\x04")
        assert await stage.end() == 0
        expected = b"".join(b"%06d\r\n" % i for i in range(40000))
        await until(lambda: len(stage.screen) >= len(expected))
        assert stage.screen == expected


@in_loop
async def test_window_size_travels_and_makes_sigwinch() -> None:
    program = """
import os, signal
signal.signal(signal.SIGWINCH, lambda *_: print(*os.get_terminal_size(), flush=True))
print('ready', flush=True)
while True: signal.pause()
"""
    async with Stage(sys.executable, "-S", "-c", program) as stage:
        await stage.see(b"ready\r\n")
        fcntl.ioctl(stage.user, termios.TIOCSWINSZ, struct.pack("4H", 33, 99, 0, 0))
        stage.home.winsize_changed()
        await stage.see(b"99 33\r\n")
        fcntl.ioctl(stage.user, termios.TIOCSWINSZ, struct.pack("4H", 50, 120, 0, 0))
        await stage.see(b"120 50\r\n")


@in_loop
async def test_input_is_read_in_the_foreground_only() -> None:
    async with Stage("cat", foreground=False) as stage:
        assert stage.foreground == [False]
        stage.type(b"for the shell\n")
        await asyncio.sleep(0.15)
        os.set_blocking(stage.home_slave, False)
        assert os.read(stage.home_slave, 100) == b"for the shell\n"
        stage.screen.clear()
        stage.give_terminal(True)
        assert stage.home.check_foreground()
        stage.type(b"for the guest\n")
        await stage.see(b"for the guest\r\nfor the guest\r\n")
        stage.give_terminal(False)
        await until(lambda: stage.foreground == [False, True, False])


@in_loop
async def test_the_shells_modes_reach_the_guest_with_the_terminal() -> None:
    async with Stage("cat", foreground=False) as stage:
        modes = termios.tcgetattr(stage.home_slave)
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(stage.home_slave, termios.TCSANOW, modes)
        stage.give_terminal(True)
        await until(lambda: not termios.tcgetattr(stage.slave)[3] & termios.ECHO)


@in_loop
async def test_ctrl_c_is_homes_affair_and_can_reach_the_cells_foreground_group() -> None:
    async with Stage("bash", "-c", "echo ready; exec sleep 1000") as stage:
        await stage.see(b"ready\r\n")
        stage.type(b"\x03")
        await stage.see(b"deputy got SIGINT")
        assert stage.guest.poll() is None
        stage.cell.signal_foreground(signal.SIGINT)
        await until(lambda: stage.guest.poll() is not None)
        assert stage.guest.wait() == -signal.SIGINT


@in_loop
async def test_sync_waits_for_output_and_modes() -> None:
    """Ctrl-Z on an editor: it sets the modes back, then stops; the shell must get the terminal after that."""
    program = """
import os, signal, termios, tty
old = termios.tcgetattr(0); tty.setraw(0)
def stop(*_):
    os.write(1, b'x' * 5000 + b'[suspended]'); termios.tcsetattr(0, termios.TCSADRAIN, old); os.kill(os.getpid(), signal.SIGSTOP)
signal.signal(signal.SIGTSTP, stop)
os.write(1, b'ready')
while True: signal.pause()
"""
    async with Stage(sys.executable, "-S", "-c", program) as stage:
        await stage.see(b"ready")
        assert not home_lflag(stage) & termios.ICANON
        os.kill(stage.guest.pid, signal.SIGTSTP)
        os.waitid(os.P_PID, stage.guest.pid, os.WSTOPPED | os.WNOWAIT)
        await stage.home.sync()
        assert home_lflag(stage) & termios.ICANON
        await stage.see(b"[suspended]")


@in_loop
async def test_stty_sane_keeps_the_terminal_remote() -> None:
    async with Stage("bash", "-c", "stty -echo; stty sane; echo up; read x; echo got $x") as stage:
        await stage.see(b"up\r\n")
        stage.type(b"one\n")
        await stage.see(b"one\r\ngot one\r\n")
        assert termios.tcgetattr(stage.slave)[3] & 0o200000
        assert not home_lflag(stage) & 0o200000


@in_loop
async def test_what_the_guest_did_not_read_goes_back_to_the_terminal() -> None:
    program = """
import os, select, tty, termios
old = termios.tcgetattr(0)
tty.setcbreak(0); os.write(1, b'ready'); select.select([0], [], []); os.write(1, b'[' + os.read(0, 1) + b']')
termios.tcsetattr(0, termios.TCSADRAIN, old)
"""
    async with Stage(sys.executable, "-S", "-c", program) as stage:
        await stage.see(b"ready")
        stage.type(b"yls\n")
        await stage.see(b"[y]")
        assert await stage.end() == 0
        os.set_blocking(stage.home_slave, False)
        assert os.read(stage.home_slave, 100) == b"ls\n"
        assert not stage.screen  # not echoed by the way


@in_loop
async def test_unread_input_and_a_typed_end_of_file_move_along() -> None:
    async with Stage("cat") as stage:
        for i in range(12):
            stage.type(b"line %d\n" % i)
            await stage.move(give_up=i % 3 == 2)
            await stage.see(b"line %d\r\nline %d\r\n" % (i, i))
        os.kill(stage.guest.pid, signal.SIGSTOP)
        stage.type(b"\x04")
        await asyncio.sleep(0.05)
        await stage.move()
        assert await stage.end() == 0


@in_loop
async def test_a_terminal_that_goes_away_is_gone_for_the_guest_too() -> None:
    program = "import os\nwhile True:\n try:\n  d = os.read(0, 1)\n except OSError: break\n if not d: break\n"
    async with Stage(
        sys.executable, "-S", "-c", f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); print('ready', flush=True)\n{program}"
    ) as stage:
        await stage.see(b"ready\r\n")
        os.close(stage.cell_master)  # the test's own copy would keep it alive
        stage.cell_master = os.open("/dev/null", os.O_RDONLY)
        stage.hang_up()
        await until(lambda: stage.guest.poll() is not None)
        assert stage.hangups == 1
        assert stage.guest.wait() == 0


@in_loop
async def test_a_guest_that_only_has_dev_tty() -> None:
    script = "exec 3<>/dev/tty 0</dev/null 1>/dev/null 2>/dev/null; read -u 3 x; echo got $x >&3"
    async with Stage("bash", "-c", script) as stage:
        stage.type(b"one\n")
        await stage.see(b"one\r\ngot one\r\n")
        assert await stage.end() == 0


def test_dev_tty_is_seen_through() -> None:
    program = """
import fcntl, os, sys, termios
from mig.channels.tty_modes import open_terminal
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.exit(os.fstat(open_terminal(os.open("/dev/tty", os.O_RDWR))).st_rdev != os.fstat(0).st_rdev)
"""
    master, slave = os.openpty()
    subprocess.run([sys.executable, "-c", program], stdin=slave, check=True)
    os.close(master)
    os.close(slave)
