# SPDX-License-Identifier: BSD-3-Clause
#
# Completion of lingerd(8) for bash, with bash-completion: to be installed as
# share/bash-completion/completions/lingerd. tests/manuals/completions.rs compares it with the program.

# Users, and after a colon groups, behind a prefix that stays.
_lingerd_accounts() { # prefix, what is being completed, the word without the prefix
    case $3 in
    *:*) mapfile -t COMPREPLY < <(compgen -P "$1${3%%:*}:" -g -- "${3#*:}") ;;
    *) mapfile -t COMPREPLY < <(compgen -P "$1" -u -- "$3") ;;
    esac
    __ltrim_colon_completions "$2"
}

_lingerd() {
    local cur prev words cword
    _init_completion -n : || return

    local daemon='-f -d -q -r -s -p -u -g -m -a -n -M -t -T -D -W -l'
    local options="$daemon -k -S -V -h" given='' word
    for word in "${words[@]:1:cword-1}"; do
        case $word in
        -k) options='-w -p -s' ;;
        -S) options='-s -o -i' ;;
        -V | -h) options='' ;;
        -s | -p) ;;
        -?*) [[ $options == *-k* ]] && options=$daemon ;;
        esac
        given+=" $word "
    done

    case $prev in
    -s | -p)
        _filedir
        return
        ;;
    -u)
        _lingerd_accounts '' "$cur" "$cur"
        return
        ;;
    -g)
        mapfile -t COMPREPLY < <(compgen -g -- "$cur")
        return
        ;;
    -a)
        local before=''
        [[ $cur == *,* ]] && before=${cur%,*},
        _lingerd_accounts "$before" "$cur" "${cur#"$before"}"
        compopt -o nospace
        return
        ;;
    -m)
        mapfile -t COMPREPLY < <(compgen -W '0600 0660 0666' -- "$cur")
        return
        ;;
    -l)
        mapfile -t COMPREPLY < <(compgen -W 'auth authpriv cron daemon ftp kern lpr mail news syslog user uucp
            local0 local1 local2 local3 local4 local5 local6 local7' -- "$cur")
        return
        ;;
    -o)
        mapfile -t COMPREPLY < <(compgen -W 'text json prometheus' -- "$cur")
        return
        ;;
    -n | -M | -t | -T | -D | -W | -i)
        return
        ;;
    esac

    # None twice, and of two that exclude each other one.
    for word in $options; do
        case $word in
        -d | -q) [[ $given == *' -d '* || $given == *' -q '* ]] && continue ;;
        -s | -p) [[ $options == '-w -p -s' && ($given == *' -s '* || $given == *' -p '*) ]] && continue ;;
        esac
        [[ $given == *" $word "* || $word != "$cur"* ]] || COMPREPLY+=("$word")
    done
} &&
    complete -F _lingerd lingerd
