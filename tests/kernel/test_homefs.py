"""Home's files seen from a host: data, names, ownership, programs, through real FUSE and TCP."""

from __future__ import annotations

import os

from tests.kernel.homefs_host import Home, Host, home, host

__all__ = ["home", "host"]


def test_data_is_the_same_at_both_ends(home: Home, host: Host) -> None:
    home.run("""
        with open("from-home", "wb") as f: f.write(bytes(range(256)) * 20000)
    """)
    host.run("""
        with open("from-home", "rb") as f:
            assert f.read() == bytes(range(256)) * 20000
            assert os.pread(f.fileno(), 4, 256 * 9999 + 3) == bytes([3, 4, 5, 6])
        with open("from-host", "wb") as f:
            f.write(b"x" * 3_000_000); f.seek(1_500_000); f.write(b"middle")
            f.truncate(2_000_000)
            os.fsync(f.fileno())
        fd = os.open("holes", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"end", 1 << 20)
        assert os.lseek(fd, 0, os.SEEK_DATA) > 0
        os.posix_fallocate(fd, 0, 2 << 20)
        assert os.fstat(fd).st_size == 2 << 20
    """)
    home.run("""
        with open("from-host", "rb") as f: data = f.read()
        assert len(data) == 2_000_000 and data[1_500_000:1_500_007] == b"middlex"
    """)


def test_appends_of_home_and_host_interleave_without_loss(home: Home, host: Host) -> None:
    code = """
        fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for i in range(300): os.write(fd, b"{who} %d\\n" % i)
    """
    both = [p.start(code.format(who=w)) for p, w in ((home, "home"), (host, "host"))]
    for s in both:
        s.end()
    host.run("""
        lines = open("log").read().splitlines()
        assert len(lines) == 600
        for who in ("home", "host"):
            assert [l for l in lines if l.startswith(who)] == [f"{who} {i}" for i in range(300)]
    """)


def test_an_unlinked_open_file_lives_until_it_is_closed(home: Home, host: Host) -> None:
    s = host.start("""
        f = open("ghost", "w+b"); f.write(b"still here"); f.flush()
        os.unlink("ghost")
        assert os.fstat(f.fileno()).st_nlink == 0
        f.seek(0); assert f.read() == b"still here"
        say("unlinked"); sys.stdin.readline()
        f.write(b"!"); f.seek(0); assert f.read() == b"still here!"
    """)
    assert s.line() == "unlinked"
    assert "ghost" not in os.listdir(home.here)
    s.end()


def test_names_links_and_renames(home: Home, host: Host) -> None:
    host.run("""
        os.mkdir("a"); os.mkdir("b", 0o700)
        open("a/file", "w").write("1")
        os.link("a/file", "b/hard"); os.symlink("../a/file", "b/soft")
        assert os.stat("a/file").st_ino == os.stat("b/hard").st_ino == os.stat("b/soft").st_ino
        assert os.readlink("b/soft") == "../a/file" and os.stat("a/file").st_nlink == 2
        open("b/other", "w").write("2")
        os.rename("b/other", "a/file")
        assert open("a/file").read() == "2" and open("b/hard").read() == "1"
        assert fails(os.rmdir, "a") == "ENOTEMPTY"
        assert fails(os.mkdir, "a") == "EEXIST"
        assert fails(os.stat, "nothing") == "ENOENT"
        assert fails(os.stat, "x" * 300) == "ENAMETOOLONG"
        assert fails(os.stat, "a/file/below") == "ENOTDIR"
        os.mkfifo("fifo"); os.unlink("fifo")
        strange = bytes(range(1, 256)).replace(b"/", b"")[:200]
        open(strange, "w").close(); assert strange in os.listdir(b".")
        os.chmod("a/file", 0o640); os.utime("a/file", ns=(1_000_000_001, 2_000_000_002))
        os.symlink("nowhere", "dangling"); os.utime("dangling", ns=(5, 6), follow_symlinks=False)
    """)
    st = os.stat(home.here + "/a/file")
    assert (st.st_mode & 0o7777, st.st_atime_ns, st.st_mtime_ns) == (0o640, 1_000_000_001, 2_000_000_002)
    assert os.lstat(home.here + "/dangling").st_mtime_ns == 6
    assert sorted(os.listdir(home.here + "/b")) == ["hard", "soft"]


def test_mappings_shared_and_private(home: Home, host: Host) -> None:
    home.run('open("map", "wb").write(b"a" * 65536)')
    host.run("""
        fd = os.open("map", os.O_RDWR)
        shared = mmap.mmap(fd, 65536); private = mmap.mmap(fd, 65536, flags=mmap.MAP_PRIVATE)
        private[0:4] = b"mine"
        shared[4096:4100] = b"ours"; shared.flush()
        assert private[0:4] == b"mine" and shared[0:4] == b"aaaa"
    """)
    home.run("""
        data = open("map", "rb").read()
        assert data[4096:4100] == b"ours" and data[:4] == b"aaaa" and len(data) == 65536
    """)


def test_programs_and_libraries_run_from_home(home: Home, host: Host) -> None:
    home.run("""
        import shutil
        shutil.copy("/bin/echo", "prog")
        os.chmod("prog", 0o711)
        libm = next(l.split()[-1] for l in open("/proc/self/maps") if "libc.so" in l).replace("libc.so", "libm.so")
        shutil.copy(libm, "libprivate.so")
        open("script", "w").write("#!/bin/sh\\nexit 7\\n"); os.chmod("script", 0o755)
        shutil.copy("/usr/bin/id", "suid"); os.chmod("suid", 0o4755)
    """)
    host.run("""
        # execute permission without read permission, as a user: the kernel reads it, not he
        out = subprocess.run([D + "/prog", "hello"], user=1000, group=1000, extra_groups=[], capture_output=True, text=True, check=True)
        assert out.stdout == "hello\\n"
        assert subprocess.run(["./script"]).returncode == 7
        lib = ctypes.CDLL(D + "/libprivate.so"); lib.cos.restype = ctypes.c_double; lib.cos.argtypes = [ctypes.c_double]
        assert lib.cos(0.0) == 1.0
        assert subprocess.run(["./suid", "-u"], user=1000, group=1000, capture_output=True, text=True).stdout == "1000\\n", "nosuid"
    """)


def test_files_belong_to_the_guests_user_and_home_decides(home: Home, host: Host) -> None:
    home.run("""
        os.mkdir("user"); os.chown("user", 1000, 1000)
        os.mkdir("team"); os.chown("team", 0, 4242); os.chmod("team", 0o770)
        os.mkdir("secret", 0o700); open("secret/file", "w").write("s")
        open("readonly", "w").write("r"); os.chmod("readonly", 0o644)
        os.mkdir("listed"); open("listed/name", "w").close(); os.chmod("listed", 0o744)
    """)
    as_user = """
        os.setgroups([4242]); os.setgid(1000); os.setuid(1000)
    """
    code = """
        os.umask(0o027)
        open("user/file", "w").write("mine"); os.mkdir("user/dir", 0o777)
        st = os.stat("user/file"); assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (1000, 1000, 0o640)
        assert fails(os.chown, "user/file", 0, 0) == "EPERM"
        assert fails(open, "readonly", "w") == "EACCES" and open("readonly").read() == "r"
        assert fails(open, "secret/file") == "EACCES"
        assert fails(open, "new", "w") == "EACCES"
        assert os.listdir("listed") == ["name"] and fails(os.stat, "listed/name") == "EACCES"
        assert fails(os.chmod, "readonly", 0o777) == "EPERM"
    """
    host.run(as_user + code + '    assert fails(open, "team/before", "w") == "EACCES", "home does not know of the group"')
    assert home.ask("groups", groups={1000: [4242]}) == {"op": "groups"}
    host.run(as_user + '    open("team/file", "w").write("ours")')
    st = os.stat(home.here + "/team/file")
    assert (st.st_uid, st.st_gid) == (1000, 1000)
    assert os.stat(home.here + "/user/dir").st_mode & 0o777 == 0o750


def test_a_write_clears_set_id_bits_as_at_home(home: Home, host: Host) -> None:
    home.run('open("prog", "w").write("x"); os.chown("prog", 1000, 1000); os.chmod("prog", 0o6755)')
    host.run("""
        os.setgroups([]); os.setgid(1000); os.setuid(1000)
        with open("prog", "r+") as f: f.write("y")
    """)
    assert os.stat(home.here + "/prog").st_mode & 0o7777 == 0o755


def test_extended_attributes(home: Home, host: Host) -> None:
    host.run("""
        open("file", "w").close()
        os.setxattr("file", "user.colour", b"blue")
        os.setxattr("file", "user.long", b"l" * 3000)
        assert os.getxattr("file", "user.colour") == b"blue" and os.getxattr("file", "user.long") == b"l" * 3000
        assert sorted(os.listxattr("file")) == ["user.colour", "user.long"]
        assert fails(os.setxattr, "file", "user.colour", b"red", os.XATTR_CREATE) == "EEXIST"
        os.removexattr("file", "user.long")
        assert fails(os.getxattr, "file", "user.long") == "ENODATA"
        assert fails(os.getxattr, "file", "security.capability") == "ENODATA"
    """)
    assert os.getxattr(home.here + "/file", "user.colour") == b"blue"


def test_a_directory_of_5000_names(home: Home, host: Host) -> None:
    home.run("""
        os.mkdir("many")
        for i in range(5000): open(f"many/file-{i}", "w").close()
    """)
    host.run("""
        entries = list(os.scandir("many"))
        assert sorted(e.name for e in entries) == sorted(f"file-{i}" for i in range(5000))
        assert all(e.inode() == e.stat().st_ino and e.is_file() for e in entries)
        fd = os.open("many", os.O_RDONLY); os.unlink("many/file-7")
        assert len(os.listdir(fd)) == 4999
    """)


def test_numbers_agree_and_devices_do_not_open(home: Home, host: Host) -> None:
    home.run("""
        os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        open("file", "wb").write(b"12345")
    """)
    mine, theirs = (p.run("""
        st, v = os.stat("file"), os.statvfs(".")
        print(st.st_ino, st.st_size, st.st_mtime_ns, os.stat(".").st_ino, os.stat("null").st_rdev, v.f_bsize, v.f_blocks, v.f_namemax)
    """) for p in (home, host))  # fmt: skip
    assert mine == theirs
    host.run('assert fails(open, "null") == "EACCES"')


def test_errors_of_home_reach_the_guest(home: Home, host: Host) -> None:
    host.run("""
        fd = os.open("small/file", os.O_WRONLY | os.O_CREAT)
        def fill():
            while True: os.write(fd, b"x" * 65536)
        assert fails(fill) == "ENOSPC"
        assert fails(os.rename, "small/file", "elsewhere") == "EXDEV"
        assert fails(os.link, "small/file", "elsewhere") == "EXDEV"
        assert fails(fcntl.ioctl, fd, 0x5401) == "ENOTTY"
        assert fails(os.open, ".", os.O_TMPFILE | os.O_RDWR) in ("EOPNOTSUPP", "ENOTSUP")  # one number, two names
        with open("small/file", "r+b") as f: f.truncate(3)
        with open("small/file", "rb") as a, open("copy", "wb") as b:
            assert os.copy_file_range(a.fileno(), b.fileno(), 10) == 3
    """)
    assert os.path.getsize(home.here + "/copy") == 3


def test_the_hosts_mount_points_are_there_and_hidden(home: Home, host: Host) -> None:
    host.run(f"""
        root = {host.root!r}
        assert os.listdir(root + "/.cell") == [] and ".cell" not in os.listdir(root)
        assert fails(open, root + "/.cell/new", "w") == "ENOENT"
        assert stat.S_ISREG(os.stat(root + "/run/criu.kdat").st_mode)
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount("tmpfs", root + "/.cell", "tmpfs"); open(root + "/.cell/new", "w").close()
        libc.umount2(root + "/.cell")
    """)
    assert not os.path.exists("/.cell")


def test_more_files_than_descriptors() -> None:
    """A guest may know more files than the server may have open: what was not used for long is opened again by name."""
    home = Home(nofile=600)
    try:
        host = home.host()
        host.run("""
            os.makedirs("deep/er")
            kept = open("deep/er/kept", "w+")
            for i in range(700):
                with open(f"deep/er/{i}", "w") as f: f.write(str(i))
            os.rename("deep/er", "deep/moved")
            time.sleep(1.1)
            for i in range(700):
                with open(f"deep/moved/{i}") as f: assert f.read() == str(i)
            kept.write("kept"); kept.flush(); os.unlink("deep/moved/kept"); kept.seek(0)
            assert kept.read() == "kept"
        """)
        assert len(os.listdir(f"/proc/{home.pid}/fd")) < 400
    finally:
        home.end()
