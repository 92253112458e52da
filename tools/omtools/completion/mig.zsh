#compdef migrate mosrun mosps mosctl mosmon moslab omdiscd
# Completion of the commands of openMosix in userspace for zsh.  Made by `python -m omtools.manual` from the commands' parsers.
# Installed where zsh looks ($fpath) as _mig; else, after compinit: source <(mosctl completion zsh)

_mig_ask() { # nodes or processes, with what they are
    local -a found
    found=(${(f)"$(mosctl completion $1 2>/dev/null)"})
    found=(${found//:/\\:})
    found=(${found/$'\t'/:})
    _describe -t $1 $1 found
}
_mig_nodes() { _mig_ask nodes }
_mig_processes() { _alternative 'guests:process of the pool:_mig_ask processes' 'processes:process:_pids' }
_mig_destinations() { _alternative 'nodes:node:_mig_ask nodes' 'words:destination:(home balance)' }
_mig_lists() { compset -P '*,'; _mig_ask nodes }

_mig_migrate() {
    _arguments \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--version[show program'\''s version number and exit]' \
        '--dry-run[say what would be done, and every reason against it; touch nothing]' \
        '--json[print pid, from, to, pause_ms, total_ms, bytes, rounds, mode as JSON]' \
        '--timeout[give up, and roll back, after so many seconds]:S: ' \
        '--mode[how its memory travels\: pre-copy, pre-copy-only (nothing after the pause), post-copy, full (all in the pause); default\: auto]:mode:(auto pre-copy pre-copy-only post-copy full)' \
        '--free[the balancer may move it on at once, not only after hand_hold_s (omdiscd.toml)]' \
        '--own-sockets[the named unix sockets that it listens on are for its own processes alone\: they go along (once said, always)]' \
        '--limit[megabits a second at the most for what is sent before the pause]:MBIT: ' \
        '1:PID:_mig_processes' \
        '2:{NODE|home|balance}:_mig_destinations'
}

_mig_mosrun() {
    _arguments \
        '-b[on the best node at once, before its first instruction]' \
        '-h[at home\: it is never moved by itself]' \
        '-L[locked\: it stays where it starts; migrate still moves it]' \
        '-S[its named unix sockets are for its own processes\: they go along]' \
        '-q[quiet\: do not warn when no omdiscd answers, or options do nothing]' \
        '-N[on this node at once]:NODE:_mig_nodes' \
        '-j[on the best of these nodes, given as n1,n2,…]:NODES:_mig_lists' \
        '-A[periodic checkpoints (not built yet)]:MINUTES: ' \
        '--help[print help]' \
        '--version[print the version]' \
        '(-)1:command: _command_names -e' '*::arguments: _normal'
}

_mig_mosps() {
    _arguments \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--version[show program'\''s version number and exit]' \
        '(-a --all)-a[those of all users (root sees them anyway)]' \
        '(-a --all)--all[those of all users (root sees them anyway)]' \
        '--json[print a list of objects\: pid, home, where, state, nmigs, locked, cantmove, cpu_s, rss, uid, comm, arriving, holder, waiting_for, waiting_s]'
}

_mig_mosctl() {
    local context state state_descr line
    typeset -A opt_args
    local -a verbs
    verbs=(
        'status:show every node of the pool, or one'
        'whois:tell id, name and address of a node'
        'isup:tell whether a node is up: prints yes or no; exit status 0 or 1'
        'getload:print a node'\''s load, in processes per standard CPU'
        'getspeed:print a node'\''s speed, relative to a standard CPU'
        'getmem:print the bytes that a node can give to programs'
        'getfree:print the bytes of a node'\''s memory that nothing uses, not even caches; -1: it does not tell'
        'getutil:print a node'\''s utilizability: per cent of the last 10 s not lost to waiting for memory'
        'block:let no more guests come to a node; those that are there stay'
        'noblock:let guests come to a node again'
        'lock:let a process not be moved by itself; migrate still moves it'
        'unlock:let a process be moved again'
        'why:tell what each node would cost a process, and why it stays or goes'
        'setspeed:set this node'\''s speed until the next boot, relative to a standard CPU; 0: as measured'
        'stay:let nothing leave this node by itself'
        'nostay:let processes leave this node by themselves again'
        'lstay:let none of this node'\''s own processes leave by themselves; guests may'
        'nolstay:let this node'\''s own processes leave by themselves again'
        'quiet:tell no new load and decide nothing here'
        'noquiet:tell the load and decide again'
        'mask:name the only nodes on which a process may run; it is not moved now'
        'events:show what moved where and why, the latest last'
        'pool:tell whether this node is in the pool, why not, who is logged in, and when it is back'
        'expel:let no more guests come to a node, and wait until all that are there have left'
        'bring:bring all guests whose home is this node back home, and wait for them'
        'pam:install, remove or show the line by which PAM tells omdiscd of logins'
        'doctor:tell what this machine can and cannot do, each line with its remedy; exit status 1 if something fails'
        'key:make, show, install or change the cluster'\''s key; the manual tells how a pool changes its key without a stop'
        'reload:let omdiscd read its configuration and keys again; it says what changed, and what needs a restart'
        'completion:print the script by which a shell completes the words of all commands'
    )
    _arguments \
        -C \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--version[show program'\''s version number and exit]' \
        '1:verb:->verb' \
        '*::argument:->rest'
    case $state in
        verb) _describe -t verbs verb verbs ;;
        rest)
            case $words[1] in
                status)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1::NODE:_mig_nodes' ;;
                whois)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1::NODE:_mig_nodes' ;;
                isup)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1::NODE:_mig_nodes' ;;
                getload)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1::NODE:_mig_nodes' ;;
                getspeed)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1::NODE:_mig_nodes' ;;
                getmem)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1::NODE:_mig_nodes' ;;
                getfree)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1::NODE:_mig_nodes' ;;
                getutil)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1::NODE:_mig_nodes' ;;
                block)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1::NODE:_mig_nodes' ;;
                noblock)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1::NODE:_mig_nodes' ;;
                lock)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1:PID:_mig_processes' ;;
                unlock)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1:PID:_mig_processes' ;;
                why)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1:PID:_mig_processes' ;;
                setspeed)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1:SPEED: ' ;;
                stay)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' ;;
                nostay)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' ;;
                lstay)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' ;;
                nolstay)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' ;;
                quiet)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' ;;
                noquiet)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' ;;
                mask)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1:PID:_mig_processes' \
                        '2:NODES:_mig_lists' ;;
                events)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--follow[(-f) go on and print events as they happen]' \
                        '--pool[those of all nodes, each with the name of its node]' \
                        '--since[only those of the last S seconds]:S: ' \
                        '--json[print JSON]' ;;
                pool)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' ;;
                expel)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--fast[all home at once, without asking who would be best\: the machine is about to go down]' \
                        '--json[print JSON]' \
                        '1::NODE:_mig_nodes' ;;
                bring)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' ;;
                pam)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1:action:(install remove show)' \
                        '*:FILE:_files' ;;
                doctor)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' ;;
                key)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1:action:(new show install use drop)' \
                        '2::FILE:_files' ;;
                reload)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' ;;
                completion)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[print JSON]' \
                        '1:what:(bash zsh fish nodes processes)' ;;
            esac ;;
    esac
}

_mig_mosmon() {
    _arguments \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--version[show program'\''s version number and exit]' \
        '-w[wide numbering of the nodes]' \
        '-v[vertical numbering]' \
        '-V[tight vertical numbering]' \
        '-a[automatic numbering (default)]' \
        '-l[show load (default)]' \
        '-L[show load on a log scale]' \
        '-s[show speed, and the number of CPUs]' \
        '-m[show memory]' \
        '-r[show raw memory]' \
        '-u[show utilizability]' \
        '-d[show dead nodes too]' \
        '-t[show totals]' \
        '--view[begin with this view]:view:(chart processes nodes events)' \
        '1::+N: '
}

_mig_moslab() {
    local context state state_descr line
    typeset -A opt_args
    local -a verbs
    verbs=(
        'up:make a lab'
        'run:run a command in a node and wait for it'
        'spawn:start a command in a node; print its PID there'
        'start:boot a node after kill: same disk, fresh /run'
        'restart-daemon:end the node'\''s omdiscd if it runs, and start it'
        'kill:power loss: every process of the node is gone, its network too'
        'cut:the node'\''s link loses every packet; the node does not notice'
        'heal:the node'\''s link is whole again'
        'status:the lab'\''s nodes'
        'down:remove a lab, whole or broken; nothing is left'
    )
    _arguments \
        -C \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--version[show program'\''s version number and exit]' \
        '--lab[which lab (default\: $MOSLAB, else '\''lab'\'')]:NAME: ' \
        '1:verb:->verb' \
        '*::argument:->rest'
    case $state in
        verb) _describe -t verbs verb verbs ;;
        rest)
            case $words[1] in
                up)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--link[speed of each node'\''s link, as 1gbit or 100mbit (default\: unlimited)]:RATE: ' \
                        '--speed[give a node this share of a node'\''s CPU time (0.01-1)]:NODE=X: ' \
                        '--cpus[CPUs that each node may use (default\: 0.9 x cores / N)]:X: ' \
                        '--set[setting of every omdiscd.toml]:KEY=VALUE: ' \
                        '--no-wait[return without waiting until the daemons see each other]' \
                        '1::N: ' ;;
                run)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '(-u --user)-u[as this user\: a number or a name (default\: root)]:UID: ' \
                        '(-u --user)--user[as this user\: a number or a name (default\: root)]:UID: ' \
                        '1:NODE:_mig_nodes' \
                        '(-)2:command: _command_names -e' '*::arguments: _normal' ;;
                spawn)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '(-u --user)-u[as this user\: a number or a name (default\: root)]:UID: ' \
                        '(-u --user)--user[as this user\: a number or a name (default\: root)]:UID: ' \
                        '1:NODE:_mig_nodes' \
                        '(-)2:command: _command_names -e' '*::arguments: _normal' ;;
                start)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--no-wait[return without waiting until the daemons see each other]' \
                        '1:NODE:_mig_nodes' ;;
                restart-daemon)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--no-wait[return without waiting until the daemons see each other]' \
                        '1:NODE:_mig_nodes' ;;
                kill)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '1:NODE:_mig_nodes' ;;
                cut)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '1:NODE:_mig_nodes' ;;
                heal)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '1:NODE:_mig_nodes' ;;
                status)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' \
                        '--json[for programs]' ;;
                down)
                    _arguments \
                        '(-h --help)-h[show this help message and exit]' \
                        '(-h --help)--help[show this help message and exit]' ;;
            esac ;;
    esac
}

_mig_omdiscd() {
    _arguments \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '-i[interfaces on which to look for other nodes]:IF\[,IF\]: ' \
        '-n[stay in the foreground (it always does; accepted as in openMosix)]' \
        '-c[configuration file (default\: /etc/mig/omdiscd.toml)]:FILE:_files' \
        '--check-config[print the configuration as understood and exit; status 2 when it is not valid]' \
        '--print-config[print a configuration file with every key, its default and what it means]' \
        '--print-unit[print a unit for systemd that runs this omdiscd]' \
        '--debug[log more]' \
        '--version[show program'\''s version number and exit]'
}

_mig() {
    # the file of a function that zsh loads runs at its first call
    local -a _comp_priv_prefix
    _mig_$service "$@"
}

if [[ $funcstack[1] == _mig ]]; then _mig "$@"; else compdef _mig migrate mosrun mosps mosctl mosmon moslab omdiscd; fi
