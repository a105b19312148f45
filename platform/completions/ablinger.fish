# SPDX-License-Identifier: BSD-3-Clause
#
# Completion of ablinger(1) for fish: to be installed as share/fish/vendor_completions.d/ablinger.fish.
# tests/manuals/completions.rs compares it with the program.

complete -c ablinger -f
complete -c ablinger -s c -x -d 'Clients at once'
complete -c ablinger -n 'not __fish_contains_opt -s t -s P' -s n -x -d 'Stop when so many responses have ended'
complete -c ablinger -n 'not __fish_contains_opt -s n' -s t -x -d 'Stop after so many seconds'
complete -c ablinger -n 'not __fish_contains_opt -s p -s P' -s r -x -d 'Requests due a second'
complete -c ablinger -s l -x -d 'How many milliseconds each socket is held'
complete -c ablinger -s s -x -d 'Standard deviation of that time'
complete -c ablinger -s B -x -d 'Bytes that each client reads a second'
complete -c ablinger -n 'not __fish_contains_opt -s P' -s k -x -d 'Requests on each connection'
complete -c ablinger -n 'not __fish_contains_opt -s r' -s p -x -d 'Pause before the next request, in milliseconds'
complete -c ablinger -n 'not __fish_contains_opt -s n -s r -s k -s P' -s P -d 'Say which clients the server waits for'
complete -c ablinger -s o -x -a 'text json' -d 'How the report is printed'
complete -c ablinger -s g -rk -a '(__fish_complete_suffix .svg)' -d 'Plot the latencies, as SVG'
complete -c ablinger -s V -d 'Print the version'
complete -c ablinger -s h -d 'Print a summary of the options'
complete -c ablinger -a 'http://' -d URL
