"""``daemon_helper.py SOCKET ROW``: plays an agent or keeper in tests of omdiscd: speaks the protocol of their sockets, moves nothing.

ROW is a GuestState as JSON.  A move is answered with one step and a result that repeats the order; every order is printed as JSON.
"""

from __future__ import annotations

import json
import socket
import sys

from mig import wire


def main() -> None:
    path, row = sys.argv[1], json.loads(sys.argv[2])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            conn, _ = listener.accept()
            with conn:
                serve(conn, row)


def serve(conn: socket.socket, row: dict[str, object]) -> None:
    try:
        while True:
            m = wire.recv(conn)
            if m["op"] == "watch":
                wire.send(conn, op="state", state=row)
                continue
            print(json.dumps(m), flush=True)
            if m["op"] == "move":
                wire.send(conn, op="progress", id=m["id"], step="ask", text="asking")
                wire.send(conn, op="moved", id=m["id"], ok=True, result={"pid": row["pid"], "to": m["to"]["name"], "mode": m["mode"]})
    except (EOFError, ConnectionError):
        pass  # that omdiscd was stopped; the next one connects again


if __name__ == "__main__":
    main()
