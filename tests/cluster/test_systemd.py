"""omdiscd as the service of a real systemd, and logind's sessions: see booted.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.booted import USER, Booted
from tests.cluster.conftest import LabUnderTest, make_name
from tests.cluster.helpers import COUNT
from tests.cluster.logins import LOGINS

DROP_IN = "/etc/systemd/system/omdiscd.service.d/test.conf"
CONFIG = "/etc/mig/omdiscd.toml"


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    lab = LabUnderTest(make_name(), "--no-wait", nodes=2)
    try:
        yield Booted(lab)
    finally:
        lab.down()


def counted(text: str) -> int:
    """The last number of count.py, whose output must have no gap."""
    numbers = [int(x) for x in re.findall(r"(?m)^\d+$", text)]
    assert numbers == list(range(len(numbers)))
    return len(numbers)


class Pair:
    """A guest of n2's on the machine, and a job of the machine's own, a service, on n2."""

    def __init__(self, machine: Booted) -> None:
        self.machine, self.lab = machine, machine.lab
        self.guest = self.lab.spawn("n2", f"rm -f /tmp/end; exec {COUNT} 0.1 7 /tmp/end")
        machine.sh(f"rm -f /root/end /root/job; systemd-run -q --unit=job -p StandardOutput=file:/root/job {COUNT} 0.1 7 /root/end")
        self.job = int(machine.show("MainPID", "job"))
        self.lab.wait_for(lambda: all(n > 1 for n in self.progress()), what="both run")
        self.lab.run("n2", ["migrate", str(self.guest), "n1"], check=True)
        machine.run("migrate", str(self.job), "n2")

    def progress(self) -> tuple[int, int]:
        """How far they are."""
        return counted(self.lab.output("n2", self.guest)), counted(self.machine.sh("cat /root/job 2>/dev/null", check=False))

    def go_on(self) -> None:
        """Wait until both have gone on; they are where they were."""
        before = self.progress()
        self.lab.wait_for(lambda: all(a > b + 2 for a, b in zip(self.progress(), before, strict=True)), 20, "both go on")
        assert self.machine.show("MainPID", "job") == str(self.job)
        rows = self.machine.sh("mosps -a")
        assert re.search(rf"(?m)^ *{self.job} +root +n1 +n2 ", rows) and re.search(rf"(?m)^ *{self.guest} +root +n2 +n1 ", rows), rows

    def end(self) -> None:
        """Both end with their own status, the job as systemd sees it."""
        self.machine.sh("touch /root/end")
        self.machine.wait_for("ExecMainStatus", "7", "job")
        self.lab.run("n2", "touch /tmp/end")
        self.lab.wait_for(lambda: not self.lab.alive("n2", self.guest), what="the guest has ended")
        self.machine.run("systemctl", "reset-failed", "job")


def restarted(machine: Booted, before: str) -> None:
    """Wait until systemd has started omdiscd again, and it is ready."""
    machine.lab.wait_for(
        lambda: machine.show("MainPID") not in ("0", before) and machine.show("ActiveState") == "active", 60, "systemd starts it again"
    )
    machine.lab.wait_for(lambda: machine.peers() == {"n1", "n2"}, 20, "it sees the other node")


def test_it_is_ready_when_it_says_so_and_its_helpers_are_outside_of_its_unit(machine: Booted) -> None:
    assert (machine.show("Type"), machine.show("SubState")) == ("notify", "running")
    assert machine.cgroup(machine.show("MainPID")) == "/system.slice/omdiscd.service"
    assert machine.cgroup(machine.sh("pgrep -x mig-relay | head -n 1")) == "/mig-helpers"
    assert "<6>" not in machine.journal() and "node n1" in machine.journal(), "the journal takes the severity off"


def test_guests_and_jobs_outlive_every_end_of_the_daemon(machine: Booted) -> None:
    pair = Pair(machine)
    machine.run("systemctl", "restart", "omdiscd")
    pair.go_on()
    machine.run("systemctl", "stop", "omdiscd")
    assert machine.show("ActiveState") == "inactive"
    assert not machine.sh("cat /sys/fs/cgroup/system.slice/omdiscd.service/cgroup.procs 2>/dev/null", check=False), "nothing of it is left"
    before = pair.progress()
    machine.lab.wait_for(lambda: all(a > b for a, b in zip(pair.progress(), before, strict=True)), what="both go on without it")
    machine.run("systemctl", "start", "omdiscd")
    machine.run("systemctl", "daemon-reexec")
    pair.go_on()
    # dead, or alive and of no use: systemd notices both
    main = machine.show("MainPID")
    machine.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", "omdiscd")
    restarted(machine, main)
    pair.go_on()
    machine.sh(f"mkdir -p {DROP_IN.rpartition('/')[0]}; printf '[Service]\\nWatchdogSec=5\\n' >{DROP_IN}; systemctl daemon-reload")
    machine.run("systemctl", "restart", "omdiscd")
    main, fed = machine.show("MainPID"), machine.show("WatchdogTimestampMonotonic")
    machine.lab.wait_for(lambda: machine.show("WatchdogTimestampMonotonic") != fed, what="it is fed")
    machine.sh(f"kill -STOP {main}")
    restarted(machine, main)
    assert "watchdog" in machine.journal().lower()
    pair.go_on()
    machine.sh(f"rm {DROP_IN}; systemctl daemon-reload; systemctl restart omdiscd")
    machine.lab.run("n2", ["migrate", str(pair.guest), "home"], check=True)
    machine.run("migrate", str(pair.job), "home")
    pair.end()


def test_stopping_the_service_of_a_job_that_is_away_ends_it(machine: Booted) -> None:
    pair = Pair(machine)
    machine.run("systemctl", "stop", "job")
    machine.lab.wait_for(lambda: not machine.lab.run("n2", "pgrep -f /root/end").stdout, what="it has ended on n2")
    machine.lab.run("n2", "touch /tmp/end")
    machine.lab.wait_for(lambda: not machine.lab.alive("n2", pair.guest), what="the guest has ended")


def test_a_reload_waits_and_fails_when_the_file_is_not_valid(machine: Booted) -> None:
    main, good = machine.show("MainPID"), machine.sh(f"cat {CONFIG}")
    try:
        machine.sh(f"echo max_guests = 3 >>{CONFIG}; systemctl reload omdiscd")
        assert "max_guests = 3 (was 64)" in machine.journal()
        machine.run("systemctl", "kill", "--kill-whom=main", "-s", "HUP", "omdiscd")
        machine.lab.wait_for(lambda: "reload: nothing has changed" in machine.journal(), what="SIGHUP does it, too")
        machine.sh(f"echo fanout = -1 >>{CONFIG}")
        assert machine.run("systemctl", "reload", "omdiscd", check=False).returncode
        assert "fanout" in machine.journal().rpartition("nothing has changed")[2]
        assert (machine.show("MainPID"), machine.show("SubState")) == (main, "running")
        # nor is it tried again and again
        assert machine.run("systemctl", "restart", "omdiscd", check=False).returncode
        assert (machine.show("ActiveState"), machine.show("ExecMainStatus"), machine.show("NRestarts")) == ("failed", "2", "0")
    finally:
        machine.lab.run("n1", ["tee", CONFIG], input=f"{good}\n", check=True)
        machine.run("systemctl", "restart", "omdiscd")


def test_what_sits_in_the_unit_opens_harmless_devices_only(machine: Booted) -> None:
    script = """
echo $$ >/sys/fs/cgroup%s/cgroup.procs
for d in null full ptmx fuse other; do (exec 3<>/dev/$d) 2>/dev/null && echo $d; done; true"""
    machine.sh("mknod -m 666 /dev/other c 1 11")
    assert machine.sh(script % "/system.slice/omdiscd.service").split() == ["null", "full", "ptmx", "fuse"]
    assert machine.sh(script % "").split() == ["null", "full", "ptmx", "fuse", "other"]


def log_in(machine: Booted) -> Any:
    """A login of ann's with a terminal, of which PAM does not tell us; su writes no utmp either, so that only logind knows."""
    shell = machine.lab.pty("n1", machine.enter("setsid", "--ctty", "--wait", "su", "-l", USER))
    shell.expect_exact("$ ")
    machine.lab.wait_for(lambda: machine.pool()["state"] == "out", 20, "the node has left")
    (session,) = machine.pool()["sessions"]
    assert (session["user"], session["source"], session["service"]) == (USER, "logind", "su-l") and session["tty"].startswith("pts/")
    return shell


def test_sessions_that_logind_knows_are_found_and_their_ends_too(machine: Booted) -> None:
    def nobody() -> None:
        machine.lab.wait_for(lambda: machine.pool()["state"] == "in-pool", 20, "nobody is there")
        assert not machine.pool()["sessions"]

    nobody()
    shell = log_in(machine)
    shell.sendline(f"setsid {COUNT} 0.1 7 end </dev/null >out 2>&1 & echo pid=$!")
    shell.expect(r"pid=(\d+)")
    machine.lab.wait_for(lambda: machine.sh(f"pgrep -u {USER} -f count.py", check=False), what="the job runs")
    job = machine.sh(f"pgrep -u {USER} -o -f count.py")
    assert "/user.slice/user-" in machine.cgroup(job)
    machine.run("migrate", job, "n2")
    shell.sendline("exit")
    # the job keeps the session "closing"; nobody is there
    nobody()
    assert "closing" in machine.sh("grep -h STATE= /run/systemd/sessions/*[0-9]")
    home = f"/home/{USER}"
    machine.sh(f"touch {home}/end; tail --pid={job} -f /dev/null")
    assert counted(machine.sh(f"cat {home}/out")) > 5
    log_in(machine)
    machine.sh("kill -KILL $(pgrep -x su)")
    nobody()


DESK = """
for d in usr etc; do [ ! -d %(logins)s/$d ] || cp -a %(logins)s/$d/. /$d/; done
ldconfig
cat > /etc/pam.d/mig-desk <<END
auth required pam_permit.so
account required pam_permit.so
session required pam_systemd.so type=x11 class=user
session optional pam_exec.so seteuid /root/hold
END
printf '#!/bin/sh\\n[ "$PAM_TYPE" = open_session ] || exit 0\\nwhile [ -e /run/hold ]; do sleep 0.05; done\\n' >/root/hold
chmod +x /root/hold; touch /run/hold
sed -i 's/^rejoin_after.*/rejoin_after = "10s idle"/' %(config)s
systemctl restart omdiscd
systemd-run -q --unit=desk pamtester -I tty=:0 mig-desk %(user)s open_session close_session
"""


@pytest.mark.long
def test_the_idle_hint_of_a_display_lets_the_node_back(machine: Booted) -> None:
    def becomes(state: str) -> None:
        machine.lab.wait_for(lambda: machine.pool()["state"] == state, 40, state)

    def hint(idle: str) -> None:
        session = "/org/freedesktop/login1/session/" + machine.sh("loginctl --no-legend list-sessions | awk '{print $1}'")
        machine.run("busctl", "call", "org.freedesktop.login1", session, "org.freedesktop.login1.Session", "SetIdleHint", "b", idle)

    machine.sh(DESK % {"logins": LOGINS, "config": CONFIG, "user": USER})
    becomes("out")
    hint("true")
    becomes("in-pool")
    assert machine.pool()["sessions"][0]["tty"] == ":0", "it is still open"
    hint("false")
    becomes("out")
    machine.sh("rm /run/hold")
    becomes("in-pool")
    assert not machine.pool()["sessions"]


def test_a_changed_address_is_no_end_for_systemd(machine: Booted) -> None:
    main = machine.show("MainPID")
    machine.sh(f"sed -i /^addr/d {CONFIG}; systemctl restart omdiscd")
    main = machine.show("MainPID")
    machine.sh("""set -e
old=$(ip -4 -o addr show eth0 | sed -E 's/.* inet ([0-9.]+).*/\\1/'); new=${old%.*}.77
ip addr flush dev eth0; ip addr add $new/24 brd + dev eth0; ip route add 224.0.0.0/4 dev eth0""")
    machine.lab.wait_for(lambda: "this node starts anew" in machine.journal(), 40, "it starts anew")
    machine.lab.wait_for(lambda: "77 port" in machine.journal(), 20, "it is there with its new address")
    machine.wait_for("SubState", "running")
    assert (machine.show("MainPID"), machine.show("Result")) == (main, "success")
