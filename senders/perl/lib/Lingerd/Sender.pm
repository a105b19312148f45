# SPDX-License-Identifier: BSD-3-Clause
package Lingerd::Sender;

# The sender: what lingerd-protocol(7) has a server do.
#
# This must not know how long lingerd waits, for what, and what becomes of a socket, nor which server it is for.

use strict;
use warnings;

use Carp   'croak';
use Errno  ();
use Socket qw(SOL_SOCKET SO_LINGER);

use Lingerd::Closing qw(close_quietly flush half_close is_tcp lingering_close);

our $VERSION = '0.1.0';

use constant {
    # Where lingerd listens unless it is told otherwise.
    SOCKET     => '/var/run/lingerd/lingerd.sock',
    MOST_PARTS => 4,
    # How many bytes of a path go into a socket's address, beside its final NUL.
    LONGEST_PATH => $^O =~ /^(?:linux|solaris)$/ ? 107 : 103,
    # On macOS SO_LINGER counts in hundredths of a second.
    LINGER => $^O eq 'darwin' ? 0x1080 : SO_LINGER,
};

sub new {
    my ($class, $path) = @_;
    $path = SOCKET unless defined $path;
    for my $each ($path, "$path.2") {
        croak "no socket can have the path '$each'"
            if $path eq '' || $each =~ /\0/ || length $each > LONGEST_PATH;
    }
    return bless { path => $path }, $class;
}

sub path { return $_[0]{path} }

sub error { return $_[0]->_links->[0]{error} }

sub give {
    my ($self, $sock, $seconds) = @_;
    croak 'seconds must be at least 1' if defined $seconds && $seconds < 1;
    return 0 unless is_tcp($sock) && flush($sock);
    _linger($sock, 1, $seconds) if defined $seconds;
    my $given = $self->_links->[0]->send('L', [$sock]);
    _linger($sock, 0, 0) if defined $seconds && !$given;
    return $given;
}

sub finish {
    my ($self, $sock, $instead) = @_;
    if (is_tcp($sock) && flush($sock) && (half_close($sock) || $self->_links->[0]->send('L', [$sock]))) {
        close_quietly($sock);
        return 1;
    }
    ($instead || \&lingering_close)->($sock);
    return 0;
}

sub may_spool {
    my ($self, $wait, $room) = @_;
    return $self->_links->[1]->go_ahead($wait || 0, $room);
}

sub spool {
    my ($self, $sock, $parts, $patience) = @_;
    croak 'there are 1 to ' . MOST_PARTS . ' parts' unless @$parts >= 1 && @$parts <= MOST_PARTS;
    my $milliseconds = int 1000 * (defined $patience ? $patience : 300);
    croak 'patience must be more than 0' if $milliseconds < 1;
    $milliseconds = 0x7fffffff if $milliseconds > 0x7fffffff;
    my ($flags, @numbers) = (0);
    for my $n (0 .. $#$parts) {
        my (undef, $offset, $length, $ours) = @{ $parts->[$n] };
        croak 'a part has no negative offset or length' if $offset < 0 || $length < 0;
        push @numbers, $offset, $length;
        $flags |= 1 << $n if $ours;
    }
    push @numbers, 0 while @numbers < 2 * MOST_PARTS;
    return 0 unless is_tcp($sock) && $self->may_spool && flush($sock, map { $_->[0] } @$parts);
    my $head = pack 'a C S> L> (Q>)8', 'S', scalar @$parts, $flags, $milliseconds, @numbers;

    # Whoever closes it last resets it from here on, if lingerd is killed before it has read this: the client might
    # take for the end what is none.
    _linger($sock, 1, 0);
    my $given = $self->_links->[1]->send($head, [$sock, map { $_->[0] } @$parts], 1);
    _linger($sock, 0, 0) unless $given;
    return $given;
}

sub close {    ## no critic (ProhibitBuiltinHomonyms)
    my ($self) = @_;
    $_->close for @{ $self->_links };
    return;
}

# The two of this process; a child of fork(2) parts with its parent's.
sub _links {
    my ($self) = @_;
    unless ($self->{links} && $self->{pid} == $$) {
        @$self{qw(pid links)} = ($$, [map { Lingerd::Sender::Link->new($self->{path} . $_) } '', '.2']);
    }
    return $self->{links};
}

sub _linger {
    my ($sock, $on, $seconds) = @_;
    return setsockopt $sock, SOL_SOCKET, LINGER, pack 'ii', $on, $seconds;    # or the client has gone
}

# A connection to one of lingerd's sockets, for one process.
package Lingerd::Sender::Link;

use Errno      ();
use Fcntl      qw(F_GETFD F_SETFD);
use IO::Handle ();
use POSIX      ();
use Socket     qw(AF_UNIX MSG_DONTWAIT SCM_RIGHTS SOCK_STREAM SOL_SOCKET pack_sockaddr_un);
use Socket::MsgHdr 'sendmsg';

use Lingerd::Closing qw(now wait_for);

# The link is good, and what is queued in it will be read.
my @NOT_NOW = qw(EAGAIN ETOOMANYREFS EMFILE ENFILE ENOBUFS ENOMEM EINTR);

my $FLAGS = eval { Socket::MSG_NOSIGNAL() } || 0;

sub new {
    my ($class, $path) = @_;
    return bless { path => $path, pid => $$ }, $class;
}

# What has come by the number of a parent's link, and nobody is to close for it.
my @others;

# A child parts with the parent's link. Who closes all descriptors after fork(2), as daemons do, may have something else
# by that number, which stays. Perl counts its handles by number: what it has opened is open still when the link has
# been closed, and a handle that is kept for nothing would leave it open for good.
sub DESTROY {
    my ($self) = @_;
    my $link = $self->{link};
    return if $self->{pid} == $$ || !$link || ${^GLOBAL_PHASE} eq 'DESTRUCT';
    local $! = 0;
    my ($number, $file) = (fileno $link, _file($link));
    return CORE::close $link if $file eq '' || $file eq $self->{file};

    # A file is kept open: the locks of fcntl(2) on it would go with the copy.
    my $copy = -f $link ? undef : POSIX::dup($number);
    return push @others, $link unless defined $copy;
    my $flags = fcntl $link, F_GETFD, 0;
    CORE::close $link;
    if (!defined POSIX::dup2($number, $number)) {
        POSIX::dup2($copy, $number);
        open my $other, '+<&=', $number;
        fcntl $other, F_SETFD, 0 + $flags;
        push @others, $other;
    }
    POSIX::close($copy);
    return;
}

# Which file it is.
sub _file {
    my ($device, $inode) = stat $_[0];
    return defined $inode ? "$device $inode" : '';
}

# Whether lingerd has it now. A link that turns out to be dead most likely means that lingerd was started anew: then
# once more, on a new one.
sub send {    ## no critic (ProhibitBuiltinHomonyms)
    my ($self, $message, $handles, $spooled) = @_;
    for (1, 2) {
        my $link = $self->_open;
        return 0 unless $link && (!$spooled || $self->_go_ahead);
        my $header = Socket::MsgHdr->new(buf => $message);
        $header->cmsghdr(SOL_SOCKET, SCM_RIGHTS, pack 'i*', map { fileno $_ } @$handles);
        local $SIG{PIPE} = 'IGNORE' unless $FLAGS;
        my $sent = sendmsg($link, $header, $FLAGS);
        if (defined $sent && $sent == length $message) {
            $self->{may_spool} = 0 if $spooled;
            return 1;
        }
        return 0 if !defined $sent && _not_now();
        $! = Errno::EPIPE if defined $sent;    # a part of it has gone
        $self->_drop;
    }
    return 0;
}

# Whether lingerd takes a response now, or within so many seconds, and before there is room to write to that socket.
sub go_ahead {
    my ($self, $seconds, $room) = @_;
    my $until = now() + $seconds;
    while (1) {
        return 1 if $self->_open && $self->_go_ahead;
        my $left = $until - now();
        my @link = grep { defined } $self->{link};
        return 0 if $left <= 0 || !(@link || $room);
        my ($said, $writable) = wait_for($left, \@link, [$room ? $room : ()]);
        return 0 if @$writable || !@$said;
    }
}

sub close {    ## no critic (ProhibitBuiltinHomonyms)
    my ($self) = @_;
    $! = Errno::ENOTCONN;
    $self->_drop if $self->{link};
    return;
}

# The link, if there is one; tries to make one once a second at most.
sub _open {
    my ($self) = @_;
    return $self->{link} if $self->{connected};
    unless ($self->{link}) {
        return if defined $self->{tried} && now() - $self->{tried} < 1;
        $self->{tried} = now();
        if (!socket $self->{link}, AF_UNIX, SOCK_STREAM, 0) {
            $self->_drop;
            return;
        }
        $self->{link}->blocking(0);
        $self->{file} = _file($self->{link});
    }
    if (connect($self->{link}, pack_sockaddr_un($self->{path})) || $!{EISCONN}) {
        $self->{connected} = 1;
        delete $self->{error};
        return $self->{link};
    }
    $self->_drop unless $!{EINPROGRESS} || $!{EALREADY};
    return;
}

# Takes note of what lingerd has said.
sub _go_ahead {
    my ($self) = @_;
    return 1 if $self->{may_spool};
    my $said;
    if (!defined recv $self->{link}, $said, 64, MSG_DONTWAIT) {
        $self->_drop unless _not_now();
    }
    elsif ($said eq '') {
        $! = Errno::EPIPE;
        $self->_drop;
    }
    else {
        $self->{may_spool} = $said =~ /G/;
    }
    return $self->{may_spool};
}

# Closes the link, and remembers why, which is in $!.
sub _drop {
    my ($self) = @_;
    $self->{error} = "$self->{path}: $!";
    delete @$self{qw(link connected may_spool)};
    return;
}

sub _not_now {
    return grep { $!{$_} } @NOT_NOW;
}

1;

__END__

=head1 NAME

Lingerd::Sender - hands connections over to lingerd, which does their lingering close

=head1 SYNOPSIS

  my $sender = Lingerd::Sender->new;
  ...
  $sender->finish($client);    # in the place of close($client)

=head1 DESCRIPTION

A server that has written its response, and closes, has to wait until its client has closed too; else a late byte of
the client has the kernel reset the connection, and what the client has not read yet of the response is lost (RFC
9112, section 9.6). With this it passes the socket to lingerd(8), which waits. For Starman there is
L<Plack::Handler::Starman::Lingerd>.

One sender serves a process; in a child of fork(2) it makes links of its own. Links are opened when they are needed
first; when there is none, one is tried for once a second at most. What goes over them is in lingerd-protocol(7).

=head1 METHODS

=head2 new

  Lingerd::Sender->new($path)

F</var/run/lingerd/lingerd.sock> is where lingerd listens unless it is told otherwise. Dies of a path that no socket
can have.

=head2 finish

  $sender->finish($client);
  $sender->finish($client, sub { close $_[0] });

Ends a connection on which all is written (what was printed to it, and Perl still keeps, is written first, here and by
the methods below): half-closes, hands over unless the client has closed already, and closes.
If lingerd does not take it the code is called, which closes it as the server would; without it a lingering close is
done here, which waits. Whether that was not needed is returned.

=head2 give

  $sender->give($client) and close $client;

Only hands over. It never waits. True: lingerd has it, and the caller closes its own copy, without shutdown. False: the
caller has it to itself. C<give($client, $seconds)> is for a connection that is not worth more time than that. A
connection with TLS (L<IO::Socket::SSL>) is not taken.

=head2 may_spool, spool

  if ($sender->may_spool(1, $client) && $sender->spool($client, [[$file, $offset, $length, $ours]])) {
      close $client;
  }

Hands over a connection on which up to four parts of files are still to be written, for a client that reads slowly:
lingerd writes them, then lingers. It takes one when it has said so, which C<may_spool> asks, for so many seconds at
most, and until C<$client> has room. A true C<$ours> says that nobody else has use for the file; what is in any other
must not be changed until it is sent, though it may be removed, or another one be put in its place. What lingerd does
not take the caller writes. C<spool($client, $parts, $patience)> has the connection reset if that does not get on for
so many seconds; 300 unless told.

=head2 error

Why there is no link to lingerd, or C<undef>.

=head2 path

Where lingerd is.

=head2 close

Closes the links. One that is needed again is opened again.

=head1 LICENSE

BSD-3-Clause.

=cut
