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
    -g)
        _filedir svg
        return
        ;;
    -c | -n | -t | -r | -l | -s | -B | -k | -p)
        return
        ;;
    esac

    local given=" ${words[*]:1:cword-1} " word others
    case $cur in
    '' | -*)
        for word in -c -n -t -r -l -s -B -k -p -P -o -g -V -h; do
            # None twice, and none with one that excludes it.
            case $word in
            -n) others='|-t|-P' ;;
            -t) others='|-n' ;;
            -r) others='|-p|-P' ;;
            -k) others='|-P' ;;
            -p) others='|-r' ;;
            -P) others='|-n|-r|-k' ;;
            *) others='' ;;
            esac
            [[ $given =~ " "($word$others)" " || $word != "$cur"* ]] || COMPREPLY+=("$word")
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
