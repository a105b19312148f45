# SPDX-License-Identifier: BSD-3-Clause
#
# Completion of lingerd(8) for fish: to be installed as share/fish/vendor_completions.d/lingerd.fish.
# tests/manuals/completions.rs compares it with the program.

# Whether one of these options is given already, and is not the one whose value is being completed.
function __lingerd_given
    set -l words (commandline -cpo)[2..-1]
    set -q words[1]
    or return 1
    if string match -qr '^-[fdqr]*[spugmanMtTDWloi]$' -- $words[-1]
        set -e words[-1]
    end
    set -q words[1]
    or return 1
    for option in $argv
        string match -qr "^-[fdqr]*$option" -- $words
        and return 0
    end
    return 1
end

# Users, and after a colon groups.
function __lingerd_account
    set -l token (commandline -ct)
    if string match -q '*:*' -- $token
        set -l user (string replace -r ':.*' '' -- $token)
        for group in (__fish_complete_groups)
            echo $user:$group
        end
    else
        __fish_complete_users
    end
end

# The same in a list, where a group is :group.
function __lingerd_who
    set -l before (string replace -r '[^,]*$' '' -- (commandline -ct))
    for user in (__fish_complete_users)
        echo $before$user
    end
    for group in (__fish_complete_groups)
        echo $before:$group
    end
end

complete -c lingerd -f

set -l daemon 'not __lingerd_given k S V h'
set -l first 'not __lingerd_given f d q r u g m a n M t T D W l k S V h w o i'
set -l file 'not __lingerd_given V h'

complete -c lingerd -n "$daemon f" -s f -d 'Stay in the foreground, log to standard error'
complete -c lingerd -n "$daemon d q" -s d -d 'Log each connection that ends, too'
complete -c lingerd -n "$daemon d q" -s q -d 'Log warnings and errors only'
complete -c lingerd -n "$daemon r" -s r -d 'Take over from the running daemon'
complete -c lingerd -n "$file; and not __lingerd_given s; and not begin; __lingerd_given k; and __lingerd_given p; end" -s s -r -F -d 'Hand-off socket'
complete -c lingerd -n "$file; and not __lingerd_given p S; and not begin; __lingerd_given k; and __lingerd_given s; end" -s p -r -F -d 'Pid file'
complete -c lingerd -n "$daemon u" -s u -x -a '(__lingerd_account)' -d 'User, and group, to run as'
complete -c lingerd -n "$daemon g" -s g -x -a '(__fish_complete_groups)' -d 'Group of the hand-off socket'
complete -c lingerd -n "$daemon m" -s m -x -a '0600 0660 0666' -d 'Mode of the hand-off socket'
complete -c lingerd -n "$daemon a" -s a -x -a '(__lingerd_who)' -d 'Users and :groups that may hand over'
complete -c lingerd -n "$daemon n" -s n -x -d 'Most connections at once'
complete -c lingerd -n "$daemon M" -s M -x -d 'Most megabytes held of responses that are still to be written'
complete -c lingerd -n "$daemon t" -s t -x -d 'Seconds of silence'
complete -c lingerd -n "$daemon T" -s T -x -d 'Seconds while the client keeps sending'
complete -c lingerd -n "$daemon D" -s D -x -d 'Seconds in all'
complete -c lingerd -n "$daemon W" -s W -x -d 'Seconds to stop in'
complete -c lingerd -n "$daemon l" -s l -x -a 'auth authpriv cron daemon ftp kern lpr mail news syslog user uucp local0 local1 local2 local3 local4 local5 local6 local7' -d 'Syslog facility'
complete -c lingerd -n $first -s k -d 'Stop the running daemon'
complete -c lingerd -n '__lingerd_given k; and not __lingerd_given w' -s w -d 'Wait until it has ended'
complete -c lingerd -n $first -s S -d 'Print the counters of the running daemon'
complete -c lingerd -n '__lingerd_given S; and not __lingerd_given o' -s o -x -a 'text json prometheus' -d 'Format of the counters'
complete -c lingerd -n '__lingerd_given S; and not __lingerd_given i' -s i -x -d 'Print them again and again, after so many seconds'
complete -c lingerd -n $first -s V -d 'Print the version'
complete -c lingerd -n $first -s h -d 'Print a summary of the options'
