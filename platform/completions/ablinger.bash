# SPDX-License-Identifier: BSD-3-Clause
#
# Completion of ablinger(1) for bash, with bash-completion: to be installed as
# share/bash-completion/completions/ablinger. tests/manuals/completions.rs compares it with the program.

_ablinger() {
    local cur prev words cword
    _init_completion -n : || return

    case $prev in
    -o)
        mapfile -t COMPREPLY < <(compgen -W 'text json' -- "$cur")
        return
        ;;
    -c | -n | -t | -l | -s)
        return
        ;;
    esac

    local given=" ${words[*]:1:cword-1} " word
    case $cur in
    '' | -*)
        for word in -c -n -t -l -s -o -V -h; do
            case $word in
            -n | -t) [[ $given == *' -n '* || $given == *' -t '* ]] && continue ;;
            esac
            [[ $given == *" $word "* || $word != "$cur"* ]] || COMPREPLY+=("$word")
        done
        ;;
    *)
        mapfile -t COMPREPLY < <(compgen -W 'http://' -- "$cur")
        __ltrim_colon_completions "$cur"
        compopt -o nospace
        ;;
    esac
} &&
    complete -F _ablinger ablinger
