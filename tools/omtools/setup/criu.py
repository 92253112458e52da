"""CRIU, self-contained under ``libexec/criu``: the system's where it suits the kernel, else a newer one from the machine's own mirror.

What decides is a trial: `criu check`, then a real process with a listening socket is dumped and restored.  (CRIU before 4.1 fails on
kernels from 6.13 on, before 4.2 on inet sockets of kernels from 6.16 on.)  Nothing is installed into the system: packages of a newer
suite are resolved in a private apt state and unpacked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from omtools.setup import debian, trial
from omtools.setup.base import LIBEXEC, VENV, SetupError, need_root, run, say, stamp, stamped
from omtools.setup.helpers import SHIM

HOME = LIBEXEC / "criu"
_LOADER = "ld-linux-x86-64.so.2"
# (kernel, CRIU): on kernels from here on, an older CRIU is known to fail; spares a download, the trial decides
_KNOWN_MINIMUM = (((6, 16), (4, 2)), ((6, 13), (4, 1)))


def install() -> None:
    """Put a CRIU that works on this kernel in place; raises :class:`SetupError` that lists what was tried."""
    key = f"{os.uname().release} {os.stat(HOME / 'criu').st_mtime_ns}" if (HOME / "criu").exists() else ""
    if key and stamped("criu", key):
        _place_shim()
        return
    need_root("to try out CRIU")
    if key:
        # another kernel than last time, or a CRIU that was put there by hand
        problem = trial.problem(HOME)
        if not problem:
            _place_shim()
            stamp("criu", key)
            return
        say(f"the present CRIU does not suit: {problem}")
    tried: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mig-criu-", dir="/var/tmp") as scratch:
        for name, candidate in _candidates(Path(scratch), tried):
            problem = _pycriu_problem(candidate) or trial.problem(candidate)
            if not problem:
                _put(candidate)
                say(f"CRIU: {name}")
                break
            tried.append(f"{name}: {problem}")
        else:
            said = "".join(f"\n    {t}" for t in tried)
            raise SetupError(f"no CRIU was found that works on this kernel:{said}", "is the network there? else see what each of them said")
    _place_shim()
    stamp("criu", f"{os.uname().release} {os.stat(HOME / 'criu').st_mtime_ns}")


def _candidates(scratch: Path, tried: list[str]) -> Iterator[tuple[str, Path]]:
    """Self-contained directories to try, best first; what cannot be had goes to ``tried``."""
    system = shutil.which("criu", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
    if system:
        python = next((Path(p) for p in (*sys.path, "/usr/lib/python3/dist-packages") if (Path(p) / "pycriu").is_dir()), None)
        if python:
            _collect(scratch / "system", Path(system), python / "pycriu", [], Path("/lib64") / _LOADER)
            yield "the system's", scratch / "system"
        else:
            tried.append("the system's: without pycriu (package python3-pycriu)")
    try:
        source, release = debian.main_source(), debian.os_release()
    except SetupError as e:
        tried.append(str(e))
        return
    newer = ["devel"] if release.get("ID") == "ubuntu" else ["stable", "testing", "sid"]
    seen: set[str] = set()
    for suite in dict.fromkeys(filter(None, [release.get("VERSION_CODENAME"), *newer])):
        try:
            private = PrivateApt(scratch / f"apt-{suite}", source, suite)
            version = private.candidate("criu")
            if not version:
                tried.append(f"{suite}: carries no criu")
            if not version or version in seen:
                continue
            seen.add(version)
            if _too_old(version):
                tried.append(f"{version} of {suite}: known to be too old for kernel {os.uname().release}")
                continue
            say(f"fetching CRIU {version} of {suite}")
            yield f"{version} of {suite}", private.unpack(scratch / f"criu-{suite}")
        except SetupError as e:
            lines = str(e).splitlines()
            tried.append(f"{suite}: {next((line.strip() for line in lines if line.lstrip().startswith('E: ')), lines[-1].strip())}")


def _too_old(version: str) -> bool:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(n) for n in re.findall(r"\d+", text)[:2])

    return any(numbers(os.uname().release) >= kernel and numbers(version) < least for kernel, least in _KNOWN_MINIMUM)


class PrivateApt:
    """An apt of our own: the machine's mirror and keys, another suite, no installed packages; it only downloads."""

    def __init__(self, where: Path, source: debian.Source, suite: str) -> None:
        self.where = where
        for d in ("lists/partial", "cache/archives/partial", "parts"):
            (where / d).mkdir(parents=True)
        (where / "status").touch()
        signed = f"Signed-By: {source.signed_by}\n" if source.signed_by else ""
        components = "main universe" if debian.os_release().get("ID") == "ubuntu" else "main"
        (where / "parts" / "newer.sources").write_text(
            f"Types: deb\nURIs: {source.uri}\nSuites: {suite}\nComponents: {components}\nArchitectures: amd64\n{signed}"
        )
        settings = {
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": where / "parts",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::State::lists": where / "lists",
            "Dir::State::status": where / "status",
            "Dir::Cache": where / "cache",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",  # the directory is root's
            "APT::Update::Error-Mode": "any",  # else a mirror that does not answer passes for an empty one
            "Acquire::Languages": "none",
        }
        (where / "apt.conf").write_text("".join(f'{k} "{v}";\n' for k, v in settings.items()))
        self._apt("apt-get", "-qq", "update")

    def _apt(self, program: str, *args: str, cwd: Path | None = None) -> str:
        return run([program, "-c", self.where / "apt.conf", *args], cwd=cwd)

    def candidate(self, package: str) -> str:
        """The version that the suite carries, or ""."""
        m = re.search(r"Candidate: (\S+)", self._apt("apt-cache", "policy", package))
        return m.group(1) if m and m.group(1) != "(none)" else ""

    def unpack(self, target: Path) -> Path:
        """Download CRIU with all that it links, unpack it, and collect the self-contained directory."""
        self._apt("apt-get", "-qq", "-y", "--download-only", "install", "criu")
        archives = self.where / "cache" / "archives"
        self._apt("apt-get", "-qq", "download", "python3-pycriu", cwd=archives)
        root = self.where / "root"
        for deb in sorted(archives.glob("*.deb")):
            run(["dpkg-deb", "-x", deb, root])
        try:
            criu = next(root.glob("usr/sbin/criu"))
            pycriu = next(root.glob("usr/lib/python3*/**/pycriu"))
            loader = next(p for p in root.rglob(_LOADER) if not p.is_symlink())
        except StopIteration:
            raise SetupError("the packages lack criu, pycriu or the loader") from None
        libraries = sorted({p.parent for p in root.rglob("*.so.*") if p.parent.name.endswith("-linux-gnu")})
        _collect(target, criu, pycriu, libraries, loader)
        return target


def _collect(target: Path, criu: Path, pycriu: Path, libraries: list[Path], loader: Path) -> None:
    """Copy program, loader, every library that the loader finds for it, and pycriu."""
    (target / "lib").mkdir(parents=True)
    path = ["--library-path", ":".join(map(str, libraries))] if libraries else []
    for found in re.findall(r"=> (/\S+)", run([loader, *path, "--list", criu])):
        shutil.copy(found, target / "lib" / Path(found).name)
    (target / "lib" / _LOADER).unlink(missing_ok=True)
    shutil.copy(loader, target / "ld.so")
    shutil.copy(criu, target / "criu")
    shutil.copytree(pycriu, target / "python" / "pycriu", ignore=shutil.ignore_patterns("__pycache__"))


def _pycriu_problem(candidate: Path) -> str:
    """Why this pycriu does not go with the environment's protobuf; "" when it does."""
    script = "import pycriu.rpc_pb2 as rpc, pycriu.images; rpc.criu_req(type=rpc.VERSION).SerializeToString()"
    done = subprocess.run([VENV / "bin" / "python", "-c", script], cwd=candidate / "python", capture_output=True, text=True)
    return f"its pycriu: {(done.stderr.strip().splitlines() or ['?'])[-1]}" if done.returncode else ""


def _put(candidate: Path) -> None:
    """Move a tried candidate to its place."""
    new, old = HOME.with_name("criu.new"), HOME.with_name("criu.old")
    for d in (new, old):
        shutil.rmtree(d, ignore_errors=True)
    HOME.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(candidate, new)
    if HOME.exists():
        HOME.rename(old)
    new.rename(HOME)
    shutil.rmtree(old, ignore_errors=True)


def _place_shim() -> None:
    """CRIU's directory is all that a cell sees, so the shim lies in it too."""
    target = HOME / "shim.so"
    if not target.exists() or target.read_bytes() != SHIM.read_bytes():
        new = target.with_name("shim.so.new")
        shutil.copy(SHIM, new)
        os.replace(new, target)
