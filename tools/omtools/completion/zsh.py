"""The script for zsh: a function of ``_arguments`` for each command and verb."""

from __future__ import annotations

from collections.abc import Iterable

from omtools.completion.model import DESTINATIONS, Command, Option, Place

HEAD = """\
#compdef {names}
# Completion of the commands of openMosix in userspace for zsh.  Made by `python -m omtools.manual` from the commands' parsers.
# Installed where zsh looks ($fpath) as _mig; else, after compinit: source <(mosctl completion zsh)

_mig_ask() {{ # nodes or processes, with what they are
    local -a found
    found=(${{(f)"$(mosctl completion $1 2>/dev/null)"}})
    found=(${{found//:/\\\\:}})
    found=(${{found/$'\\t'/:}})
    _describe -t $1 $1 found
}}
_mig_nodes() {{ _mig_ask nodes }}
_mig_processes() {{ _alternative 'guests:process of the pool:_mig_ask processes' 'processes:process:_pids' }}
_mig_destinations() {{ _alternative 'nodes:node:_mig_ask nodes' 'words:destination:({destinations})' }}
_mig_lists() {{ compset -P '*,'; _mig_ask nodes }}
"""

TAIL = """
_mig() {
    # the file of a function that zsh loads runs at its first call
    local -a _comp_priv_prefix
    _mig_$service "$@"
}

if [[ $funcstack[1] == _mig ]]; then _mig "$@"; else compdef _mig NAMES; fi
"""

ACTIONS = {"node": "_mig_nodes", "nodes": "_mig_lists", "destination": "_mig_destinations", "process": "_mig_processes", "file": "_files"}


def script(commands: Iterable[Command]) -> str:
    """The whole script."""
    all_commands = list(commands)
    names = " ".join(c.name for c in all_commands)
    out = [HEAD.format(names=names, destinations=" ".join(DESTINATIONS))]
    for c in all_commands:
        out.append(_function(c))
    out.append(TAIL.replace("NAMES", names))
    return "".join(out)


def _function(c: Command) -> str:
    if not c.verbs:
        return f"\n_mig_{c.name}() {{\n{_arguments(c, 4)}\n}}\n"
    verbs = "\n".join(f"        {_quote(f'{v.name}:{v.text}')}" for v in c.verbs)
    cases = "\n".join(f"                {v.name})\n{_arguments(v, 20)} ;;" for v in c.verbs)
    return f"""
_mig_{c.name}() {{
    local context state state_descr line
    typeset -A opt_args
    local -a verbs
    verbs=(
{verbs}
    )
{_arguments(c, 4, "-C", "'1:verb:->verb'", "'*::argument:->rest'")}
    case $state in
        verb) _describe -t verbs verb verbs ;;
        rest)
            case $words[1] in
{cases}
            esac ;;
    esac
}}
"""


def _arguments(c: Command, indent: int, *more: str) -> str:
    specs = [s for s in more if s == "-C"]
    specs += [spec for o in c.options for spec in _option(o)]
    specs += [_place(p, n) for n, p in enumerate(c.places, 1)]
    specs += [s for s in more if s != "-C"]
    pad = " " * indent
    return pad + f" \\\n{pad}    ".join(["_arguments", *specs])


def _option(o: Option) -> list[str]:
    value = f":{_escape(o.value.name)}:{_action(o.value)}" if o.value else ""
    others = f"({' '.join(o.names)})" if len(o.names) > 1 else ""
    return [_quote(f"{others}{name}[{_escape(o.text)}]{value}") for name in o.names]


def _place(p: Place, n: int) -> str:
    if p.kind == "command":
        return f"'(-){n}:command: _command_names -e' '*::arguments: _normal'"
    where = "*" if p.many else str(n)
    return _quote(f"{where}:{':' if p.optional and not p.many else ''}{_escape(p.name)}:{_action(p)}")


def _action(p: Place) -> str:
    return f"({' '.join(p.words)})" if p.kind == "words" else ACTIONS.get(p.kind, " ")


def _escape(text: str) -> str:
    for c in "\\:[]":
        text = text.replace(c, "\\" + c)
    return text


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
