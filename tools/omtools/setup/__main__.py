"""``python -m omtools.setup [bench] [test] [soak]``: bring this clone to a state in which all of it runs; quick when it is already."""

from __future__ import annotations

import sys

from omtools.setup import base, criu, debian, helpers, logins, python_env


def main(argv: list[str]) -> int:
    """Do what is missing; 0, or 1 with what failed and what to do."""
    groups = ["base", "demo", *argv]
    try:
        unknown = [g for g in groups if g not in debian.PACKAGES]
        if unknown:
            raise base.SetupError(f"no such group of packages: {', '.join(unknown)}", f"known: {', '.join(debian.PACKAGES)}")
        debian.install(groups)
        debian.load_fuse()
        python_env.create()
        helpers.build()
        criu.install()
        if "test" in groups:
            logins.fetch()
    except base.SetupError as e:
        base.say(f"error: {e}")
        if e.hint:
            base.say(f"  ({e.hint})")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
