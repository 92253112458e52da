"""``python -m mig.agent.fileserver``: the process that serves home's files to the host of one guest; a child of the home agent.

The token is read from ``--token-fd``.  ``--control-fd`` is a connected unix stream socket that speaks :mod:`mig.wire`: we say
``{"op": "listening", "port": N}`` first, then answer one message at a time, and end with ``quit`` or when the agent closes it.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import threading
from typing import Any

from mig import logs, wire
from mig.errors import BadInput, MigError
from mig.homefs.guest import Guest
from mig.homefs.locks import allow_interrupts
from mig.homefs.protocol import TOKEN_SIZE
from mig.homefs.reopen import refused
from mig.homefs.server import HomeServer
from mig.kernel import libc
from mig.trust import links


class Doors:
    """Where clients connect."""

    def __init__(self, server: HomeServer, addr: str) -> None:
        self._server = server
        self._listener = self._open(addr, 0)

    @property
    def port(self) -> int:
        """The same for life."""
        return int(self._listener.getsockname()[1])

    def move(self, addr: str) -> None:
        """Listen on ``addr``, and no more where we did before; raises :class:`MigError`."""
        try:
            fresh = self._open(addr, self.port)
        except OSError as e:
            raise MigError(f"the guest's files cannot be served on {addr}: {e}") from e
        self.close()
        self._listener = fresh

    def _open(self, addr: str, port: int) -> socket.socket:
        listener = socket.create_server((addr, port), family=socket.AF_INET6 if ":" in addr else socket.AF_INET, backlog=16)
        threading.Thread(target=self._server.serve_forever, args=(listener,), name="accept", daemon=True).start()
        return listener

    def close(self) -> None:
        """Nobody can connect any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def answer(server: HomeServer, doors: Doors, m: wire.Message) -> dict[str, Any]:
    """The answer to one message; raises :class:`MigError` for one that is not understood."""
    match m.get("op"):
        case "groups":  # {"groups": {uid: [gid, …]}}: the supplementary groups of these users from now on
            server.groups.update({int(uid): [int(g) for g in gids] for uid, gids in m["groups"].items()})
            return {"op": "groups"}
        case "guest":  # see Guest.to_map: who it is, before it is mounted
            server.guest = Guest.from_map(m["guest"])
            return {"op": "guest"}
        case "expire":
            return {"op": "expired", "complete": server.expire()}
        case "keep":  # {"names": [path, …]}: those of its sockets, before the copy's restore takes them away
            return {"op": "kept", "count": server.names.keep([str(n) for n in m["names"]], server.guest, server.groups)}
        case "names":  # {"back": bool, "done": bool}: the copy is given up; the move is over
            if m["back"]:
                server.names.put_back(server.guest, server.groups)
            if m["done"]:
                server.names.forget(server.guest, server.groups)
            return {"op": "names"}
        case "locks":
            return {"op": "locks", "locks": server.locks()}
        case "mounts":
            return {"op": "mounts", "mounts": [mount.name for mount in server.mounts()]}
        case "unlock":  # {"mount": id}: before the guest's copy on another mount takes its locks; "relock" is the undo
            for mount in server.mounts():
                if mount.name == m["mount"]:
                    mount.locks.drop_all()
            return {"op": "unlocked"}
        case "relock":
            return {"op": "relocked", "lost": sum(mount.locks.retake() for mount in server.mounts() if mount.name == m["mount"])}
        case "given up":  # the guest's copy will not run: before "relock"
            for mount in server.mounts():
                mount.locks.give_up()
            return {"op": "given up"}
        case "inherit":  # {"pids": [pid, …]}: the frozen original at home: what it has open, and its fcntl locks, the guest takes over
            server.held.of(int(pid) for pid in m["pids"])
            server.ancestors.clear()
            server.ancestors.update(int(pid) for pid in m["pids"])
            return {"op": "inherit"}
        case "refused":  # {"files": [[path, needs], …]}: what the guest may not have opened at home
            return {"op": "refused", "files": refused(server, [(str(p), int(n)) for p, n in m["files"]])}
        case "listen":  # {"addr": ADDRESS}: home has another one; on the same port
            doors.move(str(m["addr"]))
            return {"op": "listen"}
        case "quit":
            return {"op": "bye"}
    raise BadInput(f"the file server has no operation {m.get('op')!r}")


def serve(server: HomeServer, doors: Doors, control: socket.socket) -> None:
    """Answer the agent until it says ``quit`` or is gone."""
    while True:
        try:
            m = wire.recv(control)
        except EOFError:
            return
        try:
            reply = answer(server, doors, m)
        except MigError as e:
            reply = {"op": "error", "error": e.to_wire()}
        wire.send(control, **reply)
        if m.get("op") == "quit":
            return


def main() -> None:
    parser = argparse.ArgumentParser(prog="mig.agent.fileserver")
    parser.add_argument("--listen", required=True, metavar="ADDR")
    parser.add_argument("--token-fd", required=True, type=int, metavar="N")
    parser.add_argument("--control-fd", required=True, type=int, metavar="N")
    parser.add_argument("--root", default="/", help="the tree that is served")
    parser.add_argument("--bare", action="store_true", help="without encryption: for tests, whose client is on this machine")
    args = parser.parse_args()
    libc.pdeathsig()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's, meant for the guest
    logs.to_stderr(who="file server")
    logs.about("")  # it outlasts the move for which it was started
    allow_interrupts()
    with os.fdopen(args.token_fd, "rb") as f:
        server = HomeServer(f.read(TOKEN_SIZE), args.root, secure=None if args.bare else lambda s: links.answer(s)[0])
    if not args.bare:
        links.start()
    control = socket.socket(fileno=args.control_fd)
    control.set_inheritable(False)
    doors = Doors(server, args.listen)
    wire.send(control, op="listening", port=doors.port)
    try:
        serve(server, doors, control)
    finally:
        doors.close()
        server.close()


if __name__ == "__main__":
    main()
