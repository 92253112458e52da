# Completion of the commands of openMosix in userspace for bash.  Made by `python -m omtools.manual` from the commands' parsers.
# Installed where bash-completion looks; else: source <(mosctl completion bash)

# by command and verb: options; options that take a value, each with its kind; places, each with its kind; verbs
declare -gA _mig_options=(
    [migrate]='-h --help --version --dry-run --json --timeout --mode --free --own-sockets --limit'
    [mosrun]='-b -h -L -S -q -N -j -A --help --version'
    [mosps]='-h --help --version -a --all --json'
    [mosctl]='-h --help --version'
    ['mosctl status']='-h --help --json'
    ['mosctl whois']='-h --help --json'
    ['mosctl isup']='-h --help --json'
    ['mosctl getload']='-h --help --json'
    ['mosctl getspeed']='-h --help --json'
    ['mosctl getmem']='-h --help --json'
    ['mosctl getfree']='-h --help --json'
    ['mosctl getutil']='-h --help --json'
    ['mosctl block']='-h --help --json'
    ['mosctl noblock']='-h --help --json'
    ['mosctl lock']='-h --help --json'
    ['mosctl unlock']='-h --help --json'
    ['mosctl why']='-h --help --json'
    ['mosctl setspeed']='-h --help --json'
    ['mosctl stay']='-h --help --json'
    ['mosctl nostay']='-h --help --json'
    ['mosctl lstay']='-h --help --json'
    ['mosctl nolstay']='-h --help --json'
    ['mosctl quiet']='-h --help --json'
    ['mosctl noquiet']='-h --help --json'
    ['mosctl mask']='-h --help --json'
    ['mosctl events']='-h --help --follow --pool --since --json'
    ['mosctl pool']='-h --help --json'
    ['mosctl expel']='-h --help --fast --json'
    ['mosctl bring']='-h --help --json'
    ['mosctl pam']='-h --help --json'
    ['mosctl doctor']='-h --help --json'
    ['mosctl key']='-h --help --json'
    ['mosctl reload']='-h --help --json'
    ['mosctl completion']='-h --help --json'
    [mosmon]='-h --help --version -w -v -V -a -l -L -s -m -r -u -d -t --view'
    [moslab]='-h --help --version --lab'
    ['moslab up']='-h --help --link --speed --cpus --set --no-wait'
    ['moslab run']='-h --help -u --user'
    ['moslab spawn']='-h --help -u --user'
    ['moslab start']='-h --help --no-wait'
    ['moslab restart-daemon']='-h --help --no-wait'
    ['moslab kill']='-h --help'
    ['moslab cut']='-h --help'
    ['moslab heal']='-h --help'
    ['moslab status']='-h --help --json'
    ['moslab down']='-h --help'
    [omdiscd]='-h --help -i -n -c --check-config --print-config --print-unit --debug --version'
)
declare -gA _mig_valued=(
    [migrate]='--timeout=none --mode=words:auto,pre-copy,pre-copy-only,post-copy,full --limit=none'
    [mosrun]='-N=node -j=nodes -A=none'
    ['mosctl events']=--since=none
    [mosmon]=--view=words:chart,processes,nodes,events
    [moslab]=--lab=none
    ['moslab up']='--link=none --speed=none --cpus=none --set=none'
    ['moslab run']='-u=none --user=none'
    ['moslab spawn']='-u=none --user=none'
    [omdiscd]='-i=none -c=file'
)
declare -gA _mig_places=(
    [migrate]='process destination'
    [mosrun]=command
    ['mosctl status']=node
    ['mosctl whois']=node
    ['mosctl isup']=node
    ['mosctl getload']=node
    ['mosctl getspeed']=node
    ['mosctl getmem']=node
    ['mosctl getfree']=node
    ['mosctl getutil']=node
    ['mosctl block']=node
    ['mosctl noblock']=node
    ['mosctl lock']=process
    ['mosctl unlock']=process
    ['mosctl why']=process
    ['mosctl setspeed']=none
    ['mosctl mask']='process nodes'
    ['mosctl expel']=node
    ['mosctl pam']='words:install,remove,show file*'
    ['mosctl key']='words:new,show,install,use,drop file'
    ['mosctl completion']=words:bash,zsh,fish,nodes,processes
    [mosmon]=none
    ['moslab up']=none
    ['moslab run']='node command'
    ['moslab spawn']='node command'
    ['moslab start']=node
    ['moslab restart-daemon']=node
    ['moslab kill']=node
    ['moslab cut']=node
    ['moslab heal']=node
)
declare -gA _mig_verbs=(
    [mosctl]='status whois isup getload getspeed getmem getfree getutil block noblock lock unlock why setspeed stay nostay lstay nolstay quiet noquiet mask events pool expel bring pam doctor key reload completion'
    [moslab]='up run spawn start restart-daemon kill cut heal status down'
)

_mig_offer() { # KIND: add what a place of this kind takes and what is typed begins with
    local cur=${COMP_WORDS[COMP_CWORD]} before="" kind=${1%\*}
    case $kind in
        node) kind=$(mosctl completion nodes 2>/dev/null | cut -f1) ;;
        nodes) # a list with commas: the last of them is being typed
            kind=$(mosctl completion nodes 2>/dev/null | cut -f1)
            [[ $cur == *,* ]] && before=${cur%,*}, && cur=${cur##*,} ;;
        destination) kind="$(mosctl completion nodes 2>/dev/null | cut -f1) home balance" ;;
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

complete -F _mig_complete migrate mosrun mosps mosctl mosmon moslab omdiscd
