"""omdiscd as a service: what it tells systemd, the unit, and why the unit is as it is."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time

log = logging.getLogger(__name__)

UNIT = """\
# Made by: omdiscd --print-unit > /etc/systemd/system/omdiscd.service
[Unit]
Description=openMosix node daemon
Documentation=man:omdiscd(8) man:omdiscd.toml(5)
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
Type=notify
ExecStart={program} -n
# waits until the new values are in force, and fails, saying why, when the file is not valid
ExecReload={directory}/mosctl reload
Restart=on-failure
RestartSec=2
# a configuration that is not valid does not become valid by trying again
RestartPreventExitStatus=2
# A daemon that hangs is started anew; guests do not notice.
WatchdogSec=30

# Guests, home agents and keepers leave this unit's cgroup when they start (/sys/fs/cgroup/mig-*), so neither a stop nor memory limits nor
# an upgrade of the daemon reaches them.  KillMode=process spares one that has only just been started, too.
KillMode=process
OOMPolicy=continue
TasksMax=infinity
LimitNOFILE=65536

# Hardening.  Whatever sits in the daemon's own cgroup may open no device but the harmless ones.  More would reach the guests: sandboxes
# made of mounts (ProtectSystem=, PrivateTmp=, ...) would show helpers another file tree than home's, and what is made of seccomp or
# privileges (NoNewPrivileges=, SystemCallFilter=, CapabilityBoundingSet=, ...) is inherited by processes that come home, for good.
DevicePolicy=closed
DeviceAllow=/dev/fuse rw
DeviceAllow=/dev/ptmx rw
DeviceAllow=char-pts rw
UMask=0022
KeyringMode=private

[Install]
WantedBy=multi-user.target
"""


def unit() -> str:
    """The unit, for the omdiscd that is running now."""
    program = os.path.abspath(sys.argv[0])
    return UNIT.format(program=program, directory=os.path.dirname(program))


def notify(text: str) -> None:
    """sd_notify: tell systemd our state, when it wants to know."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
            try:
                s.sendto(text.encode(), "\0" + path[1:] if path.startswith("@") else path)
            except OSError as e:
                log.warning("cannot tell systemd %s: %s", text, e.strerror)


def reloading() -> None:
    """Tell that a reload begins, or a start anew in the same process; READY=1 tells its end."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval() -> float:
    """Seconds between two signs of life that systemd wants: half of what it waits; 0 when it wants none."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(usec) / 2e6


async def watchdog() -> None:
    """Signs of life, from the loop that everything runs in, until cancelled."""
    interval = watchdog_interval()
    while True:
        if not interval:
            await asyncio.sleep(3600)
            continue
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)
