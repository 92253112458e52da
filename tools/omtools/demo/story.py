"""The demonstration itself, act by act, from the first shell to the last proof."""

from __future__ import annotations

import re
import select
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mig.errors import MigError
from omtools.demo import show
from omtools.demo.jobs import HOST_NAME, PRIMES_LINES, Job, differences
from omtools.demo.pool import Move, Pool
from omtools.demo.shell import PROMPT, Shell
from omtools.moslab import ready
from omtools.moslab.lab import Lab

HOME = "/home/demo"
USER = "1000"
INPUTS = ("chess2.pov", "pylib.tar", "primes.py")
_TICK_S = 0.3
_TABLE_S = 5.0
_LATER_S = 5.0
"""When the later jobs are started: the pool has then begun to know the first ones."""
_LIMIT_S = 300.0
"""After this long the jobs are given up: something is broken."""
_BY_HAND_AT = 0.5
"""The share of its lines after which the program at the terminal is moved by hand."""
_PATIENCE_S = 20.0
"""Seconds that the balancer has for the program with several threads, which openMosix could not move; then it goes by hand."""
_STAY_S = 2.0
"""Seconds between two orders."""
_TRIES = 5

_STARTED = re.compile(r"^\[\d+\] (\d+)\r$", re.M)
_READY = re.compile(r"\r\n" + re.escape(PROMPT) + r"\Z")
_ENDED = re.compile(r"^ended (\d+) status (\d+)\r$", re.M)
_STATUS = re.compile(r"^exit status (\d+)\r$", re.M)


@dataclass
class Run:
    """What became of one job in the lab."""

    job: Job
    pid: int
    began: float  # seconds since the jobs' start
    ended: float = 0.0
    status: int | None = None  # as the shell at home saw it
    moves: list[Move] = field(default_factory=list)
    failed: list[Move] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether its shell still waits for it."""
        return self.status is None

    @property
    def path(self) -> list[str]:
        """The nodes that it ran on, one after the other."""
        return [HOST_NAME, *(m.target for m in self.moves)]


class Story:
    """The lab while the jobs run in it."""

    def __init__(self, lab: Lab, jobs: list[Job], inputs: Path) -> None:
        self.lab, self.jobs, self.inputs = lab, jobs, inputs
        self.home = lab.node(HOST_NAME)
        self.files = ready.tree(lab, self.home) / HOME[1:]
        self.nodes = [n.name for n in lab.nodes]
        self.runs: list[Run] = []
        self._shown_lines = 0

    def play(self) -> None:
        """Start the jobs, watch them to their end.  Raises :class:`MigError` when they do not end."""
        self.files.mkdir()
        for name in INPUTS:
            shutil.copy(self.inputs / name, self.files)
        for path in (self.files, *self.files.iterdir()):
            shutil.chown(path, int(USER), int(USER))
        self.pool = Pool(self.lab, self.home)
        self.batch = Shell(self.lab, self.home, user=USER, cwd=HOME)
        self.front = Shell(self.lab, self.home, user=USER, cwd=HOME)
        self.admin = Shell(self.lab, self.home, user="0", cwd="/")
        show.title("Work is started on n1; a line each 5 s tells what runs where")
        show.places_header(self.nodes, HOST_NAME)
        self.t0 = time.monotonic()
        try:
            self._watch()
        finally:
            for shell in (self.batch, self.front, self.admin):
                shell.close()
            self.pool.close()

    # -- starting -----------------------------------------------------------------------------------------------------------------

    def _start(self, later: bool) -> None:
        """Start those jobs that come first, or those that come later."""
        for job in self.jobs:
            if job.later == later and not job.terminal:
                mark = self.batch.type(f"{job.command} &")
                pid = int(self._expect(self.batch, mark, _STARTED)[1])
                self._expect(self.batch, mark, _READY)
                self._started(job, pid, " &")
        for job in self.jobs:
            if job.later == later and job.terminal:
                self._front_mark = self.front.type(f"{job.command}; echo exit status $?")
                self._started(job, self._child_of(self.front), "")

    def _wait_in_shell(self) -> None:
        """From now on the shell of the background jobs tells as they end: bash itself says whose exit status it got."""
        pids = " ".join(str(r.pid) for r in self.runs if not r.job.terminal)
        self.batch.type(f'while wait -n -p pid {pids}; status=$?; [ -n "$pid" ]; do echo ended $pid status $status; done')

    def _started(self, job: Job, pid: int, background: str) -> None:
        self.runs.append(Run(job, pid, self._now()))
        show.say(f"{show.clock(self._now())} + {job.name}, pid {pid}: {job.about}")
        show.paragraph(f"n1$ {job.command}{background}", indent=show.INDENT)

    def _expect(self, shell: Shell, mark: int, pattern: re.Pattern[str]) -> re.Match[str]:
        deadline = time.monotonic() + 20
        while not (m := pattern.search(shell.text, mark)):
            if time.monotonic() > deadline:
                raise MigError("the shell on n1 does not answer", reasons=shell.text[mark:].splitlines())
            select.select([shell], [], [], 0.5)
            shell.read()
        return m

    def _child_of(self, shell: Shell) -> int:
        """The pid on n1 of the program in a shell's foreground."""
        children = ready.tree(self.lab, self.home) / f"proc/{shell.pid}/task/{shell.pid}/children"
        deadline = time.monotonic() + 20
        while not (pids := children.read_text().split()):
            if time.monotonic() > deadline:
                raise MigError("the shell on n1 starts no program", reasons=shell.text.splitlines()[-3:])
            time.sleep(0.05)
        return int(pids[0])

    # -- watching -----------------------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return time.monotonic() - self.t0

    def _watch(self) -> None:
        """Tell what happens, until all jobs have ended."""
        self._start(later=False)
        waiting = True  # for the time of the later ones
        next_table = _TABLE_S
        hand: Iterator[None] | None = self._by_hand()
        while waiting or hand is not None or any(r.running for r in self.runs):
            if self._now() > _LIMIT_S:
                stuck = [f"{r.job.name}, pid {r.pid}" for r in self.runs if r.running]
                raise MigError(f"after {_LIMIT_S:.0f} s not all jobs have ended", reasons=stuck)
            select.select([self.batch, self.front, self.admin], [], [], _TICK_S)
            self._read_shells()
            self._tell_moves()
            if waiting and self._now() >= _LATER_S:
                waiting = False
                self._start(later=True)
                self._wait_in_shell()
            if hand is not None and next(hand, self) is self:
                hand = None
            if self._now() >= next_table:
                next_table = self._now() + _TABLE_S
                self._table()
        self._tell_moves()

    def _table(self) -> None:
        where = self.pool.where()
        show.places(self._now(), self.nodes, {r.job.name: where.get(r.pid, HOST_NAME) for r in self.runs if r.running})

    def _read_shells(self) -> None:
        self.admin.read()
        self.batch.read()
        for pid, status in _ENDED.findall(self.batch.text):
            self._ended(next(r for r in self.runs if r.pid == int(pid)), int(status))
        self.front.read()
        run = next((r for r in self.runs if r.job.terminal), None)
        if run is None:
            return
        if m := _STATUS.search(self.front.text, self._front_mark):
            self._ended(run, int(m[1]))
        self._show_terminal(run)

    def _ended(self, run: Run, status: int) -> None:
        if not run.running:
            return
        run.status, run.ended = status, self._now()
        show.say(f"{show.clock(run.ended)} . {run.job.name} has ended; its shell on n1 got exit status {status}")

    # -- the terminal -------------------------------------------------------------------------------------------------------------

    def _terminal_output(self) -> str:
        """What the program has printed: between the typed line's echo and what the shell prints after it."""
        text = self.front.text[self._front_mark :].partition("\r\n")[2]
        end = _STATUS.search(text)
        return text[: end.start()] if end else text

    def _show_terminal(self, run: Run) -> None:
        lines = self._terminal_output().split("\r\n")[:-1]
        for line in lines[self._shown_lines :]:
            show.say(f"{show.INDENT}terminal: {line}"[: show.WIDTH])
        self._shown_lines = len(lines)

    # -- moves by hand ------------------------------------------------------------------------------------------------------------

    def _by_hand(self) -> Iterator[None]:
        """What a user does beside the balancer, typed in a third shell; yields while there is nothing to do."""
        while self._now() < _LATER_S + _PATIENCE_S:
            yield
        for run in self.runs:
            if run.job.threads > 1 and run.running and not run.moves:
                self._announce(f"{run.job.name}, still at home, goes to {self.nodes[-1]}")
                yield from self._send(run, [self.nodes[-1]])
        run = next(r for r in self.runs if r.job.terminal)
        while run.running and self._shown_lines < _BY_HAND_AT * PRIMES_LINES:
            yield
        if run.running:
            where = self.pool.where().get(run.pid, HOST_NAME)
            away = next(n for n in self.nodes if n not in (HOST_NAME, where))
            order = ["home", away] if where != HOST_NAME else [away, "home"]
            self._announce(f"migrate {run.job.name}: {order[0]}, then {order[1]}")
            yield from self._send(run, order)

    def _announce(self, what: str) -> None:
        show.say(f"{show.clock(self._now())} # by hand, in a third shell: {what}")

    def _send(self, run: Run, places: list[str]) -> Iterator[None]:
        yield from self._type(f"mosctl lock {run.pid}")  # or the balancer would have its own opinion
        for to in places:
            for _ in range(_TRIES):
                said = yield from self._type(f"migrate {run.pid} {to}")
                if " moved from " in said or not run.running:
                    break
                yield from self._pause()  # the balancer may be moving it at this moment
            yield from self._pause()
        if run.running:
            yield from self._type(f"mosctl unlock {run.pid}")

    def _pause(self) -> Iterator[None]:
        end = self._now() + _STAY_S
        while self._now() < end:
            yield

    def _type(self, line: str) -> Generator[None, None, str]:
        """Type at the third shell; returns what the command printed."""
        show.say(f"{show.INDENT}n1# {line}")
        mark = self.admin.type(line)
        while not _READY.search(self.admin.text, mark):
            yield
        said = self.admin.text[mark:].partition("\r\n")[2].removesuffix(PROMPT)
        # progress lines are rewritten in place: what stands last in a line is what a reader sees
        lines = [re.split(r"\r|\x1b\[K", text)[-1] for text in said.split("\r\n")]
        for text in filter(None, lines):
            show.paragraph(text, indent=show.INDENT)
        return "\n".join(lines)

    # -- what came of it ----------------------------------------------------------------------------------------------------------

    def _tell_moves(self) -> None:
        for m in self.pool.new_moves():
            run = next((r for r in self.runs if r.pid == m.pid), None)
            if run is not None:
                (run.moves if m.arrived else run.failed).append(m)
                if not (m.arrived and m.by_hand):  # migrate itself has told of those
                    show.move(self._now(), run.job.name, m)

    def wrong(self, run: Run) -> list[str]:
        """What differs from the unmoved run, in words: files at home, the terminal, the exit status."""
        shown = self._terminal_output().replace("\r\n", "\n").encode() if run.job.terminal else b""
        found = differences(run.job, self.files, shown)
        if run.status != run.job.status:
            found.append(f"exit status {run.status}, expected {run.job.status}")
        return found

    def strays(self) -> list[str]:
        """Nodes other than home on which the jobs' directory exists: there must be none."""
        others = [n for n in self.lab.nodes if n is not self.home]
        return [n.name for n in others if (ready.tree(self.lab, n) / HOME[1:]).exists()]
