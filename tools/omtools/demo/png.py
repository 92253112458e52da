"""Comparing pictures: what a PNG shows, without the dates that its writer put in."""

from __future__ import annotations

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DATED = (b"tIME", b"tEXt", b"zTXt", b"iTXt")


def picture(data: bytes) -> bytes:
    """The file without time and text chunks: equal for equal pixels made by the same program.  Raises ``ValueError`` if it is no PNG."""
    if not data.startswith(SIGNATURE):
        raise ValueError("not a PNG file")
    kept = [SIGNATURE]
    at = len(SIGNATURE)
    while at < len(data):
        if at + 12 > len(data):
            raise ValueError("the PNG file is cut short")
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind not in _DATED:
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    if at != len(data) or not kept[-1][4:8] == b"IEND":
        raise ValueError("the PNG file is cut short")
    return b"".join(kept)
