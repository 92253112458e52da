"""The script for bash: tables of what can be typed, and one function that reads them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from omtools.completion.model import DESTINATIONS, Command, Place

HEAD = """\
# Completion of the commands of openMosix in userspace for bash.  Made by `python -m omtools.manual` from the commands' parsers.
# Installed where bash-completion looks; else: source <(mosctl completion bash)

# by command and verb: options; options that take a value, each with its kind; places, each with its kind; verbs
"""

ENGINE = r"""
_mig_offer() { # KIND: add what a place of this kind takes and what is typed begins with
    local cur=${COMP_WORDS[COMP_CWORD]} before="" kind=${1%\*}
    case $kind in
        node) kind=$(mosctl completion nodes 2>/dev/null | cut -f1) ;;
        nodes) # a list with commas: the last of them is being typed
            kind=$(mosctl completion nodes 2>/dev/null | cut -f1)
            [[ $cur == *,* ]] && before=${cur%,*}, && cur=${cur##*,} ;;
        destination) kind="$(mosctl completion nodes 2>/dev/null | cut -f1) @DESTINATIONS@" ;;
        process) kind="$(mosctl completion processes 2>/dev/null | cut -f1) $(compgen -W "$(jobs -p)")" ;;
        file) compopt -o filenames; mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$cur"); return ;;
        words:*) kind=${kind#words:}; kind=${kind//,/ } ;;
        *) return ;;
    esac
    mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -P "$before" -W "$kind" -- "$cur")
}

_mig_complete() {
    local path=$1 cur=${COMP_WORDS[COMP_CWORD]} word value="" i place=0
    local -a places
    path=${path##*/}
    COMPREPLY=()
    read -ra places <<< "${_mig_places[$path]}"
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $value ]]; then value=""; continue; fi
        if [[ $word == -?* ]]; then
            value=$(_mig_value "$path" "$word")
        elif [[ ${_mig_verbs[$path]} ]]; then
            path+=" $word"
            read -ra places <<< "${_mig_places[$path]}"
        elif [[ ${places[place]} == command ]]; then
            _mig_command $i; return
        elif [[ ${places[place]} != *\* ]]; then
            ((place++))
        fi
    done
    if [[ $value ]]; then
        _mig_offer "$value"
    elif [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${_mig_options[$path]}" -- "$cur")
    elif [[ ${_mig_verbs[$path]} ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${_mig_verbs[$path]}" -- "$cur")
    elif [[ ${places[place]} == command ]]; then
        mapfile -t COMPREPLY < <(compgen -c -- "$cur")
    else
        _mig_offer "${places[place]:-none}"
    fi
}

_mig_value() { # PATH OPTION: the kind of its value, empty when it has none
    local pair
    for pair in ${_mig_valued[$1]}; do
        [[ $pair == "$2="* ]] && echo "${pair#*=}" && return
    done
}

_mig_command() { # N: the words from the N-th on are another command
    if declare -F _command_offset > /dev/null; then _command_offset "$1"
    else compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"); fi
}
"""


def script(commands: Iterable[Command]) -> str:
    """The whole script."""
    all_commands = list(commands)
    tables: dict[str, dict[str, str]] = {"options": {}, "valued": {}, "places": {}, "verbs": {}}
    for c in all_commands:
        _tell(c, c.name, tables)
    out = [HEAD]
    for table, rows in tables.items():
        cells = "\n".join(f"    [{shlex.quote(k)}]={shlex.quote(v)}" for k, v in rows.items() if v)
        out.append(f"declare -gA _mig_{table}=(\n{cells}\n)\n")
    out.append(ENGINE.replace("@DESTINATIONS@", " ".join(DESTINATIONS)))
    out.append(f"\ncomplete -F _mig_complete {' '.join(c.name for c in all_commands)}\n")
    return "".join(out)


def _tell(c: Command, path: str, tables: dict[str, dict[str, str]]) -> None:
    tables["options"][path] = " ".join(n for o in c.options for n in o.names)
    tables["valued"][path] = " ".join(f"{n}={_kind(o.value)}" for o in c.options if o.value for n in o.names)
    tables["places"][path] = " ".join(_kind(p) for p in c.places)
    tables["verbs"][path] = " ".join(v.name for v in c.verbs)
    for v in c.verbs:
        _tell(v, f"{path} {v.name}", tables)


def _kind(p: Place) -> str:
    kind = f"words:{','.join(p.words)}" if p.kind == "words" else p.kind
    return kind + ("*" if p.many and kind != "command" else "")
