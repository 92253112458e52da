"""The options that every dump and restore of ours has in common, and why."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mig.criu import layout

GHOST_LIMIT = 64 << 20
"""Bytes of a deleted but open file that travel inside the images."""


def common(opts: Any, img_fd: int, log_file: str) -> None:
    """Fill a ``criu_opts``: images and log in the directory ``img_fd``."""
    rpc = layout.rpc()
    opts.images_dir_fd = opts.work_dir_fd = img_fd
    opts.log_level, opts.log_file = 4, log_file
    opts.shell_job = True  # session and terminal are proxied: their leader is not part of the tree
    opts.file_locks = True
    opts.manage_cgroups = True
    opts.manage_cgroups_mode = rpc.IGNORE  # the cell decides about cgroups; another node's names mean nothing here
    opts.ghost_limit = GHOST_LIMIT
    opts.link_remap = True  # a removed lower file of an overlay keeps st_nlink 1: CRIU sees a link that it cannot reach
    opts.network_lock = rpc.SKIP  # no connection moves, so no packet needs to be held back


def dump(pid: int, img_fd: int, freeze_cgroup: str, external: Collection[str] = (), log_file: str = "dump.log") -> Any:
    """A DUMP request for the tree under ``pid``, frozen in ``freeze_cgroup`` (a cgroup-v2 directory) and left so afterwards.

    ``external``: CRIU's names of what the restore will be given.
    """
    rpc = layout.rpc()
    req = rpc.criu_req(type=rpc.DUMP)
    common(req.opts, img_fd, log_file)
    req.opts.pid = pid
    req.opts.leave_running = True  # with a frozen cgroup: neither killed nor stopped, and still frozen
    req.opts.freeze_cgroup = freeze_cgroup
    req.opts.external.extend(external)
    return req


def restore(img_fd: int, log_file: str = "restore.log", *, lazy: bool = False) -> Any:
    """A RESTORE request: the tree becomes a sibling of the worker, that is, a child of the process that started it.

    ``lazy``: private memory that the images do not hold is asked for at ``lazy-pages.socket`` in the directory of the images.
    """
    rpc = layout.rpc()
    req = rpc.criu_req(type=rpc.RESTORE)
    common(req.opts, img_fd, log_file)
    req.opts.rst_sibling = True
    req.opts.notify_scripts = True
    req.opts.lazy_pages = lazy
    return req
