# SPDX-License-Identifier: BSD-3-Clause
#
# What bash offers on Tab: bash --norc complete.bash FOLDER LINE... prints for each line '= LINE' and then what
# is offered, one word a line. FOLDER has the completion scripts; bash-completion is sourced first.

folder=$1
shift
for file in /usr{,/local,/pkg}/share/bash-completion/bash_completion; do
    # shellcheck source=/dev/null
    [ ! -r "$file" ] || . "$file"
done
declare -F _init_completion >/dev/null || {
    echo "there is no bash-completion" >&2
    exit 1
}

# It can only be called by readline.
compopt() { :; }

for line; do
    # A space ends a word, and a colon is one, as in COMP_WORDBREAKS.
    spaced=${line//:/ : }
    read -r -a COMP_WORDS <<<"$spaced"
    [[ $line != *' ' ]] || COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 COMP_KEY=9
    program=${COMP_WORDS[0]}
    # shellcheck source=/dev/null
    . "$folder/$program.bash"
    COMPREPLY=()
    "_$program" "$program" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    printf '%s\n' "= $line" "${COMPREPLY[@]}"
done
