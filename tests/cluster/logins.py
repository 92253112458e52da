"""A lab node on which people log in: real PAM, sshd, login, su and pamtester, in the node's own disk.  The machine's PAM is not touched."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

LOGINS = Path(sys.prefix) / "logins"
MOSPAM = Path(sys.prefix) / "libexec" / "mig" / "mospam"
PORT = 2222
SERVICE = "mig-test"
"""A PAM service of the tests' own: anybody may, and the session stays open for as long as the file /run/hold is there."""

_SSHD = """Port 2222
ListenAddress 127.0.0.1
HostKey /run/sshd/key
PasswordAuthentication no
UsePAM yes
StrictModes no
AuthorizedKeysFile /run/sshd/authorized
PidFile none
"""
_HOLD = '#!/bin/sh\n[ "$PAM_TYPE" = open_session ] || exit 0\nwhile [ -e /run/hold ]; do sleep 0.05; done\n'


def prepare(lab: Any, node: str) -> None:
    """Give the node users ``ann`` and ``bob``, sshd, pamtester, and our line in its PAM."""
    script = f"""set -e
for d in usr etc; do [ ! -d {LOGINS}/$d ] || cp -a {LOGINS}/$d/. /$d/; done
ldconfig
id ann 2>/dev/null || useradd -m -s /bin/bash ann
id bob 2>/dev/null || useradd -m -s /bin/bash bob
getent passwd sshd >/dev/null || useradd -r -d /run/sshd -s /usr/sbin/nologin sshd
printf 'ann:secret\\nbob:secret\\n' | chpasswd
mosctl pam install sshd login su-l
mkdir -p -m 755 /run/sshd
ssh-keygen -q -t ed25519 -N '' -f /run/sshd/key
ssh-keygen -q -t ed25519 -N '' -f /run/sshd/user
cp /run/sshd/user.pub /run/sshd/authorized
chmod 644 /run/sshd/authorized
"""
    lab.run(node, script, check=True)
    lab.path(node, "/run/sshd/config").write_text(_SSHD)
    lab.path(node, "/run/sshd/hold").write_text(_HOLD)
    lab.path(node, "/run/sshd/hold").chmod(0o755)
    lab.path(node, f"/etc/pam.d/{SERVICE}").write_text(
        "auth required pam_permit.so\naccount required pam_permit.so\n"
        f"session optional pam_exec.so quiet seteuid {MOSPAM}\nsession optional pam_exec.so seteuid /run/sshd/hold\n"
    )


def start_sshd(lab: Any, node: str) -> int:
    """sshd of the node's own, on its loopback; its pid."""
    pid = int(lab.spawn(node, ["/usr/sbin/sshd", "-D", "-e", "-f", "/run/sshd/config"]))
    lab.wait_for(lambda: lab.run(node, f"exec 3<>/dev/tcp/127.0.0.1/{PORT}").returncode == 0, what="sshd listens")
    return pid


def ssh(user: str, command: str) -> list[str]:
    """The command line of an ssh login over the node's loopback."""
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes"]
    return ["ssh", "-F", "none", *options, "-i", "/run/sshd/user", "-p", str(PORT), f"{user}@127.0.0.1", command]


def pool(lab: Any, node: str) -> dict[str, Any]:
    """``mosctl pool --json``."""
    return dict(json.loads(lab.run(node, ["mosctl", "pool", "--json"], check=True).stdout))


def seen_from(lab: Any, other: str, node: str) -> dict[str, Any]:
    """``node`` as ``other``'s gossip shows it."""
    rows = json.loads(lab.run(other, ["mosctl", "status", "--json"], check=True).stdout)
    return next(dict(r) for r in rows if r["name"] == node)


def elapsed(lab: Any, condition: Any, timeout: float, what: str) -> float:
    """Seconds until it is true."""
    began = time.monotonic()
    lab.wait_for(condition, timeout, what)
    return time.monotonic() - began
