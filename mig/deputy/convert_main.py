"""``python -m mig.deputy.convert_main FD``: one conversion, or one repair, in a process of its own.

ptrace blocks and belongs to one thread, and a converter that dies must not take the agent along.  The request, a JSON map, comes over
the SEQPACKET socket FD, and so goes the answer, with the deputy's link as SCM_RIGHTS.  EOF instead of a request: nothing to do.
The journal stays for whoever asked to remove it.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

from mig.deputy.convert import Deputy, DeputyError, convert
from mig.deputy.repair import Journal, repair
from mig.kernel.cgroup import Cgroup

MAX_REQUEST = 65536


def main() -> None:
    """Serve one request."""
    control = socket.socket(fileno=int(sys.argv[1]))
    if not (packet := control.recv(MAX_REQUEST)):
        return
    answer(control, json.loads(packet))


def answer(control: socket.socket, request: dict[str, Any]) -> None:
    """Do it, and say how it went."""
    try:
        deputy = serve(request)
    except DeputyError as e:
        control.send(json.dumps({"message": e.message, "rolled_back": e.rolled_back, "hint": e.hint}).encode())
    except (OSError, ValueError) as e:
        control.send(json.dumps({"message": f"process {request['pid']}: {e}", "rolled_back": True, "hint": ""}).encode())
    else:
        text = json.dumps({"pid": deputy.pid, "peer_fd": deputy.peer_fd, "holder": deputy.holder})
        socket.send_fds(control, [text.encode()], [deputy.sock.fileno()])


def serve(request: dict[str, Any]) -> Deputy:
    """Convert or repair, as the request says."""
    pid, group = int(request["pid"]), Cgroup(request["cgroup"])
    if request["op"] == "repair":
        return repair(pid, group.thaw, group.freeze)
    drop, hold = int(request["drop"]), bool(request["hold"])
    return convert(pid, thaw=group.thaw, freeze=group.freeze, drop_signals=drop, hold=hold, journal=Journal(pid))


if __name__ == "__main__":
    main()
