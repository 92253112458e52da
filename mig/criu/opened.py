"""What CRIU, as root, opens or makes by name when it restores images: for a home to look at that did not make them.

On a host home's file server does what is asked of it as the guest, whoever asks.  At home a restore opens home's own files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mig.criu import images, layout
from mig.homefs.guest import CHANGES, READS, RUNS, WRITES

_BY_MODE = {os.O_RDONLY: READS, os.O_WRONLY: WRITES}


def opened(img_dir: str | os.PathLike[str]) -> list[tuple[str, int]]:
    """Every path, absolute, with what is done there (``READS`` …); 0: it is only gone to.  Raises for images that cannot be read."""
    img = Path(img_dir)

    def every(pattern: str, module: str, message: str) -> list[Any]:
        kind = getattr(layout.image(module), message)
        return [e for path in img.glob(pattern) for e in images.read_entries(path, kind)[1]]

    memory = every("mm-*.img", "mm", "mm_entry")
    held = {e.id for e in every("fdinfo-*.img", "fdinfo", "fdinfo_entry")}
    mapped = {v.shmid for m in memory for v in m.vmas}
    programs = {m.exe_file_id for m in memory} - held
    places = {i for e in every("fs-*.img", "fs", "fs_entry") for i in (e.cwd_id, e.root_id)} - held - mapped
    ghosts = {e.orig_id for e in every("remap-fpath.img", "remap_file_path", "remap_file_path_entry")}
    out: dict[str, int] = {}
    for e in every("files.img", "fdinfo", "file_entry"):
        if e.HasField("reg"):
            name, needs = e.reg.name, _BY_MODE.get(e.reg.flags & os.O_ACCMODE, READS | WRITES)
            if e.id in ghosts:
                needs = CHANGES
            elif needs == READS and e.id in programs:
                needs = RUNS
            elif needs == READS and e.id in places:
                needs = 0
        elif e.HasField("usk") and e.usk.name.strip(b"\0"):
            name, needs = os.path.join(e.usk.name_dir or "/", os.fsdecode(e.usk.name.removesuffix(b"\0"))), CHANGES
        else:
            continue
        path = os.path.normpath(name)
        out[path] = out.get(path, 0) | needs
    return list(out.items())
