"""The kinds of obstacles to a move: the sentence that a user reads, the remedy, and the explanation in the manual.

``docs/cannot-move.md`` is made from this list (``python -m omtools.manual``); a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of obstacle: ``says`` is the sentence with places for names, ``remedy`` what to do about it, ``why`` for the manual."""

    says: str
    remedy: str
    why: str


KINDS: dict[str, Kind] = {
    # -- the process itself
    "init": Kind(
        "{who} is the init process of this system",
        "move one of its children instead",
        "Process 1 reaps all others; the machine cannot run without it.",
    ),
    "kernel-thread": Kind(
        "{who} is a kernel thread",
        "choose a user process",
        "A kernel thread has no memory of its own; it is part of this machine's kernel.",
    ),
    "zombie": Kind(
        "{who} has ended already and waits for its parent to collect its exit status",
        "nothing is left to move",
        "A zombie is an entry in the process table.",
    ),
    "dead-leader": Kind(
        "the main thread of {who} has ended while other threads run on",
        "it cannot be moved while it runs like this",
        "CRIU cannot dump a process whose first thread is gone.",
    ),
    "hidden": Kind(
        "{who} may not be looked into by omdiscd, because it has privileges that omdiscd does not have",
        "give omdiscd the same capabilities, or run the program with fewer",
        "The kernel lets a process be dumped only by one that has at least its capabilities (ptrace(2), access mode checking).",
    ),
    "traced": Kind(
        "{who} is being traced by {what}",
        "detach the debugger or strace first",
        "A process has one tracer at most, and ours must take that place for some milliseconds.",
    ),
    "ours": Kind(
        "{who} is a process of this system itself ({what})",
        "choose another process",
        "Daemons, home agents, keepers and CRIU workers belong to the node that they serve.",
    ),
    "asker": Kind(
        "{who} is the command that asks for the move, and would be moved itself",
        "ask from another shell",
        "A process moves with all its descendants, and no command can wait for its own move. What it has open is not told.",
    ),
    "deputy": Kind(
        "{who} is the deputy of a guest that runs on another node",
        "bring that guest home first (migrate {pid} home); if its agent does not answer, see mosps and /run/mig/log",
        "A deputy holds its guest's place at home. migrate with its pid moves the guest; as a part of its parent's tree it cannot move.",
    ),
    "32-bit": Kind(
        "{who} is a 32-bit program",
        "run a 64-bit build of it",
        "The deputy that takes its place is a 64-bit program, and system calls are injected in that mode only.",
    ),
    "vfork": Kind(
        "{who} shares its memory with {what}, as between vfork and exec",
        "try again in a moment",
        "Two processes with one address space cannot be dumped apart.",
    ),
    "namespace": Kind(
        "{who} lives in another {what} namespace than omdiscd",
        "run omdiscd inside its container too, or start it outside",
        "Home is the system that omdiscd sees; a container's files and names are another system.",
    ),
    "session-leader": Kind(
        "{who} is the leader of the session of its terminal, as a login shell is",
        "move the jobs that it starts; start programs without a shell of their own through mosrun",
        "If the leader of a session leaves its terminal, the kernel hangs the terminal up for all its jobs.",
    ),
    "foreign-session": Kind(
        "{who} belongs to session {what}, whose leader is neither in its tree nor the session of its parent process",
        "it cannot be moved together with its parent; move it alone",
        "A moved tree can have one session that began outside of it.",
    ),
    "outside-session": Kind(
        "{who} belongs to a session whose leader is outside of this pid namespace",
        "start it with setsid, or through a shell that a terminal was opened for",
        "A container's first command may run in a session that began outside; such a session cannot be made anew elsewhere.",
    ),
    "console": Kind(
        "{who} has the terminal {what}, which is not a pseudo terminal",
        "start it from ssh, tmux, screen or a terminal window, or detach it with setsid",
        "Only pseudo terminals (/dev/pts/N) can be carried over the network; a console or serial line is hardware.",
    ),
    # -- descriptors
    "other-terminal": Kind(
        "{who} has {what} open as {fd}, which is a terminal but not its controlling one",
        "redirect that descriptor, or start it from that terminal",
        "One terminal, the controlling one, follows a guest.",
    ),
    "pty-master": Kind(
        "{who} holds the master side of terminal /dev/pts/{what} as {fd} for processes outside of it",
        "move the programs that run inside (its children), not the terminal program itself",
        "Terminal emulators, tmux, screen, script and sshd serve a terminal to processes that would stay.",
    ),
    "inet-socket": Kind(
        "{who} has {what} open as {fd}",
        "close its network connections, or wait until it has none",
        "Live network connections do not follow a process yet.",
    ),
    "socket": Kind(
        "{who} has {what} open as {fd}",
        "close it, or run it at home",
        "Netlink, packet, vsock and other special sockets belong to this machine's kernel.",
    ),
    "unix-peer": Kind(
        "{who} is connected by a unix socket ({fd}) to {what}",
        "close the connection, or move both ends together as one tree",
        "A unix socket joins two processes of one machine.",
    ),
    "unix-listener": Kind(
        "{who} offers a unix socket to others ({fd}, {what})",
        "stop the service, or run it at home; if only its own processes use it, say so: migrate --own-sockets, mosrun -S",
        "Other processes of this machine may connect to it by its name. One that serves its own tree only goes along if you say so.",
    ),
    "abstract-socket": Kind(
        "{who} offers a unix socket without a file to others ({fd}, {what})",
        "stop the service, run it at home, or give the socket a name in the file system",
        "Abstract names belong to the network of a machine, and a guest uses that of its host.",
    ),
    "device": Kind(
        "{who} has the device {what} open ({fd})",
        "close the device, or run it at home",
        "A device is hardware or kernel state of this machine; only null, zero, full, random and urandom are everywhere.",
    ),
    "gpu": Kind(
        "{who} uses the GPU device {what} ({fd})",
        "run it at home, or without the GPU",
        "The state inside a graphics processor cannot be taken along.",
    ),
    "io_uring": Kind(
        "{who} uses io_uring ({fd})",
        "switch it off in the program (UV_USE_IO_URING=0 for Node.js and libuv)",
        "The kernel offers no way to dump the rings of io_uring.",
    ),
    "kernel-object": Kind(
        "{who} holds a kernel object that cannot be taken along, {what} ({fd})",
        "let it finish that work, or run it at home",
        "userfaultfd, bpf, perf, file system contexts and the like exist only inside this machine's kernel.",
    ),
    "file-watch": Kind(
        "{who} watches files for changes ({what}, {fd})",
        "stop the watching (tail: use --disable-inotify or ---disable-inotify), or run it at home",
        "Notices about changes at home do not reach other nodes.",
    ),
    "pidfd": Kind(
        "{who} holds a pidfd ({fd}) of process {what} outside of its tree",
        "close it, or move the parent that holds both",
        "The other process stays here.",
    ),
    "shared-object": Kind(
        "{who} shares {what} ({fd}) with {other}, which would stay",
        "move the parent of both as one tree, or run it at home",
        "An eventfd, timerfd, signalfd or epoll descriptor is one object; it cannot be in two machines at once.",
    ),
    "fifo": Kind(
        "{who} uses the named pipe {what} ({fd}) together with {other}, which would stay",
        "use an ordinary pipe, or move both together as one tree",
        "A named pipe works inside one machine only.",
    ),
    "two-way-pipe": Kind(
        "{who} both reads and writes {what} ({fd}), which {other} uses too, as a job server does",
        "move the parent of both as one tree, or run it at home",
        "A pipe that follows a guest carries data in one direction.",
    ),
    "other-mount": Kind(
        "{who} has {what} open ({fd}) from a mount that is not part of its file tree any more, or from another mount namespace",
        "open the file again by its name, or start the program (and its redirections) inside",
        "CRIU finds files by mount and path; this one has no path here.",
    ),
    "ghost": Kind(
        "{who} uses the deleted file {what} ({fd}) of {other} MiB; up to 64 MiB of deleted files travel along",
        "start it again, or put the file back under its name",
        "A deleted file has no name under which another node could open it, so its content must travel inside the image.",
    ),
    "shared-deleted": Kind(
        "{who} uses the deleted file {what} ({fd}), which {other} has open too and would not see what is written elsewhere",
        "let its output go to a pipe or to a file with a name (GNU parallel: -u, or --results DIR)",
        "A deleted file has no name under which another node could open it: a guest would get a copy of its own.",
    ),
    "proc-file": Kind(
        "{who} has {what} open ({fd}), a file of a process outside of its tree",
        "close it, or run it at home",
        "That process does not exist on other nodes.",
    ),
    # -- memory
    "shared-memory": Kind(
        "{who} shares memory ({what}) with {other}, which would stay",
        "move the parent of both as one tree, or run it at home",
        "Memory that two machines write at once cannot be kept equal at a bearable price.",
    ),
    "named-memory": Kind(
        "{who} uses the named shared memory {what} ({fd})",
        "let the program unlink the name when all have it open, or run it at home",
        "Every process of this machine may open /dev/shm by name; other nodes have one of their own.",
    ),
    "sysv-memory": Kind(
        "{who} has System V shared memory attached ({what})",
        "run it at home",
        "Such a segment belongs to the whole machine, whoever has it attached at the moment.",
    ),
    "huge-pages": Kind(
        "{who} uses reserved huge pages ({what})",
        "use transparent huge pages instead",
        "Huge pages are reserved by an administrator on each machine; another node may have none.",
    ),
}

PLACES = {"who": "PROGRAM (PID)", "fd": "descriptor N", "what": "…", "other": "…", "pid": "PID"}


def manual() -> str:
    """The page of the manual, in Markdown."""
    lines = [
        "# Why a process cannot move",
        "",
        "`migrate` (exit status 3), `migrate --dry-run` and `mosps` name every reason that speaks against a move, found before anything is",
        "touched. This page lists all kinds, with what to do about each. *PROGRAM (PID)* stands for the process meant, which may be any",
        "process of the tree: a process moves with all its descendants.",
        "",
        "A destination may refuse too (blocked node, foreign user id, not enough memory): such reasons name the node.",
    ]
    for key, kind in KINDS.items():
        said, remedy = kind.says.format(**PLACES), kind.remedy.format(**PLACES)
        lines += ["", f"## {key}", "", f"> {said}", "", kind.why, "", f"**Remedy:** {remedy}."]
    return "\n".join(lines) + "\n"
