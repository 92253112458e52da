"""ptrace by SEIZE: catch a thread without a signal, have it make system calls, and put it back exactly as it was.

A call is injected by pointing the thread at a ``syscall`` instruction of its own vdso, so no byte of its memory changes.  x86-64 only.
All requests for a thread must come from the thread that seized it (kernel rule); when that one ends, the kernel lets the tracee go on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from collections.abc import Sequence

from mig.kernel import procfs
from mig.kernel.libc import _libc as libc
from mig.kernel.libc import oserror

PTRACE_CONT = 7
PTRACE_GETREGS = 12
PTRACE_SETREGS = 13
PTRACE_DETACH = 17
PTRACE_SYSCALL = 24
PTRACE_SETOPTIONS = 0x4200
PTRACE_GETEVENTMSG = 0x4201
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_LISTEN = 0x4208
PTRACE_GETSIGMASK = 0x420A
PTRACE_SETSIGMASK = 0x420B

PTRACE_O_TRACESYSGOOD = 1
PTRACE_O_TRACECLONE = 1 << 3
PTRACE_O_TRACEEXEC = 1 << 4
PTRACE_O_EXITKILL = 1 << 20
PTRACE_O_SUSPEND_SECCOMP = 1 << 21

PTRACE_EVENT_CLONE = 3
PTRACE_EVENT_EXEC = 4
PTRACE_EVENT_STOP = 128

WALL = 0x40000000  # __WALL: wait4 also for threads and for children without an exit signal
U64 = (1 << 64) - 1
ALL_SIGNALS = U64
NO_SYSCALL = U64  # orig_rax -1: the kernel does no restart fix-up for these registers
SYSCALL_STOP = signal.SIGTRAP | 0x80
USER_CS_64 = 0x33

NR = {
    "mmap": 9, "munmap": 11, "rt_sigprocmask": 14, "pause": 34, "getpid": 39, "recvmsg": 47, "socketpair": 53, "clone": 56, "wait4": 61,
    "fcntl": 72, "setsid": 112, "prctl": 157, "set_tid_address": 218, "set_robust_list": 273, "get_robust_list": 274, "execveat": 322,
    "close": 3, "close_range": 436, "userfaultfd": 323,
}  # fmt: skip
ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")

REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs",
    "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip

libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


class user_regs_struct(ctypes.Structure):
    """The general registers, in the kernel's order."""

    _fields_ = [(name, ctypes.c_ulong) for name in REGISTERS]
    rax: int
    orig_rax: int
    rip: int
    rsp: int
    cs: int
    rdi: int
    rsi: int
    rdx: int
    r10: int

    def copy(self) -> user_regs_struct:
        """Another set of the same values."""
        return user_regs_struct.from_buffer_copy(self)


class TraceeDied(ChildProcessError):
    """The thread ended in the tracer's hands; ``status`` is its wait status."""

    def __init__(self, tid: int, status: int) -> None:
        super().__init__(errno.ESRCH, f"thread {tid} ended while it was traced (wait status {status:#x})")
        self.status = status


class InjectedError(OSError):
    """An injected call returned an error; the thread is as usable as before."""


def ptrace(request: int, tid: int, addr: int = 0, data: int = 0) -> None:
    """ptrace(2) for requests whose result is only success or failure."""
    if libc.ptrace(request, tid, addr, data) == -1:
        oserror(f"ptrace({request:#x}, {tid})")


class Tracee:
    """One seized thread.  After :meth:`stop` it stands in a PTRACE_EVENT_STOP: inside the kernel, before any return to user mode."""

    OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC

    def __init__(self, tid: int, options: int = OPTIONS, *, seize: bool = True, suspend_seccomp: bool = True) -> None:
        """Seize ``tid``: no signal, no stop, nothing for its parent to see.

        ``suspend_seccomp``: its filter is off for as long as we trace it, where the kernel lets us (CAP_SYS_ADMIN, and no filter on
        ourselves), as it must not judge our calls.  ``seize=False``: it is ours already, by PTRACE_O_TRACECLONE.
        """
        self.tid = tid
        self.saved = user_regs_struct()
        self.mask = 0
        self.insn = 0
        self.options = options | (PTRACE_O_SUSPEND_SECCOMP if suspend_seccomp else 0)
        self._work = user_regs_struct()
        if seize:
            try:
                ptrace(PTRACE_SEIZE, tid, 0, self.options)
            except OSError as e:
                # EINVAL: kernel without CONFIG_CHECKPOINT_RESTORE; EPERM: also when the option alone is refused
                if e.errno not in (errno.EINVAL, errno.EPERM) or not suspend_seccomp:
                    raise
                self.options = options
                ptrace(PTRACE_SEIZE, tid, 0, self.options)

    # -- stops ------------------------------------------------------------------------------------------------------------------

    def wait(self) -> int:
        """The status of the next stop, blocking; raises :class:`TraceeDied`."""
        _, status = os.waitpid(self.tid, WALL)
        if not os.WIFSTOPPED(status):
            raise TraceeDied(self.tid, status)
        return status

    def wait_stop(self) -> None:
        """Let it run until it stands in a PTRACE_EVENT_STOP; signals that arrive before are handed on.

        Any other stop takes the place of one that was asked for (``ptrace_stop()`` in the kernel), so that is asked for again.
        """
        while (status := self.wait()) >> 16 != PTRACE_EVENT_STOP:
            ptrace(PTRACE_INTERRUPT, self.tid)
            ptrace(PTRACE_CONT, self.tid, 0, passed_on(status))

    def interrupt(self) -> None:
        """Have it stop as soon as it can; a frozen one does so without being thawed (the trap comes before the freezer's)."""
        if procfs.state(self.tid) not in ("T", "t"):  # a group-stopped one enters its trap by the seizing itself
            ptrace(PTRACE_INTERRUPT, self.tid)

    def stop(self) -> None:
        """Bring it to a PTRACE_EVENT_STOP, from running, frozen, or stopped by a signal."""
        self.interrupt()
        self.wait_stop()

    def cont(self, sig: int = 0) -> None:
        """PTRACE_CONT."""
        ptrace(PTRACE_CONT, self.tid, 0, sig)

    def detach(self, sig: int = 0) -> None:
        """Let go of it: it goes on, into the freezer or its group stop where there is one."""
        ptrace(PTRACE_DETACH, self.tid, 0, sig)

    def add_options(self, options: int) -> None:
        """PTRACE_SETOPTIONS, keeping those that it has; the thread must be in a stop."""
        self.options |= options
        ptrace(PTRACE_SETOPTIONS, self.tid, 0, self.options)

    # -- registers --------------------------------------------------------------------------------------------------------------

    def getregs(self) -> user_regs_struct:
        """PTRACE_GETREGS."""
        r = user_regs_struct()
        ptrace(PTRACE_GETREGS, self.tid, 0, ctypes.addressof(r))
        return r

    def setregs(self, regs: user_regs_struct) -> None:
        """PTRACE_SETREGS."""
        ptrace(PTRACE_SETREGS, self.tid, 0, ctypes.addressof(regs))

    def getsigmask(self) -> int:
        """The blocked signals, bit ``sig - 1``."""
        m = ctypes.c_ulong()
        ptrace(PTRACE_GETSIGMASK, self.tid, 8, ctypes.addressof(m))
        return m.value

    def setsigmask(self, mask: int) -> None:
        """PTRACE_SETSIGMASK."""
        ptrace(PTRACE_SETSIGMASK, self.tid, 8, ctypes.addressof(ctypes.c_ulong(mask)))

    def geteventmsg(self) -> int:
        """PTRACE_GETEVENTMSG: e.g. the new thread's id at PTRACE_EVENT_CLONE."""
        m = ctypes.c_ulong()
        ptrace(PTRACE_GETEVENTMSG, self.tid, 0, ctypes.addressof(m))
        return m.value

    # -- injection --------------------------------------------------------------------------------------------------------------

    def begin(self, insn: int = 0, *, block: bool = True) -> None:
        """Remember registers and signal mask, and block all signals: an unblocked pending one would turn up between the injections.

        ``block=False`` leaves that to :meth:`park`.
        ``insn``: address of a ``syscall`` instruction where the caller knows one.  Raises ``OSError`` (``ENOEXEC``) for 32-bit code.
        """
        self.saved, self.mask = self.getregs(), self.getsigmask()
        if self.saved.cs != USER_CS_64:
            raise OSError(errno.ENOEXEC, f"thread {self.tid} runs 32-bit code")
        self.insn = insn or find_syscall(self.tid)
        if block:
            self.setsigmask(ALL_SIGNALS)

    def park(self) -> None:
        """Point it at ``pause`` with all signals blocked: should the tracer die now, the thread sleeps for ever instead of running on."""
        self.setsigmask(ALL_SIGNALS)
        r = self.saved.copy()
        r.rax, r.orig_rax, r.rip = NR["pause"], NO_SYSCALL, self.insn
        self.setregs(r)

    def start_call(self, name: str, *args: int) -> None:
        """Set the registers for a call; the next PTRACE_SYSCALL enters it."""
        r = self._work
        ctypes.pointer(r)[0] = self.saved
        # orig_rax says "not in a system call": else the kernel would fix up rax and rip for a restart when the thread leaves this stop
        r.rax, r.orig_rax, r.rip = NR[name], NO_SYSCALL, self.insn
        for reg, value in zip(ARGUMENTS, args, strict=False):
            setattr(r, reg, value & U64)
        self.setregs(r)

    def syscall(self, name: str, *args: int, event: int = 0, reap: Sequence[int] = ()) -> int:
        """Have the thread make one call; returns its result, or at ``event`` (which then must happen) that event's message.

        At PTRACE_EVENT_EXEC it returns at once, the old program being gone.  ``reap``: sibling threads that we trace: exec kills them
        and then waits until their tracer has reaped each.  Raises :class:`InjectedError` with the call's errno, :class:`TraceeDied`.
        """
        self.start_call(name, *args)
        stops = message = sig = 0
        siblings = list(reap)
        while stops < 2:
            ptrace(PTRACE_SYSCALL, self.tid, 0, sig)
            status = self._wait_reaping(siblings) if siblings else self.wait()
            sig = 0
            if status >> 8 == SYSCALL_STOP:
                stops += 1
            elif event and status >> 16 == event:
                message = self.geteventmsg()
                if event == PTRACE_EVENT_EXEC:
                    return message
            else:
                # only SIGSTOP gets past the mask: let it count, the group stop then holds after the detach; an EVENT_STOP passes nothing
                sig = passed_on(status)
        result = ctypes.c_long(self.getregs().rax).value
        if -4096 < result < 0:
            raise InjectedError(-result, f"{name} in process {self.tid}: {os.strerror(-result)}")
        return message if event else result

    def _wait_reaping(self, siblings: list[int]) -> int:
        while True:
            for tid in siblings[:]:
                if reaped(tid):
                    siblings.remove(tid)
            pid, status = os.waitpid(self.tid, WALL | os.WNOHANG)
            if pid:
                if not os.WIFSTOPPED(status):
                    raise TraceeDied(self.tid, status)
                return status
            time.sleep(0.00005)

    def undo(self) -> None:
        """Put back registers and mask, so that an interrupted call restarts as if nothing had been."""
        self.leave_call()
        self.restore()

    def leave_call(self) -> None:
        """From the end of a call to where :meth:`restore` may follow.

        At a syscall-exit stop the kernel would not do the restart fix-up any more (the thread would see -ERESTARTSYS).  So it is led to
        a fresh EVENT_STOP, which lies in the signal path before that fix-up, and only there gets its registers back.
        """
        ptrace(PTRACE_INTERRUPT, self.tid)
        r = self.saved.copy()
        r.rax, r.orig_rax = 0, NO_SYSCALL
        self.setregs(r)
        self.cont()
        self.wait_stop()

    def restore(self) -> None:
        """Put back registers and mask of a thread that made no call since :meth:`begin`."""
        self.setregs(self.saved)
        self.setsigmask(self.mask)


def reaped(tid: int) -> bool:
    """Reap a traced thread if it has ended; True when it is gone."""
    try:
        pid, status = os.waitpid(tid, WALL | os.WNOHANG)
    except ChildProcessError:
        return True
    return pid != 0 and not os.WIFSTOPPED(status)


def passed_on(status: int) -> int:
    """The signal of a signal-delivery stop; 0 at every other stop."""
    sig = os.WSTOPSIG(status)
    return sig if status >> 16 == 0 and sig != SYSCALL_STOP else 0


def find_syscall(pid: int) -> int:
    """The address of a ``syscall`` instruction in the vdso, or else in any other code of its own; raises ``OSError`` (``ENOEXEC``)."""
    code = [m for m in procfs.maps(pid) if m.perms[2:4] == "xp" and m.path != "[vsyscall]"]
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for m in sorted(code, key=lambda m: m.path != "[vdso]"):
            at = os.pread(fd, min(m.size, 4 << 20), m.start).find(b"\x0f\x05")
            if at >= 0:
                return m.start + at
    finally:
        os.close(fd)
    raise OSError(errno.ENOEXEC, f"process {pid} maps no syscall instruction")
