"""The demonstration's jobs: what is typed, how much work it is, and what must come out.

Each job is sized for this machine: a small piece is run first, and its CPU time tells how large the whole has to be.  Then the whole is
run once, unmoved and outside of the lab; what that run wrote is what the run in the lab must write.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mig.errors import MigError
from omtools.demo import png

PYTHON = shutil.which("python3", path="/usr/local/bin:/usr/bin") or sys.executable
"""The system's Python: ours may lie under a home directory that the lab's user cannot enter."""
SCENE = Path("/usr/share/doc/povray/examples/advanced/chess2.pov")
SCENE_PACKAGE = "povray-examples"
HOST_NAME = "n1"
PRIMES_LINES = 20
_PROBE_NUMBERS = 10_000
_PROBE_BYTES = 10_000_000


@dataclass
class Job:
    """One job: ``command`` as typed in its directory; ``files`` that it writes, and ``shown``: whether its terminal output counts too."""

    name: str
    about: str
    command: str
    files: dict[str, Callable[[bytes], bytes]]
    threads: int = 1
    later: bool = False  # started when the first have run for a while
    terminal: bool = False  # runs in the foreground of a terminal of its own
    status: int = 0  # expected
    cpu_s: float = 0.0  # of the unmoved run
    expected: dict[str, bytes] = field(default_factory=dict)  # what the unmoved run wrote, by file; "" is the terminal


def same(data: bytes) -> bytes:
    """Files that are compared byte by byte."""
    return data


def cpu_time(argv: Sequence[str], cwd: Path) -> float:
    """Run it to its end; CPU seconds that it took.  Raises :class:`MigError` when it fails."""
    process = subprocess.Popen(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 42):
        raise MigError(
            f"{shlex.join(argv)} failed with status {process.returncode}", reasons=said.decode(errors="replace").splitlines()[-3:]
        )
    return max(usage.ru_utime + usage.ru_stime, 0.01)


def awk_command(rounds: int) -> str:
    """The test of every openMosix guide, ``rounds / 10000`` times as long, and it prints where it ended."""
    return f"awk 'BEGIN {{for(i=0;i<{rounds};i++)for(j=0;j<10000;j++); print i, j}}'"


def povray_argv(width: int, output: str) -> list[str]:
    """Render the chess scene with two threads."""
    return ["povray", "+Ichess2.pov", f"+O{output}", f"+W{width}", f"+H{width * 3 // 4}", "+WT2", "+FN", "-D", "-GA"]


def make(directory: Path, cpus: float) -> list[Job]:
    """Write the jobs' inputs to ``directory`` and size the jobs for a pool of ``cpus`` CPUs.  Raises :class:`MigError`."""
    shutil.copy(_scene(directory), directory / "chess2.pov")
    shutil.copy(Path(__file__).with_name("primes.py"), directory)
    probe = directory / "probe"
    probe.mkdir()

    awk = cpu_time(shlex.split(awk_command(2000)), probe) / 2000
    rounds = max(10_000, int(AWK_S * cpus / awk) // 1000 * 1000)

    shutil.copy(directory / "chess2.pov", probe)
    pixel = cpu_time(povray_argv(128, "probe.png"), probe) / (128 * 96)
    width = max(160, int((POVRAY_S * cpus / pixel * 4 / 3) ** 0.5) // 8 * 8)

    # its dictionary of 8 MB must be full, or it looks faster than it is
    _tar(probe / "probe.tar", _PROBE_BYTES)
    byte = cpu_time(["xz", "-T1", "-k", "probe.tar"], probe) / _PROBE_BYTES
    _tar(directory / "pylib.tar", int(XZ_S * cpus / byte))

    shutil.copy(directory / "primes.py", probe)
    number = cpu_time([PYTHON, "primes.py", "probe.log", "1", str(_PROBE_NUMBERS)], probe) / _PROBE_NUMBERS
    block = max(100, int(PRIMES_S * cpus / number / PRIMES_LINES) // 100 * 100)
    shutil.rmtree(probe)

    megabytes = (directory / "pylib.tar").stat().st_size / 1e6
    classic = f"the classic test of every openMosix guide, {rounds / 10000:.0f} times over"
    return [
        Job("pov", f"POV-Ray, 2 threads: its chess scene, {width}x{width * 3 // 4}",
            f"{shlex.join(povray_argv(width, 'chess.png'))} 2> pov.err", {"chess.png": png.picture}, threads=2),
        Job("xz", f"xz, {megabytes:.0f} MB of Python's library", "xz -T1 -k pylib.tar", {"pylib.tar.xz": same}),
        *(Job(f"awk{i}", classic, f"{awk_command(rounds)} > awk{i}.out", {f"awk{i}.out": same}, later=True) for i in (1, 2)),
        Job("prime", "Python, prints to its terminal, appends to a log",
            f"{PYTHON} primes.py primes.log {PRIMES_LINES} {block}", {"primes.log": same}, terminal=True, later=True, status=42),
    ]  # fmt: skip


AWK_S, POVRAY_S, XZ_S, PRIMES_S = 5.5, 7.0, 5.0, 7.5
"""CPU seconds that the jobs take for each CPU of the pool: together half a minute, if all CPUs were busy all the time."""


def run_unmoved(jobs: Sequence[Job], directory: Path, ended: Callable[[Job], None]) -> None:
    """Run the jobs in ``directory``, all at once; fills in results and CPU time, calls ``ended``.  Raises :class:`MigError`."""
    started = []
    # the two awks are equal
    for job in [j for j in jobs if j.name != "awk2"]:
        terminal = directory / f"{job.name}.terminal"
        # the same host name as in the lab: the program prints it
        argv = ["unshare", "--uts", "/bin/bash", "-c", f"echo {HOST_NAME} > /proc/sys/kernel/hostname; exec {job.command}"]
        with open(terminal, "wb") as out:
            started.append((job, terminal, subprocess.Popen(argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=out)))
    try:
        for job, terminal, process in started:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            job.cpu_s = usage.ru_utime + usage.ru_stime
            ended(job)
            if process.returncode != job.status:
                raise MigError(
                    f"the unmoved run of {job.name} ended with status {process.returncode}",
                    reasons=terminal.read_text(errors="replace").splitlines()[-3:],
                )
            for name, content in job.files.items():
                job.expected[name] = content((directory / name).read_bytes())
            if job.terminal:
                job.expected[""] = terminal.read_bytes()
    finally:
        for _, _, process in started:
            if process.returncode is None:
                process.kill()
                process.wait()
    awk1, awk2 = (next(j for j in jobs if j.name == name) for name in ("awk1", "awk2"))
    awk2.cpu_s, awk2.expected["awk2.out"] = awk1.cpu_s, awk1.expected["awk1.out"]


def differences(job: Job, home: Path, shown: bytes) -> list[str]:
    """What the job in the lab wrote otherwise than the unmoved run, in words; ``shown``: what it printed to its terminal."""
    wrong = []
    for name, content in job.files.items():
        try:
            written = content((home / name).read_bytes())
        except FileNotFoundError:
            wrong.append(f"{name} is not there")
        except ValueError as e:
            wrong.append(f"{name}: {e}")
        else:
            if written != job.expected[name]:
                wrong.append(f"{name} differs: {len(written)} bytes, expected {len(job.expected[name])}")
    if job.terminal and shown != job.expected[""]:
        wrong.append(f"the terminal shows something else: {len(shown)} bytes, expected {len(job.expected[''])}")
    return wrong


def _scene(directory: Path) -> Path:
    """POV-Ray's example, from its package where the system was told to install no documentation (container images do that)."""
    if SCENE.exists():
        return SCENE
    unpacked = directory / "scene"
    unpacked.mkdir()
    fetch = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", SCENE_PACKAGE]
    got = subprocess.run(fetch, cwd=unpacked, capture_output=True, text=True)
    packages = list(unpacked.glob("*.deb"))
    if got.returncode or not packages:
        raise MigError(
            f"{SCENE} is missing, and so is its package", reasons=got.stderr.splitlines(), hint=f"apt-get install {SCENE_PACKAGE}"
        )
    subprocess.run(["dpkg-deb", "-x", packages[0], unpacked], check=True)
    return unpacked / SCENE.relative_to("/")


def _tar(path: Path, size: int) -> None:
    """An archive of about ``size`` bytes (less where there is not so much) of Python's library, and of what else is in /usr/lib."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for file in _library():
            archive.add(file, recursive=False)
            if archive.offset >= size:
                return


def _library() -> Iterator[Path]:
    """Files in a random order that is always the same: so that the beginning of an archive is like the rest, and can stand for it."""
    for top in (sysconfig.get_paths()["stdlib"], "/usr/lib/python3", "/usr/lib/x86_64-linux-gnu"):
        files = sorted(f for f in Path(top).rglob("*") if f.is_file() and not f.is_symlink())
        random.Random(1).shuffle(files)
        yield from files
