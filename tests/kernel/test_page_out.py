"""Memory of a process that stands still, written to a swap space of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mig.kernel import procfs
from mig.kernel.page_out import page_out

SIZE = 48 << 20
HOLD = f"""x = bytearray(range(256)) * {SIZE // 256}
print(len(x), flush=True)
input()
print(all(x[i] == i % 256 for i in range(0, len(x), 997)))"""


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[None]:
    """At least 64 MiB of swap space."""
    f = tmp_path / "swap"
    f.write_bytes(bytes(64 << 20))
    f.chmod(0o600)
    subprocess.run(["mkswap", f], check=True, capture_output=True)
    made = subprocess.run(["swapon", f], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this machine allows no swap file here: {made.stderr.strip()}")
    yield
    subprocess.run(["swapoff", f], check=True)


def field(pid: int, name: str) -> int:
    """Bytes, from /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def test_memory_goes_out_and_comes_back_whole(swap: None) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None and p.stdin is not None
        assert p.stdout.readline() == f"{SIZE}\n"
        before = field(p.pid, "RssAnon")
        assert page_out(p.pid) >= SIZE
        deadline = time.monotonic() + 30
        while field(p.pid, "RssAnon") > before - SIZE // 2:  # what is just being written stays for a moment
            assert time.monotonic() < deadline, f"{field(p.pid, 'RssAnon')} of {before} bytes are still in memory"
            page_out(p.pid)
            time.sleep(0.1)
        assert field(p.pid, "VmSwap") > SIZE // 2
        p.stdin.write("\n")
        p.stdin.flush()
        assert p.stdout.readline() == "True\n"


def test_files_stay_and_who_is_gone_is_told() -> None:
    with subprocess.Popen(["sleep", "60"]) as p:
        while procfs.state(p.pid) != "S":
            time.sleep(0.01)
        anonymous = sum(m.size for m in procfs.maps(p.pid) if not m.ino and not m.path.startswith("[v"))
        assert 0 < page_out(p.pid) <= anonymous
        p.kill()
    with pytest.raises(ProcessLookupError):
        page_out(p.pid)
    assert page_out(os.getpid()) > 0
