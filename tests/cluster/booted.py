"""A lab node booted by the machine's own systemd: it is pid 1 there, with journald, dbus and logind, and runs omdiscd by its unit.

It lives inside the namespaces of the lab's node, with a pid, mount, uts, ipc and cgroup namespace of its own, on the node's disk and
network; so whatever it starts, mounts or makes goes with the lab.
"""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

SYSTEMD = Path("/usr/lib/systemd/systemd")
USER = "ann"

_DISK = """set -e
rm -rf /etc/systemd/system/*.wants /etc/systemd/system/default.target
omdiscd --print-unit > /etc/systemd/system/omdiscd.service
systemctl -q enable omdiscd
systemctl -q set-default multi-user.target
mkdir -p /etc/systemd/journald.conf.d /var/log/journal
printf '[Journal]\\nStorage=volatile\\nRateLimitBurst=0\\n' > /etc/systemd/journald.conf.d/test.conf
mkdir -p /etc/tmpfiles.d
ln -sf /dev/null /etc/tmpfiles.d/tmp.conf  # which empties /tmp, where this project may lie
useradd -m -s /bin/bash %(user)s
printf 'leave_on = "login"\\nrejoin_after = "0s"\\n' >> /etc/mig/omdiscd.toml
"""
# a machine of its own has its own file systems: the node's are taken away before, so that nothing but the disk is shared
_BOOT = """set -e
groups=$(findmnt -rno TARGET -t cgroup2 | head -n 1)
mkdir $groups/booted
echo $$ > $groups/booted/cgroup.procs
exec unshare --pid --fork --mount --uts --ipc --cgroup --propagation private bash -ec '
cp -a /run/moslab/boot_id /run/criu.kdat /root/ || true
umount -l /run /sys/fs/cgroup /proc
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
mv /root/boot_id /root/criu.kdat /run/ || true
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
exec env -i container=moslab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin %(systemd)s --system --show-status=no'
"""


class Booted:
    """n1 of a lab of two, with systemd; n2 is an ordinary node of the lab."""

    def __init__(self, lab: Any) -> None:
        assert SYSTEMD.exists(), f"{SYSTEMD} is missing: tools/omtools/setup/bootstrap.sh test"
        self.lab = lab
        if daemon := lab.daemon_pid("n1"):
            lab.signal("n1", daemon, signal.SIGTERM)
        lab.wait_for(lambda: not lab.daemon_pid("n1"), what="the lab's own omdiscd has ended")
        lab.run("n1", _DISK % {"user": USER}, check=True)
        outer = lab.spawn("n1", _BOOT % {"systemd": SYSTEMD})

        def first() -> int:
            assert lab.alive("n1", outer), lab.output("n1", outer)
            return int(lab.run("n1", f"pgrep -x -P {outer} systemd").stdout or 0)

        self.pid = lab.wait_for(first, 20, "systemd is pid 1")
        lab.wait_for(lambda: self.show("ActiveState") in ("active", "failed"), 40, "omdiscd is active")
        assert self.show("ActiveState") == "active", self.journal()
        lab.wait_for(lambda: self.peers() == {"n1", "n2"}, 20, "the nodes see each other")
        for node in (self.run, lambda *argv: lab.run("n2", argv, check=True)):
            node("mosctl", "stay")  # nothing moves but what a test moves

    def enter(self, *argv: str) -> list[str]:
        """The command line for n1 that runs ``argv`` inside."""
        return ["nsenter", "-t", str(self.pid), "-a", "--", *argv]

    def run(self, *argv: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run it inside, to the end."""
        r: subprocess.CompletedProcess[str] = self.lab.run("n1", self.enter(*argv), timeout=timeout)
        assert not check or r.returncode == 0, f"{argv}: {r.returncode}\n{r.stdout}{r.stderr}"
        return r

    def sh(self, script: str, *, check: bool = True) -> str:
        """What a script for bash prints inside."""
        return self.run("bash", "-c", script, check=check).stdout.strip()

    def show(self, name: str, unit: str = "omdiscd") -> str:
        """A property of a unit; "" while systemd does not answer."""
        return self.run("systemctl", "show", "-P", name, unit, check=False).stdout.strip()

    def wait_for(self, name: str, value: str, unit: str = "omdiscd", timeout: float = 30) -> None:
        """Until a property has a value."""
        self.lab.wait_for(lambda: self.show(name, unit) == value, timeout, f"{name} of {unit} becomes {value}")

    def peers(self) -> set[str]:
        """The nodes that omdiscd here sees alive."""
        r = self.run("mosctl", "status", "--json", check=False)
        return {row["name"] for row in json.loads(r.stdout) if row["state"] == "alive"} if r.returncode == 0 else set()

    def journal(self, unit: str = "omdiscd") -> str:
        """What the journal has of a unit, systemd's own lines about it included."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit).stdout

    def pool(self) -> dict[str, Any]:
        """``mosctl pool``; without sessions and a state while omdiscd does not answer."""
        r = self.run("mosctl", "pool", "--json", check=False)
        return dict(json.loads(r.stdout)) if r.returncode == 0 else {"state": "", "sessions": []}

    def cgroup(self, pid: int | str) -> str:
        """The v2 cgroup of a process."""
        return next(line[3:] for line in self.sh(f"cat /proc/{pid}/cgroup").splitlines() if line.startswith("0::"))
