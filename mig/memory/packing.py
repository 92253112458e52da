"""Chunks of memory on the wire: as they are, or packed where that makes a move shorter.

Which codec pays is arithmetic over what was measured in this very move: the link's rate, and each codec's speed and ratio on this process's
memory.  A chunk of ``n`` bytes that packs at ``v`` bytes/s to a ``1/q`` of its size, over a link of ``r`` bytes/s, takes

    raw     n / r
    packed  max(n / v, n / (q·r))   packing and sending overlap: there is a core for each
            n / v + n / (q·r)       they do not

Demand replies are never packed: one page is 33 µs of a gigabit link, and a thread waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import lz4.block
import zstandard

from mig.memory.frames import Codec

WORTH = 0.9
"""A chunk is sent as it is unless its packed form is under this part of it: unpacking costs the destination something too."""
ZSTD_LEVEL = 1
SAMPLE_EVERY = 64
"""Chunks between two trials of the codecs not in use, so that what was measured stays true of the memory that is sent now."""
NEWS = 0.2
"""Weight of a new measurement in the running means."""
WINDOW = 1 << 20
"""Bytes over which the link's rate is taken: much more than what the kernel's buffers swallow at once."""
HELD_UP = 0.3
"""Part of a window that we have to wait in for the link to be what is slow."""


_Buffer = bytes | bytearray | memoryview


class PackingError(ValueError):
    """A packed chunk does not unpack to the length that it claims."""


class Packer:
    """Packs chunks; keeps compression contexts, so one for each thread."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True, write_checksum=False)

    def pack(self, chunk: bytes | memoryview, codec: Codec) -> bytes | memoryview:
        """The chunk in this codec, whatever its size becomes."""
        if codec == Codec.LZ4:
            return bytes(lz4.block.compress(chunk, store_size=False))
        if codec == Codec.ZSTD:
            return self._zstd.compress(chunk)
        return chunk


class Unpacker:
    """The other end; one for each thread."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def unpack(self, payload: _Buffer, codec: Codec, length: int) -> _Buffer:
        """Exactly ``length`` bytes, or :class:`PackingError`: a payload is never unpacked to more than it was announced as."""
        try:
            if codec == Codec.LZ4:
                out: _Buffer = bytes(lz4.block.decompress(payload, uncompressed_size=length))
            elif codec == Codec.ZSTD:
                if zstandard.get_frame_parameters(payload).content_size != length:
                    raise PackingError(f"a chunk of {length} bytes says otherwise of itself")
                out = self._zstd.decompress(payload, max_output_size=length)
            else:
                out = payload
        except (lz4.block.LZ4BlockError, zstandard.ZstdError) as e:
            raise PackingError(f"a chunk does not unpack: {e}") from e
        if len(out) != length:
            raise PackingError(f"a chunk of {length} bytes unpacks to {len(out)}")
        return out


@dataclass
class Measured:
    """Running means of one codec: bytes in a second, bytes in for each byte out."""

    speed: float
    ratio: float
    known: bool = False

    def note(self, size: int, packed: int, seconds: float) -> None:
        """One chunk was packed."""
        speed, ratio = size / max(seconds, 1e-9), size / max(packed, 1)
        w = NEWS if self.known else 1.0
        self.speed += w * (speed - self.speed)
        self.ratio += w * (ratio - self.ratio)
        self.known = True


class Chooser:
    """Which codec for the next chunk.  Pure: it is told what was measured."""

    def __init__(self, *, free_core: bool, limit: float = 0.0) -> None:
        """``free_core``: packing does not take time from sending (another core idles).  ``limit``: bytes a second allowed, 0 for all."""
        self.free_core = free_core
        self.limit = limit
        self.link = limit
        """Bytes a second that the link takes; 0 while not known."""
        self.codecs = {Codec.LZ4: Measured(1e9, 2.0), Codec.ZSTD: Measured(5e8, 3.0)}
        self._chunks = 0
        self._bytes, self._waited, self._since = 0, 0.0, -1.0

    def sent(self, size: int, waited: float, now: float) -> None:
        """``size`` bytes were put on the wire at ``now``, which kept us waiting for ``waited`` seconds.

        A window in which we waited shows the link's rate.  In one without, the link was not what held us up: it can do that and more.
        """
        if self._since < 0:
            self._since = now - waited
        self._bytes += size
        self._waited += waited
        took = now - self._since
        if self._bytes < WINDOW or took <= 0:
            return
        rate = self._bytes / took
        if self._waited < HELD_UP * took:
            rate = max(rate, self.link)
        self.link += (0.5 if self.link else 1.0) * (rate - self.link)
        if self.limit:
            self.link = min(self.link, self.limit)
        self._bytes, self._waited, self._since = 0, 0.0, now

    def cost(self, codec: Codec) -> float:
        """Seconds for a byte of memory in this codec."""
        if not self.link:
            return 0.0 if codec == Codec.RAW else 1.0
        if codec == Codec.RAW:
            return 1 / self.link
        m = self.codecs[codec]
        pack, send = 1 / m.speed, 1 / (m.ratio * self.link)
        if m.ratio * WORTH < 1:  # such chunks would be sent as they are, after all that work
            send = 1 / self.link
        return max(pack, send) if self.free_core else pack + send

    def best(self) -> Codec:
        """The cheapest by what is known now; as it is, unless another saves a tenth."""
        best = min(self.codecs, key=self.cost)
        return best if self.cost(best) < WORTH * self.cost(Codec.RAW) else Codec.RAW

    def next(self) -> Codec:
        """For the next chunk: the cheapest, or now and then another, to know it."""
        self._chunks += 1
        if not self.link:
            return Codec.RAW
        for codec, m in self.codecs.items():
            if not m.known:
                return codec
        if self._chunks % SAMPLE_EVERY == 0:
            return (Codec.LZ4, Codec.ZSTD)[self._chunks // SAMPLE_EVERY % 2]
        return self.best()


def pack_best(
    packer: Packer, chooser: Chooser, chunk: bytes | memoryview, clock: Callable[[], float] = time.perf_counter
) -> tuple[Codec, bytes | memoryview]:
    """The chunk as it should be sent: packed by the chooser's codec, or as it is where that gains less than a tenth."""
    codec = chooser.next()
    if codec == Codec.RAW:
        return codec, chunk
    began = clock()
    packed = packer.pack(chunk, codec)
    chooser.codecs[codec].note(len(chunk), len(packed), clock() - began)
    if len(packed) >= WORTH * len(chunk):
        return Codec.RAW, chunk
    return codec, packed
