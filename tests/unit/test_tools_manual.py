"""The manual says what the programs do: pages made from the source are up to date, and the others name every option."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omdiscd import command
from omtools import manual, migrate, mosctl, mosmon, mospam, mosps, mosrun
from omtools.moslab import cli

from mig.config import Config
from mig.errors import BadInput, CannotMove, MoveFailed, NoDaemon, NotPermitted, OutcomeUnknown

PAGES = Path(__file__).parents[2] / "docs" / "man"


@pytest.mark.parametrize("path", list(manual.pages()), ids=lambda p: p.name)
def test_generated_pages_are_up_to_date(path: Path) -> None:
    assert path.read_text() == manual.pages()[path], "run: python -m omtools.manual"


def test_every_key_of_the_configuration_is_explained() -> None:
    page = manual.configuration()
    for line in Config().describe().splitlines():
        key, _, value = line.partition(" = ")
        assert f"**{key}** = `{value}`\n: " in page


def help_of(main: Callable[[list[str]], int], *verb: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*verb, "--help"])
    return out.getvalue()


def omdiscd_main(argv: list[str]) -> int:
    with pytest.MonkeyPatch.context() as m:
        m.setattr("sys.argv", ["omdiscd", *argv])
        return command.main()


def mospam_main(argv: list[str]) -> int:
    with pytest.MonkeyPatch.context() as m:
        m.setattr("sys.argv", ["mospam", argv[0]])
        return mospam.main()


VERBS = [
    "status", "whois", "isup", "getload", "getspeed", "getmem", "getfree", "getutil", "block", "noblock", "lock", "unlock",
    "why", "setspeed", "stay", "nostay", "lstay", "nolstay",
    "quiet", "noquiet", "mask", "events", "pool", "expel", "bring", "pam", "doctor", "key", "reload", "completion",
]  # fmt: skip
TOOLS = {
    "migrate": lambda: help_of(migrate.main),
    "mosps": lambda: help_of(mosps.main),
    "mosrun": lambda: help_of(mosrun.main),
    "mosmon": lambda: help_of(mosmon.main),
    "mosctl": lambda: "".join(help_of(mosctl.main, *v) for v in ([], *([v] for v in VERBS))),
    "moslab": lambda: cli.parser().format_help() + "".join(help_of_verbs()),
    "omdiscd": lambda: help_of(omdiscd_main),
    "mospam": lambda: help_of(mospam_main),
}


def help_of_verbs() -> list[str]:
    return [help_of(lambda a: int(bool(cli.parser().parse_args(a))), verb) for verb in ("up", "run", "spawn", "status")]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_page_names_every_option_and_no_other(tool: str) -> None:
    page = (PAGES / f"{tool}.md").read_text()
    options = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", TOOLS[tool]())) - {"-h"}
    documented = set(re.findall(r"\*\*(--?[a-zA-Z][\w-]*)\*\*", page))
    assert options <= documented | {"--user"}
    assert documented <= options | {"-h", "-f"}


def test_the_verbs_of_mosctl_are_all_there() -> None:
    page = (PAGES / "mosctl.md").read_text()
    listed = re.findall(r"^    (\w+)(?: |$)", help_of(mosctl.main), re.MULTILINE)
    assert listed == VERBS and all(f"**{v}**" in page for v in listed)


@pytest.mark.parametrize("tool", TOOLS)
def test_pages_have_the_usual_sections(tool: str) -> None:
    page = (PAGES / f"{tool}.md").read_text()
    assert page.startswith(f"# {tool}(")
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"):
        assert f"## {section}\n" in page or (tool == "mosctl" and section == "DESCRIPTION")


def test_migrates_page_has_every_exit_status() -> None:
    page = (PAGES / "migrate.md").read_text()
    for error in (BadInput, CannotMove, MoveFailed, OutcomeUnknown, NotPermitted, NoDaemon):
        assert re.search(rf"^\| {error.exit_code} \| ", page, re.MULTILINE)
