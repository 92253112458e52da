"""sshd and pamtester for the tests of logins: unpacked beside the virtual environment, not installed.

Installing openssh-server would start an sshd on the machine.  The tests copy the tree into a lab node's own disk.
"""

from __future__ import annotations

import shutil

from omtools.setup.base import VENV, SetupError, run, say, stamp, stamped

ROOT = VENV / "logins"
"""What is missing on the machine, as a tree below /; empty where it has all of it."""
PACKAGES = ("openssh-server", "openssh-client", "pamtester")
_PROGRAMS = ("sshd", "ssh", "ssh-keygen", "pamtester")
_ADMIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def fetch() -> None:
    """Download and unpack what is missing, with the libraries that are missing too."""
    if stamped("logins", " ".join(PACKAGES)) and ROOT.is_dir():
        return
    new, archives = ROOT.with_name("logins.new"), ROOT.with_name("logins.debs")
    for d in (new, archives):
        shutil.rmtree(d, ignore_errors=True)
    new.mkdir(parents=True)
    if any(shutil.which(p, path=_ADMIN_PATH) is None for p in _PROGRAMS):
        if shutil.which("apt-get") is None:
            raise SetupError(f"these are missing for the tests of logins: {' '.join(PACKAGES)}", "install them by hand, then run it again")
        say(f"fetching {' '.join(PACKAGES)} for the tests of logins (they are unpacked, not installed)")
        (archives / "partial").mkdir(parents=True)
        options = ("-o", f"Dir::Cache::archives={archives}", "-o", "APT::Sandbox::User=root", "--download-only", "--no-install-recommends")
        command = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300", *options, "install", *PACKAGES]
        try:
            run(command)
        except SetupError:  # lists that are missing or out of date
            run(["apt-get", "-q", "update"], hint="is the network there, and do the machine's package sources answer?")
            run(command, hint="see what apt says")
        for deb in sorted(archives.glob("*.deb")):
            run(["dpkg-deb", "-x", deb, new])
        shutil.rmtree(archives)
    shutil.rmtree(ROOT, ignore_errors=True)
    new.rename(ROOT)
    stamp("logins", " ".join(PACKAGES))
