# SPDX-License-Identifier: BSD-3-Clause
package Lingerd::Starman;

# Starman's server, whose connections lingerd ends.
#
# This must not know what a message to lingerd looks like.

use strict;
use warnings;

use parent 'Starman::Server';

use File::Temp   ();
use Plack::Util  ();
use Socket       qw(MSG_DONTWAIT);
use Symbol       'gensym';

use Lingerd::Closing qw(is_tcp wait_for);
use Lingerd::Sender ();

our $VERSION = '0.1.0';

# How long to wait, in seconds, for lingerd and the client, before lingerd is tried to be reached again if it is not
# there, or asked again if it did not take it.
use constant WAIT => 1;

# How much of a file is read for the socket at once, in bytes, and how much is copied of what is in memory.
use constant PIECE => 65_536;

sub child_init_hook {
    my ($self) = @_;
    my $path = $self->{options}{lingerd_socket} || $ENV{LINGERD_SOCKET} || Lingerd::Sender::SOCKET();
    $self->{lingerd} = eval { Lingerd::Sender->new($path) };
    $self->log(0, $self->log_time . " lingerd: $@: closing without it") unless $self->{lingerd};
    return $self->SUPER::child_init_hook;
}

# In the place of close; what is closed already Net::Server may close once more.
sub post_process_request {
    my ($self) = @_;
    my ($sender, $client) = ($self->{lingerd}, $self->{server}{client});
    if ($sender && _is_plain($client)) {
        $sender->finish($client, sub { });
        my $error = $sender->error;
        if (defined $error ne !!$self->{lingerd_alone}) {
            $self->{lingerd_alone} = defined $error;
            my $what = defined $error ? "$error: closing without it" : "at ${\ $sender->path} again";
            $self->log(0, $self->log_time . " lingerd: $what");
        }
    }
    return $self->SUPER::post_process_request;
}

# A response that is all there, the last one of its connection, is written as far as the kernel takes it; what it does
# not is handed over. Starman sees to its head, for which it is given a handle that keeps what is written.
sub _finalize_response {
    my ($self, $env, $response) = @_;
    my ($client, $body) = ($self->{server}{client}, $response->[2]);
    my $file = defined $body && ref $body ne 'ARRAY';
    my $length = $file ? _length_of_file($response) : defined $body;
    return $self->SUPER::_finalize_response($env, $response)
        unless $length && $self->{lingerd} && _is_plain($client);

    my $written = '';
    {
        local $self->{server}{client} = _kept_in(\$written);
        # Which has it look at what there is of fields, and write what it is given.
        $self->SUPER::_finalize_response($env, $file ? [@$response[0, 1], []] : $response);
    }
    if ($self->{client}{keepalive}) {
        Starman::Server::_syswrite($client, \$written);
        Plack::Util::foreach($body, sub { Starman::Server::_syswrite($client, \$_[0]) }) if $file;
    }
    elsif ($file) {
        Starman::Server::_syswrite($client, \$written);
        $self->_write_file($client, $body, tell $body, $length);
    }
    else {
        $self->_write_last($client, \$written);
    }
    $body->close if $file;
    return;
}

# Net::Server's own word for what it has accepted; others are TLS, whatever is added to it.
sub _is_plain {
    my ($client) = @_;
    return $client && $client->can('NS_proto') && $client->NS_proto eq 'TCP' && is_tcp($client);
}

# How long a file is that is all there is of a response; 0 if it is none, or Starman is not told.
sub _length_of_file {
    my ($response) = @_;
    my ($body, $length) = ($response->[2], Plack::Util::header_get($response->[1], 'Content-Length'));
    return 0 unless $length && !Plack::Util::header_exists($response->[1], 'Transfer-Encoding');
    return 0 unless Plack::Util::is_real_fh($body) && -f $body && -s _ == $length + tell $body;
    return 0 if grep { $_ eq 'utf8' } PerlIO::get_layers($body);
    return $length;
}

sub _write_last {
    my ($self, $client, $bytes) = @_;
    my $rest = sub {
        my ($at) = @_;
        my $file = _memory() or return;
        print {$file} substr $$bytes, $at or return;
        $file->flush or return;
        return [$file, 0, length($$bytes) - $at, 1];
    };
    return $self->_write_or_spool($client, 0, length $$bytes, sub { substr $$bytes, $_[0], PIECE }, $rest);
}

sub _write_file {
    my ($self, $client, $file, $at, $length) = @_;
    my $end   = $at + $length;
    my $piece = sub {
        sysseek $file, $_[0], 0 or return '';
        my ($most, $bytes) = ($end - $_[0]);
        return sysread($file, $bytes, $most < PIECE ? $most : PIECE) ? $bytes : '';
    };
    return $self->_write_or_spool($client, $at, $end, $piece, sub { [$file, $_[0], $end - $_[0], 0] });
}

sub _write_or_spool {
    my ($self, $client, $at, $end, $piece, $rest) = @_;
    my $sender = $self->{lingerd};
    while ($at < $end) {
        my $bytes = $piece->($at);
        last if $bytes eq '';    # the file is not what it was
        my $sent = send $client, $bytes, MSG_DONTWAIT;
        if (defined $sent) {
            $at += $sent;
        }
        elsif ($!{EAGAIN}) {
            next unless $sender->may_spool(WAIT, $client);
            my $part = $rest->($at);
            if ($part && $sender->spool($client, [$part])) {
                close $client;
                last;
            }

            # It did not, and would not at once if it was asked again.
            wait_for(WAIT, [], [$client]);
        }
        elsif (!$!{EINTR}) {
            last;    # the client has gone
        }
    }
    return;
}

# A file without a name, in memory where that can be had.
sub _memory {
    my ($file, $name) = eval { File::Temp::tempfile(DIR => '/dev/shm') };
    return unlink($name) && $file if $file;
    return open($file, '+>', undef) && $file;
}

# What syswrite writes to it is appended.
sub _kept_in {
    my ($written) = @_;
    my $handle = gensym;
    tie *$handle, 'Lingerd::Starman::Kept', $written;
    return $handle;
}

package Lingerd::Starman::Kept;

sub TIEHANDLE {
    my ($class, $written) = @_;
    return bless { written => $written }, $class;
}

sub WRITE {
    my ($self, $bytes, $length, $offset) = @_;
    ${ $self->{written} } .= substr $bytes, $offset || 0, $length;
    return $length;
}

1;

__END__

=head1 NAME

Lingerd::Starman - Starman's server, whose connections lingerd ends

=head1 DESCRIPTION

L<Plack::Handler::Starman::Lingerd> is how it is used.

=head1 LICENSE

BSD-3-Clause.

=cut
