"""The script for fish: a ``complete`` line for each option, verb and place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from omtools.completion.model import DESTINATIONS, Command, Option, Place

HEAD = """\
# Completion of the commands of openMosix in userspace for fish.  Made by `python -m omtools.manual` from the commands' parsers.
# Installed where fish looks, a file a command; else: mosctl completion fish | source

function __mig_at --description 'PLACE VALUED [VERB]: is the word of that number, without options and their values, being typed?'
    set -l words (commandline -opc)
    set -e words[1]
    set -l seen
    set -l skip 0
    for word in $words
        if test $skip = 1
            set skip 0
        else if string match -q -- '-?*' $word
            contains -- $word (string split , -- $argv[2]); and set skip 1
        else
            set -a seen $word
        end
    end
    test $skip = 0; or return 1
    if set -q argv[3]
        test "$seen[1]" = $argv[3]; or return 1
        set -e seen[1]
    end
    switch $argv[1]
        case '*+'
            test (math (count $seen) + 1) -ge (string trim -c + $argv[1])
        case any
            return 0
        case '*'
            test (math (count $seen) + 1) -eq $argv[1]
    end
end

function __mig_command --description 'BEFORE VALUED: complete the command that begins after so many words'
    set -l words (commandline -opc)
    set -e words[1]
    set -l left $argv[1]
    set -l skip 0
    while set -q words[1]
        if test $skip = 1
            set skip 0
        else if string match -q -- '-?*' $words[1]
            contains -- $words[1] (string split , -- $argv[2]); and set skip 1
        else if test $left -gt 0
            set left (math $left - 1)
        else
            break
        end
        set -e words[1]
    end
    complete -C (string join ' ' -- (string escape -- $words) (commandline -ct))
end

function __mig_nodes
    mosctl completion nodes 2>/dev/null
end

function __mig_processes
    mosctl completion processes 2>/dev/null
    __fish_complete_pids
end

function __mig_lists
    set -l before (string match -r '^.*,' -- (commandline -ct))
    for node in (__mig_nodes)
        echo $before$node
    end
end
"""

WORDS = {
    "node": "(__mig_nodes)", "nodes": "(__mig_lists)", "destination": f"(__mig_nodes) {' '.join(DESTINATIONS)}",
    "process": "(__mig_processes)", "none": "",
}  # fmt: skip


def script(commands: Iterable[Command]) -> str:
    """The whole script."""
    lines = [HEAD]
    for c in commands:
        lines += ["", f"complete -c {c.name} -f", *_lines(c, c.name, "")]
    return "\n".join([*lines, ""])


def _lines(c: Command, program: str, verb: str) -> Iterator[str]:
    valued = ",".join(n for o in c.options if o.value for n in o.names) or "-"
    place = f"__mig_at {{}} {valued}{f' {verb}' if verb else ''}"
    for o in c.options:
        yield f"complete -c {program} {_if(place, verb)}{_option(o)}"
    for v in c.verbs:
        yield f"complete -c {program} -n '{place.format(1)}' -a {v.name} -d {_quote(v.text)}"
    for v in c.verbs:
        yield from _lines(v, program, v.name)
    for n, p in enumerate(c.places, 1):
        words = f" -a '(__mig_command {n - 1 + bool(verb)} {valued})'" if p.kind == "command" else _offer(p)
        yield f"complete -c {program} -n '{place.format(f'{n}+' if p.many or p.kind == 'command' else n)}'{words}"


def _if(place: str, verb: str) -> str:
    return f"-n '{place.format('any')}' " if verb else ""


def _option(o: Option) -> str:
    names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in o.names)
    return f"{names}{(' -r' if o.value.kind == 'file' else ' -x') + _offer(o.value) if o.value else ''} -d {_quote(o.text)}"


def _offer(p: Place) -> str:
    if p.kind == "file":
        return " -F"
    words = " ".join(p.words) if p.kind == "words" else WORDS[p.kind]
    return f" -a {_quote(words)}" if words else ""


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
