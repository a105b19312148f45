# SPDX-License-Identifier: BSD-3-Clause
#
# What zsh offers on Tab: zsh -f complete.zsh FOLDER LINE... prints for each line '= LINE' and then what is
# offered, one word a line. FOLDER has the completion functions. The shell that is asked is another one, on a
# terminal of its own, without which there is no completion.

zmodload zsh/zpty zsh/system
folder=$1
shift

zpty shell "PS1= PS2= TERM=dumb zsh -f -i"
zpty -w shell "fpath=(${(q)folder} \$fpath); autoload -Uz compinit; compinit -D -u; $(<<'SETUP'
unsetopt beep list_beep
stty -echo
# Called by the completion functions in the place of the builtin.
compadd() {
    local -a offered
    if [[ ${@[1,(i)(-|--)]} != *-[OAD]* ]]; then
        builtin compadd -O offered "$@"
        (( $#offered )) && print -rl -- "<"$^offered
    fi
    builtin compadd "$@"
}
zle -C offer complete-word _main_complete
ask() {
    print
    zle offer
    print "<""<"
    BUFFER=
}
zle -N ask
bindkey '^T' ask
print "<""<"
SETUP
)"

# What the shell prints until '<<'.
listen() {
    local chunk said=
    while [[ $said != *'<<'* ]]; do
        zpty -r shell chunk || { print -u2 "zsh has ended: $said"; exit 1 }
        said+=$chunk
    done
    print -r -- $said
}

listen >/dev/null
for line; do
    print -r -- "= $line"
    zpty -w -n shell $line$'\C-t'
    listen | tr -d '\r' | sed -n 's/^.*<\([^<]\)/\1/p'
done
zpty -d shell
