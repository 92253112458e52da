"""The demonstration's own arithmetic and comparisons: what it claims rests on them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from omtools.demo import png
from omtools.demo.estimate import Work, shared_cpu
from omtools.demo.jobs import Job, differences, same


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def image(pixels: bytes, date: bytes) -> bytes:
    head = chunk(b"IHDR", bytes(13)) + chunk(b"tIME", date) + chunk(b"tEXt", b"Comment\0" + date)
    return png.SIGNATURE + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_pictures_differ_by_pixels_and_not_by_dates() -> None:
    assert png.picture(image(b"pixels", b"1")) == png.picture(image(b"pixels", b"22"))
    assert png.picture(image(b"pixels", b"1")) != png.picture(image(b"Pixels", b"1"))


@pytest.mark.parametrize("cut", [4, 20, -4, -12])
def test_a_picture_that_is_cut_short_is_none(cut: int) -> None:
    with pytest.raises(ValueError, match="PNG"):
        png.picture(image(b"pixels", b"1")[:cut])


def test_equal_jobs_share_a_cpu() -> None:
    assert shared_cpu([Work(0, 3), Work(0, 3)], 1) == pytest.approx([6, 6])


def test_a_thread_uses_one_cpu_at_most() -> None:
    assert shared_cpu([Work(0, 3), Work(0, 6, threads=2)], 4) == pytest.approx([3, 3])


def test_a_later_job_slows_the_first() -> None:
    assert shared_cpu([Work(0, 4), Work(2, 1), Work(9, 1)], 1) == pytest.approx([5, 4, 10])


def test_every_difference_is_found(tmp_path: Path) -> None:
    job = Job("j", "", "", {"out": same, "gone": same}, terminal=True, expected={"out": b"a", "gone": b"b", "": b"said"})
    (tmp_path / "out").write_bytes(b"aa")
    found = differences(job, tmp_path, b"sai")
    assert [text.split(" ")[0] for text in found] == ["out", "gone", "the"]
    (tmp_path / "out").write_bytes(b"a")
    (tmp_path / "gone").write_bytes(b"b")
    assert differences(job, tmp_path, b"said") == []
