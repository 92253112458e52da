"""``mospam``: what PAM runs when a session opens or closes.  Hands over to the compiled helper, which is what a line of PAM should name."""

from __future__ import annotations

import os
import sys

TEXT = """usage: mospam [--run DIR] [--help] [--version]

Tells omdiscd that a session of a person has opened or closed. PAM runs it, by a line of /etc/pam.d:

    {line}

`mosctl pam install` puts it there, `mosctl pam show` shows it. By hand there is nothing to do with it: it refuses to be run
outside of PAM. See mospam(8).

exit status: 0 done, or nothing to do (a login is never refused)   2 not called by PAM   6 not root
"""


def main() -> int:
    """The console script."""
    args = sys.argv[1:]
    if args in (["--help"], ["-h"], ["--version"]):
        from mig import __version__
        from omtools import pam_files

        print(f"mospam {__version__}" if args == ["--version"] else TEXT.format(line=pam_files.line()))
        return 0
    from mig import paths

    program = str(paths.libexec() / "mospam")
    try:
        os.execv(program, [program, *args])
    except OSError as e:
        print(f"mospam: {program}: {e.strerror}; nothing was noted", file=sys.stderr)
        return 0 if os.environ.get("PAM_TYPE") else 2  # PAM's login must go on


if __name__ == "__main__":
    sys.exit(main())
