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


complete -c migrate -f
complete -c migrate -s h -l help -d 'show this help message and exit'
complete -c migrate -l version -d 'show program\'s version number and exit'
complete -c migrate -l dry-run -d 'say what would be done, and every reason against it; touch nothing'
complete -c migrate -l json -d 'print pid, from, to, pause_ms, total_ms, bytes, rounds, mode as JSON'
complete -c migrate -l timeout -x -d 'give up, and roll back, after so many seconds'
complete -c migrate -l mode -x -a 'auto pre-copy pre-copy-only post-copy full' -d 'how its memory travels: pre-copy, pre-copy-only (nothing after the pause), post-copy, full (all in the pause); default: auto'
complete -c migrate -l free -d 'the balancer may move it on at once, not only after hand_hold_s (omdiscd.toml)'
complete -c migrate -l own-sockets -d 'the named unix sockets that it listens on are for its own processes alone: they go along (once said, always)'
complete -c migrate -l limit -x -d 'megabits a second at the most for what is sent before the pause'
complete -c migrate -n '__mig_at 1 --timeout,--mode,--limit' -a '(__mig_processes)'
complete -c migrate -n '__mig_at 2 --timeout,--mode,--limit' -a '(__mig_nodes) home balance'

complete -c mosrun -f
complete -c mosrun -s b -d 'on the best node at once, before its first instruction'
complete -c mosrun -s h -d 'at home: it is never moved by itself'
complete -c mosrun -s L -d 'locked: it stays where it starts; migrate still moves it'
complete -c mosrun -s S -d 'its named unix sockets are for its own processes: they go along'
complete -c mosrun -s q -d 'quiet: do not warn when no omdiscd answers, or options do nothing'
complete -c mosrun -s N -x -a '(__mig_nodes)' -d 'on this node at once'
complete -c mosrun -s j -x -a '(__mig_lists)' -d 'on the best of these nodes, given as n1,n2,…'
complete -c mosrun -s A -x -d 'periodic checkpoints (not built yet)'
complete -c mosrun -l help -d 'print help'
complete -c mosrun -l version -d 'print the version'
complete -c mosrun -n '__mig_at 1+ -N,-j,-A' -a '(__mig_command 0 -N,-j,-A)'

complete -c mosps -f
complete -c mosps -s h -l help -d 'show this help message and exit'
complete -c mosps -l version -d 'show program\'s version number and exit'
complete -c mosps -s a -l all -d 'those of all users (root sees them anyway)'
complete -c mosps -l json -d 'print a list of objects: pid, home, where, state, nmigs, locked, cantmove, cpu_s, rss, uid, comm, arriving, holder, waiting_for, waiting_s'

complete -c mosctl -f
complete -c mosctl -s h -l help -d 'show this help message and exit'
complete -c mosctl -l version -d 'show program\'s version number and exit'
complete -c mosctl -n '__mig_at 1 -' -a status -d 'show every node of the pool, or one'
complete -c mosctl -n '__mig_at 1 -' -a whois -d 'tell id, name and address of a node'
complete -c mosctl -n '__mig_at 1 -' -a isup -d 'tell whether a node is up: prints yes or no; exit status 0 or 1'
complete -c mosctl -n '__mig_at 1 -' -a getload -d 'print a node\'s load, in processes per standard CPU'
complete -c mosctl -n '__mig_at 1 -' -a getspeed -d 'print a node\'s speed, relative to a standard CPU'
complete -c mosctl -n '__mig_at 1 -' -a getmem -d 'print the bytes that a node can give to programs'
complete -c mosctl -n '__mig_at 1 -' -a getfree -d 'print the bytes of a node\'s memory that nothing uses, not even caches; -1: it does not tell'
complete -c mosctl -n '__mig_at 1 -' -a getutil -d 'print a node\'s utilizability: per cent of the last 10 s not lost to waiting for memory'
complete -c mosctl -n '__mig_at 1 -' -a block -d 'let no more guests come to a node; those that are there stay'
complete -c mosctl -n '__mig_at 1 -' -a noblock -d 'let guests come to a node again'
complete -c mosctl -n '__mig_at 1 -' -a lock -d 'let a process not be moved by itself; migrate still moves it'
complete -c mosctl -n '__mig_at 1 -' -a unlock -d 'let a process be moved again'
complete -c mosctl -n '__mig_at 1 -' -a why -d 'tell what each node would cost a process, and why it stays or goes'
complete -c mosctl -n '__mig_at 1 -' -a setspeed -d 'set this node\'s speed until the next boot, relative to a standard CPU; 0: as measured'
complete -c mosctl -n '__mig_at 1 -' -a stay -d 'let nothing leave this node by itself'
complete -c mosctl -n '__mig_at 1 -' -a nostay -d 'let processes leave this node by themselves again'
complete -c mosctl -n '__mig_at 1 -' -a lstay -d 'let none of this node\'s own processes leave by themselves; guests may'
complete -c mosctl -n '__mig_at 1 -' -a nolstay -d 'let this node\'s own processes leave by themselves again'
complete -c mosctl -n '__mig_at 1 -' -a quiet -d 'tell no new load and decide nothing here'
complete -c mosctl -n '__mig_at 1 -' -a noquiet -d 'tell the load and decide again'
complete -c mosctl -n '__mig_at 1 -' -a mask -d 'name the only nodes on which a process may run; it is not moved now'
complete -c mosctl -n '__mig_at 1 -' -a events -d 'show what moved where and why, the latest last'
complete -c mosctl -n '__mig_at 1 -' -a pool -d 'tell whether this node is in the pool, why not, who is logged in, and when it is back'
complete -c mosctl -n '__mig_at 1 -' -a expel -d 'let no more guests come to a node, and wait until all that are there have left'
complete -c mosctl -n '__mig_at 1 -' -a bring -d 'bring all guests whose home is this node back home, and wait for them'
complete -c mosctl -n '__mig_at 1 -' -a pam -d 'install, remove or show the line by which PAM tells omdiscd of logins'
complete -c mosctl -n '__mig_at 1 -' -a doctor -d 'tell what this machine can and cannot do, each line with its remedy; exit status 1 if something fails'
complete -c mosctl -n '__mig_at 1 -' -a key -d 'make, show, install or change the cluster\'s key; the manual tells how a pool changes its key without a stop'
complete -c mosctl -n '__mig_at 1 -' -a reload -d 'let omdiscd read its configuration and keys again; it says what changed, and what needs a restart'
complete -c mosctl -n '__mig_at 1 -' -a completion -d 'print the script by which a shell completes the words of all commands'
complete -c mosctl -n '__mig_at any - status' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - status' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - status' -a '(__mig_nodes)'
complete -c mosctl -n '__mig_at any - whois' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - whois' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - whois' -a '(__mig_nodes)'
complete -c mosctl -n '__mig_at any - isup' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - isup' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - isup' -a '(__mig_nodes)'
complete -c mosctl -n '__mig_at any - getload' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - getload' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - getload' -a '(__mig_nodes)'
complete -c mosctl -n '__mig_at any - getspeed' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - getspeed' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - getspeed' -a '(__mig_nodes)'
complete -c mosctl -n '__mig_at any - getmem' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - getmem' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - getmem' -a '(__mig_nodes)'
complete -c mosctl -n '__mig_at any - getfree' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - getfree' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - getfree' -a '(__mig_nodes)'
complete -c mosctl -n '__mig_at any - getutil' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - getutil' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - getutil' -a '(__mig_nodes)'
complete -c mosctl -n '__mig_at any - block' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - block' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - block' -a '(__mig_nodes)'
complete -c mosctl -n '__mig_at any - noblock' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - noblock' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - noblock' -a '(__mig_nodes)'
complete -c mosctl -n '__mig_at any - lock' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - lock' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - lock' -a '(__mig_processes)'
complete -c mosctl -n '__mig_at any - unlock' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - unlock' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - unlock' -a '(__mig_processes)'
complete -c mosctl -n '__mig_at any - why' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - why' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - why' -a '(__mig_processes)'
complete -c mosctl -n '__mig_at any - setspeed' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - setspeed' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - setspeed'
complete -c mosctl -n '__mig_at any - stay' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - stay' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at any - nostay' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - nostay' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at any - lstay' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - lstay' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at any - nolstay' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - nolstay' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at any - quiet' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - quiet' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at any - noquiet' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - noquiet' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at any - mask' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - mask' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - mask' -a '(__mig_processes)'
complete -c mosctl -n '__mig_at 2 - mask' -a '(__mig_lists)'
complete -c mosctl -n '__mig_at any --since events' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any --since events' -l follow -d '(-f) go on and print events as they happen'
complete -c mosctl -n '__mig_at any --since events' -l pool -d 'those of all nodes, each with the name of its node'
complete -c mosctl -n '__mig_at any --since events' -l since -x -d 'only those of the last S seconds'
complete -c mosctl -n '__mig_at any --since events' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at any - pool' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - pool' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at any - expel' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - expel' -l fast -d 'all home at once, without asking who would be best: the machine is about to go down'
complete -c mosctl -n '__mig_at any - expel' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - expel' -a '(__mig_nodes)'
complete -c mosctl -n '__mig_at any - bring' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - bring' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at any - pam' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - pam' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - pam' -a 'install remove show'
complete -c mosctl -n '__mig_at 2+ - pam' -F
complete -c mosctl -n '__mig_at any - doctor' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - doctor' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at any - key' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - key' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - key' -a 'new show install use drop'
complete -c mosctl -n '__mig_at 2 - key' -F
complete -c mosctl -n '__mig_at any - reload' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - reload' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at any - completion' -s h -l help -d 'show this help message and exit'
complete -c mosctl -n '__mig_at any - completion' -l json -d 'print JSON'
complete -c mosctl -n '__mig_at 1 - completion' -a 'bash zsh fish nodes processes'

complete -c mosmon -f
complete -c mosmon -s h -l help -d 'show this help message and exit'
complete -c mosmon -l version -d 'show program\'s version number and exit'
complete -c mosmon -s w -d 'wide numbering of the nodes'
complete -c mosmon -s v -d 'vertical numbering'
complete -c mosmon -s V -d 'tight vertical numbering'
complete -c mosmon -s a -d 'automatic numbering (default)'
complete -c mosmon -s l -d 'show load (default)'
complete -c mosmon -s L -d 'show load on a log scale'
complete -c mosmon -s s -d 'show speed, and the number of CPUs'
complete -c mosmon -s m -d 'show memory'
complete -c mosmon -s r -d 'show raw memory'
complete -c mosmon -s u -d 'show utilizability'
complete -c mosmon -s d -d 'show dead nodes too'
complete -c mosmon -s t -d 'show totals'
complete -c mosmon -l view -x -a 'chart processes nodes events' -d 'begin with this view'
complete -c mosmon -n '__mig_at 1 --view'

complete -c moslab -f
complete -c moslab -s h -l help -d 'show this help message and exit'
complete -c moslab -l version -d 'show program\'s version number and exit'
complete -c moslab -l lab -x -d 'which lab (default: $MOSLAB, else \'lab\')'
complete -c moslab -n '__mig_at 1 --lab' -a up -d 'make a lab'
complete -c moslab -n '__mig_at 1 --lab' -a run -d 'run a command in a node and wait for it'
complete -c moslab -n '__mig_at 1 --lab' -a spawn -d 'start a command in a node; print its PID there'
complete -c moslab -n '__mig_at 1 --lab' -a start -d 'boot a node after kill: same disk, fresh /run'
complete -c moslab -n '__mig_at 1 --lab' -a restart-daemon -d 'end the node\'s omdiscd if it runs, and start it'
complete -c moslab -n '__mig_at 1 --lab' -a kill -d 'power loss: every process of the node is gone, its network too'
complete -c moslab -n '__mig_at 1 --lab' -a cut -d 'the node\'s link loses every packet; the node does not notice'
complete -c moslab -n '__mig_at 1 --lab' -a heal -d 'the node\'s link is whole again'
complete -c moslab -n '__mig_at 1 --lab' -a status -d 'the lab\'s nodes'
complete -c moslab -n '__mig_at 1 --lab' -a down -d 'remove a lab, whole or broken; nothing is left'
complete -c moslab -n '__mig_at any --link,--speed,--cpus,--set up' -s h -l help -d 'show this help message and exit'
complete -c moslab -n '__mig_at any --link,--speed,--cpus,--set up' -l link -x -d 'speed of each node\'s link, as 1gbit or 100mbit (default: unlimited)'
complete -c moslab -n '__mig_at any --link,--speed,--cpus,--set up' -l speed -x -d 'give a node this share of a node\'s CPU time (0.01-1)'
complete -c moslab -n '__mig_at any --link,--speed,--cpus,--set up' -l cpus -x -d 'CPUs that each node may use (default: 0.9 x cores / N)'
complete -c moslab -n '__mig_at any --link,--speed,--cpus,--set up' -l set -x -d 'setting of every omdiscd.toml'
complete -c moslab -n '__mig_at any --link,--speed,--cpus,--set up' -l no-wait -d 'return without waiting until the daemons see each other'
complete -c moslab -n '__mig_at 1 --link,--speed,--cpus,--set up'
complete -c moslab -n '__mig_at any -u,--user run' -s h -l help -d 'show this help message and exit'
complete -c moslab -n '__mig_at any -u,--user run' -s u -l user -x -d 'as this user: a number or a name (default: root)'
complete -c moslab -n '__mig_at 1 -u,--user run' -a '(__mig_nodes)'
complete -c moslab -n '__mig_at 2+ -u,--user run' -a '(__mig_command 2 -u,--user)'
complete -c moslab -n '__mig_at any -u,--user spawn' -s h -l help -d 'show this help message and exit'
complete -c moslab -n '__mig_at any -u,--user spawn' -s u -l user -x -d 'as this user: a number or a name (default: root)'
complete -c moslab -n '__mig_at 1 -u,--user spawn' -a '(__mig_nodes)'
complete -c moslab -n '__mig_at 2+ -u,--user spawn' -a '(__mig_command 2 -u,--user)'
complete -c moslab -n '__mig_at any - start' -s h -l help -d 'show this help message and exit'
complete -c moslab -n '__mig_at any - start' -l no-wait -d 'return without waiting until the daemons see each other'
complete -c moslab -n '__mig_at 1 - start' -a '(__mig_nodes)'
complete -c moslab -n '__mig_at any - restart-daemon' -s h -l help -d 'show this help message and exit'
complete -c moslab -n '__mig_at any - restart-daemon' -l no-wait -d 'return without waiting until the daemons see each other'
complete -c moslab -n '__mig_at 1 - restart-daemon' -a '(__mig_nodes)'
complete -c moslab -n '__mig_at any - kill' -s h -l help -d 'show this help message and exit'
complete -c moslab -n '__mig_at 1 - kill' -a '(__mig_nodes)'
complete -c moslab -n '__mig_at any - cut' -s h -l help -d 'show this help message and exit'
complete -c moslab -n '__mig_at 1 - cut' -a '(__mig_nodes)'
complete -c moslab -n '__mig_at any - heal' -s h -l help -d 'show this help message and exit'
complete -c moslab -n '__mig_at 1 - heal' -a '(__mig_nodes)'
complete -c moslab -n '__mig_at any - status' -s h -l help -d 'show this help message and exit'
complete -c moslab -n '__mig_at any - status' -l json -d 'for programs'
complete -c moslab -n '__mig_at any - down' -s h -l help -d 'show this help message and exit'

complete -c omdiscd -f
complete -c omdiscd -s h -l help -d 'show this help message and exit'
complete -c omdiscd -s i -x -d 'interfaces on which to look for other nodes'
complete -c omdiscd -s n -d 'stay in the foreground (it always does; accepted as in openMosix)'
complete -c omdiscd -s c -r -F -d 'configuration file (default: /etc/mig/omdiscd.toml)'
complete -c omdiscd -l check-config -d 'print the configuration as understood and exit; status 2 when it is not valid'
complete -c omdiscd -l print-config -d 'print a configuration file with every key, its default and what it means'
complete -c omdiscd -l print-unit -d 'print a unit for systemd that runs this omdiscd'
complete -c omdiscd -l debug -d 'log more'
complete -c omdiscd -l version -d 'show program\'s version number and exit'
