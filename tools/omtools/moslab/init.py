"""pid 1 of a lab node: reaps orphans, and starts what ``moslab`` asks for on a unix socket.

Runs as a script with ``python -I -S`` inside the node's namespaces: standard library only, no site packages, so that it starts in
20 ms and nothing of the machine is needed but the interpreter.  Every connection is one request, served by a forked child (the
*session*), so that pid 1 itself never blocks.  What ``run`` starts has the session as its parent; what ``spawn`` and ``daemon`` start
has pid 1: both live inside the node, because a process whose parent is outside its pid namespace (ppid 0) is like none that users have.

Frames in both directions: ``u32 length`` (little endian) + JSON; descriptors travel with the first bytes of a frame.  After the reply
``{"pid": N}`` to a ``run`` the client sends single bytes: a signal number, plus 128 for the whole process group.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import json
import os
import pwd
import select
import signal
import socket
import stat
import struct
import sys
import termios
import time
from collections.abc import Callable
from typing import Any, NoReturn

STATE = "/run/moslab"
"""The node's own directory: ``init.log``, ``omdiscd.log``, ``omdiscd.pid``, ``out/PID``."""
CPU, CPU_WORK = "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu/work"
"""The v1 cpu group of this node, where there is one, and that of all but omdiscd (see limits.py)."""
TO_GROUP = 128
DAEMON_GRACE_S = 5.0
MAX_FRAME = 16 << 20
TTY_GROUP = 5
PLAIN_DEVICES = {(1, 3): "null", (1, 5): "zero", (1, 7): "full", (1, 8): "random", (1, 9): "urandom"}
Request = dict[str, Any]


def send(conn: socket.socket, fds: list[int] | None = None, **message: Any) -> None:
    """One frame, with descriptors if given."""
    body = json.dumps(message).encode()
    frame = struct.pack("<I", len(body)) + body
    sent = socket.send_fds(conn, [frame], fds) if fds else 0
    if sent < len(frame):  # sending nothing is EPIPE all the same when the peer has answered and is gone already
        conn.sendall(frame[sent:])


def receive(conn: socket.socket) -> tuple[Request, list[int]]:
    """One frame and the descriptors that came with it; raises ``EOFError`` when the peer closes before."""
    data, fds, _, _ = socket.recv_fds(conn, 4, 3)
    while len(data) < 4:
        data += _more(conn, 4 - len(data))
    (size,) = struct.unpack("<I", data)
    if size > MAX_FRAME:
        raise EOFError(f"frame of {size} bytes announced")
    body = bytearray()
    while len(body) < size:
        body += _more(conn, size - len(body))
    return json.loads(body), fds


def _more(conn: socket.socket, size: int) -> bytes:
    data = conn.recv(min(size, 1 << 16))
    if not data:
        raise EOFError("connection closed")
    return data


class Refused(Exception):
    """The request cannot be served; ``code`` is the exit status that the caller's shell shall see."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# -- who and where ----------------------------------------------------------------------------------------------------------------


class Identity:
    """uid, gid, groups and the environment of a user of this node, by number or name; a number need not be in /etc/passwd."""

    def __init__(self, user: str) -> None:
        try:
            entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        except KeyError:
            if not user.isdigit():
                raise Refused(f"no user {user} on this node", 2) from None
            self.uid = self.gid = int(user)
            self.groups = [self.gid]
            self.env = {"HOME": "/", "USER": user, "LOGNAME": user, "SHELL": "/bin/sh"}
        else:
            self.uid, self.gid = entry.pw_uid, entry.pw_gid
            self.groups = [g.gr_gid for g in grp.getgrall() if entry.pw_name in g.gr_mem] + [entry.pw_gid]
            self.env = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name, "SHELL": entry.pw_shell or "/bin/sh"}

    def assume(self) -> None:
        """Become this user for good."""
        os.setgroups(self.groups)
        os.setgid(self.gid)
        os.setuid(self.uid)


def enter_directory(*choices: str) -> str:
    """chdir to the first directory that this user may enter; returns it."""
    for path in choices:
        try:
            os.chdir(path)
        except OSError:
            continue  # absent in this node, or not for this user: the next one
        return path
    os.chdir("/")
    return "/"


# -- starting a program -----------------------------------------------------------------------------------------------------------


def start(request: Request, stdio: Callable[[Identity], list[int]], *, controlling_tty: bool = False, orphan: bool = False) -> int:
    """Fork and exec ``request["argv"]`` in a session of its own; returns its pid once the exec has succeeded.

    ``stdio`` is called in the child, still as root, for the three standard descriptors.  With ``orphan`` the program's parent is pid 1
    from its first instruction on.  Raises :class:`Refused` with 127 (not found) or 126 (not executable), as a shell does.
    """
    identity = Identity(request.get("user", "0"))
    report_r, report_w = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if orphan:
                if os.fork():
                    os._exit(0)
                while os.getppid() != 1:
                    time.sleep(0.0002)
            os.write(report_w, f"{os.getpid()}\n".encode())
            _become(request, identity, stdio(identity), report_w, controlling_tty)
        except BaseException as e:
            # the exec failed: by then the report pipe is descriptor 3 (failing earlier than that is a fault of ours, shown all the same)
            os.write(3, f"{getattr(e, 'errno', 0) or 0} {getattr(e, 'strerror', None) or e}".encode())
        finally:
            os._exit(127)
    os.close(report_w)
    with open(report_r, "rb") as f:
        pid, _, failure = f.read().decode().partition("\n")
    if orphan or failure:
        os.waitpid(child, 0)
    if failure:
        number, _, text = failure.partition(" ")
        raise Refused(f"{request['argv'][0]}: {text}", 127 if int(number) == errno.ENOENT else 126)
    return int(pid)


def _become(request: Request, identity: Identity, stdio: list[int], failure: int, controlling_tty: bool) -> NoReturn:
    """In the child: everything between fork and exec.  The failure pipe ends up as descriptor 3, closed by a successful exec."""
    os.setsid()
    keep = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (*stdio, failure)]
    for target, fd in enumerate(keep):
        os.dup2(fd, target, inheritable=target < 3)
    os.closerange(4, 1 << 20)
    if controlling_tty:
        tty = next(fd for fd in range(3) if os.isatty(fd))
        fcntl.ioctl(tty, termios.TIOCSCTTY, 0)
    # Python ignores SIGPIPE and SIGXFSZ, and whoever ran `up` may have ignored more (nohup, a shell's background job)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    identity.assume()
    os.umask(request.get("umask", 0o022))
    env = {**request["env"], **identity.env}
    env["PWD"] = enter_directory(*request.get("cwd", ()), identity.env["HOME"])
    os.execvpe(request["argv"][0], request["argv"], env)


def own_device(fd: int) -> int:
    """The node's own /dev/null and the like in place of the machine's: CRIU cannot dump a file of a mount that it does not see."""
    st = os.fstat(fd)
    name = PLAIN_DEVICES.get((os.major(st.st_rdev), os.minor(st.st_rdev))) if stat.S_ISCHR(st.st_mode) else None
    if name is None:
        return fd
    return os.open(f"/dev/{name}", fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)


# -- requests ---------------------------------------------------------------------------------------------------------------------


def run(conn: socket.socket, request: Request, fds: list[int]) -> None:
    """Start a command with the caller's descriptors (a terminal of this node in place of the caller's), pass signals, report its end."""
    on_tty = set(request["tty"])
    master = slave = -1
    if on_tty:
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, bytes(request["winsize"]))
        termios.tcsetattr(slave, termios.TCSANOW, [*request["termios"][:6], [bytes([c]) for c in request["termios"][6]]])

    def stdio(identity: Identity) -> list[int]:
        if on_tty:
            os.fchown(slave, identity.uid, TTY_GROUP)
        plain = iter(fds)
        return [slave if i in on_tty else own_device(next(plain)) for i in range(3)]

    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_r, False)
    os.set_blocking(wake_w, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_w)
    pid = start(request, stdio, controlling_tty=bool(on_tty))
    for fd in [*fds, *([slave] if on_tty else [])]:
        os.close(fd)
    send(conn, [master] if on_tty else None, pid=pid)
    if on_tty:
        os.close(master)
    while True:
        readable, _, _ = select.select([conn.fileno(), wake_r], [], [])
        if wake_r in readable:
            os.read(wake_r, 4096)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            send(conn, status=status)
            return
        if conn.fileno() in readable:
            try:
                signals = conn.recv(256)
            except ConnectionError:
                signals = b""
            if not signals:  # the caller is gone, as when a terminal's line drops
                _kill(pid, signal.SIGHUP, group=True)
                return
            for number in signals:
                _kill(pid, number % TO_GROUP, group=number >= TO_GROUP)


def _kill(pid: int, number: int, *, group: bool) -> None:
    try:
        if group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        pass  # its group is empty: it has just ended


def _output(path: str, identity: Identity) -> list[int]:
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.fchown(out, identity.uid, identity.gid)
    return [os.open("/dev/null", os.O_RDONLY), out, out]


def spawn(conn: socket.socket, request: Request) -> None:
    """Start a command that outlives the caller: own session, no input, output to ``out/PID``, parent pid 1."""
    pid = start(request, lambda identity: _output(f"{STATE}/out/{os.getpid()}", identity), orphan=True)
    send(conn, pid=pid)


def start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat, which together with the pid names a process; "" when there is none (or only a zombie)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            fields = f.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def daemon_pid() -> int:
    """The pid of the omdiscd that was started last, 0 when it does not run."""
    try:
        with open(f"{STATE}/omdiscd.pid", encoding="ascii") as f:
            pid, started = f.read().split()
    except FileNotFoundError:
        return 0
    return int(pid) if start_time(int(pid)) == started else 0


def daemon(conn: socket.socket, request: Request) -> None:
    """Start omdiscd; one that runs is ended first (SIGTERM, after a grace SIGKILL).  It is not restarted when it ends."""
    old = daemon_pid()
    if old:
        os.kill(old, signal.SIGTERM)
        deadline = time.monotonic() + DAEMON_GRACE_S
        while daemon_pid():
            if time.monotonic() > deadline:
                os.kill(old, signal.SIGKILL)
            time.sleep(0.01)
    limited = os.path.isdir(CPU_WORK)
    if limited:
        request["env"]["MIG_CPU_CGROUP"] = CPU_WORK

    def stdio(identity: Identity) -> list[int]:
        if limited:
            with open(f"{CPU}/cgroup.procs", "w", encoding="ascii") as f:
                f.write("0")  # itself: out of the quota
        return _output(f"{STATE}/omdiscd.log", identity)

    pid = start(request, stdio, orphan=True)
    with open(f"{STATE}/omdiscd.pid", "w", encoding="ascii") as f:
        f.write(f"{pid} {start_time(pid) or '-'}")
    send(conn, pid=pid)


def session(conn: socket.socket) -> None:
    """Serve the one request of a connection."""
    try:
        request, fds = receive(conn)
        op = request["op"]
        if op == "run":
            run(conn, request, fds)
        elif op == "spawn":
            spawn(conn, request)
        elif op == "daemon":
            daemon(conn, request)
        elif op == "info":
            send(conn, daemon=daemon_pid())
        else:
            raise Refused(f"unknown request {op}", 2)
    except Refused as e:
        send(conn, error=str(e), code=e.code)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the client went away: nobody to answer


# -- pid 1 ------------------------------------------------------------------------------------------------------------------------


def reap() -> None:
    """Collect every child that has ended."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return


def main(listener_fd: int) -> NoReturn:
    """Serve for ever; the node ends with this process."""
    with open("/proc/self/comm", "w", encoding="ascii") as f:
        f.write("moslab-init")
    os.makedirs(f"{STATE}/out", exist_ok=True)
    listener = socket.socket(fileno=listener_fd)
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_r, False)
    os.set_blocking(wake_w, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_w)
    while True:
        readable, _, _ = select.select([listener_fd, wake_r], [], [])
        if wake_r in readable:
            os.read(wake_r, 4096)
        reap()
        if listener_fd not in readable:
            continue
        conn, _ = listener.accept()
        if os.fork() == 0:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for fd in (listener.fileno(), wake_r, wake_w):
                    os.close(fd)
                with open("/proc/self/comm", "w", encoding="ascii") as f:
                    f.write("moslab-session")
                session(conn)
                status = 0
            except Exception:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        conn.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
