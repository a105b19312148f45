# SPDX-License-Identifier: BSD-3-Clause
package Lingerd::Closing;

# How a connection ends at this side: the half-close, and what a server does without lingerd.
#
# This must not know how lingerd is reached.

use strict;
use warnings;

use Errno    ();
use Exporter 'import';
use IO::Handle ();
use mro ();
use Scalar::Util 'blessed';
use Socket qw(AF_INET AF_INET6 MSG_DONTWAIT MSG_PEEK SHUT_WR SOCK_STREAM SOL_SOCKET SO_TYPE sockaddr_family);
use Time::HiRes qw(CLOCK_MONOTONIC clock_gettime);

our $VERSION   = '0.1.0';
our @EXPORT_OK = qw(client_done close_quietly flush half_close is_tcp lingering_close now wait_for);

sub now { return clock_gettime(CLOCK_MONOTONIC) }

# Whether it is open, and of a kind that lingerd takes. TLS is not: IO::Socket::SSL, Net::Server's SSL and SSLEAY.
sub is_tcp {
    my ($sock) = @_;
    return 0 if blessed $sock && grep { /SSL/ } @{ mro::get_linear_isa(ref $sock) };
    # What is written there goes through a class that may do anything with it.
    return 0 if ref $sock && tied *$sock;
    return 0 unless defined fileno $sock;
    my $name = getsockname $sock or return 0;
    my $family = sockaddr_family($name);
    return 0 unless $family == AF_INET || $family == AF_INET6;
    return unpack('i', getsockopt($sock, SOL_SOCKET, SO_TYPE) || pack 'i', 0) == SOCK_STREAM;
}

# Has the kernel have what Perl itself still keeps of what was printed, to sockets or files; whether it took it. Waits as
# a write does.
sub flush {
    my (@handles) = @_;
    local $SIG{PIPE} = 'IGNORE';

    # EINVAL is of one that is open for reading only.
    return !grep { !IO::Handle::flush($_) && !$!{EINVAL} } @handles;
}

# close, which would try once more to write what could not be written.
sub close_quietly {
    my ($sock) = @_;
    local $SIG{PIPE} = 'IGNORE';
    return close $sock;
}

# Whether the client has nothing more to send, and nothing that it has sent is unread: then the socket can be closed
# at once, and nobody lingers. Does not wait.
sub client_done {
    my ($sock) = @_;
    my $said;
    return $!{ECONNRESET} unless defined recv $sock, $said, 1, MSG_PEEK | MSG_DONTWAIT;
    return $said eq '';
}

# Half-closes a connection that is about to be handed over, and says whether its client is done.
#
# Elsewhere than on Linux lingerd does it: in the TCP of the BSDs a second time, by a server that has to linger itself
# after all, would end receiving, too.
sub half_close {
    my ($sock) = @_;
    return 1 if $^O eq 'linux' && !shutdown($sock, SHUT_WR) && $!{ENOTCONN};
    return client_done($sock);
}

# Waits, for so many seconds at most, until there is something to read of one of them, or room at one of the others.
# Which of the two it was: two lists. No signal ends it.
sub wait_for {
    my ($seconds, $readable, $writable) = @_;
    my $until = now() + $seconds;
    my ($in, $out, $ready);
    do {
        ($in, $out) = ('', '');
        vec($in,  fileno $_, 1) = 1 for @$readable;
        vec($out, fileno $_, 1) = 1 for @$writable;
        $ready = select $in, $out, undef, $seconds;
    } while $ready < 0 && $!{EINTR} && ($seconds = $until - now()) > 0;
    return ([], []) unless $ready > 0;
    return ([grep { vec $in, fileno $_, 1 } @$readable], [grep { vec $out, fileno $_, 1 } @$writable]);
}

# Closes a connection as a server has to without lingerd: half-closes, and reads until the client closes, is silent for
# two seconds, or thirty are over.
sub lingering_close {
    my ($sock) = @_;
    my $until = now() + 30;
    if (flush($sock) && shutdown $sock, SHUT_WR) {
        while ((my $left = $until - now()) > 0) {
            my ($ready) = wait_for($left < 2 ? $left : 2, [$sock], []);
            last unless @$ready;
            my $read = sysread $sock, my $late, 65_536;
            last unless $read || !defined $read && ($!{EINTR} || $!{EAGAIN});
        }
    }
    return close_quietly($sock);
}

1;

__END__

=head1 NAME

Lingerd::Closing - how a connection ends at a server's side

=head1 SYNOPSIS

  use Lingerd::Closing 'lingering_close';

  lingering_close($client);

=head1 DESCRIPTION

What L<Lingerd::Sender> does at its server's end of a connection: half_close, client_done, is_tcp; and
C<lingering_close>, which is what a server does without lingerd.

=head1 LICENSE

BSD-3-Clause.

=cut
