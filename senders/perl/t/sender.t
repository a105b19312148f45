# SPDX-License-Identifier: BSD-3-Clause
# The sender before a listener that reads what lingerd would, and a clock that stands still until a test moves it.
#
# tests/languages has it in Starman, and tests/conformance in a server of its own, before the real lingerd.
use strict;
use warnings;

use Test::More;

use Fcntl               ();
use File::Temp          ();
use IO::Socket::INET    ();
use IO::Socket::UNIX    ();
use POSIX               ();
use Socket              qw(SCM_RIGHTS SOL_SOCKET SO_LINGER);
use Socket::MsgHdr      'recvmsg';
use Lingerd::Closing    ();
use Lingerd::Sender     ();

my $now = 1000;
{
    no warnings 'redefine';
    *Lingerd::Sender::Link::now = sub { return $now };
}

# What a test has: a directory, and a sender for a path in it.
sub place {
    my $directory = File::Temp->newdir;
    my $path      = "$directory/lingerd.sock";
    return ($directory, $path, Lingerd::Sender->new($path));
}

sub listener {
    my ($path) = @_;
    return IO::Socket::UNIX->new(Local => $path, Listen => 128) || die "cannot listen: $!";
}

# The client's end and the server's of a TCP connection.
sub connection {
    my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) || die "cannot listen: $@";
    my $client = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $listener->sockport) || die "no way: $@";
    return ($client, $listener->accept);
}

# A message, and the sockets and files that came with it.
sub received {
    my ($link, $size) = @_;
    my $header = Socket::MsgHdr->new(buflen => $size || 1, controllen => 256);
    defined recvmsg($link, $header, 0) or die "nothing came: $!";
    my ($level, $type, $numbers) = $header->cmsghdr;
    my @handles = map { open my $handle, '+<&=', $_ or die "no descriptor $_: $!"; $handle } unpack 'i*', $numbers || '';
    return ($header->buf, @handles);
}

sub same {
    my ($one, $other) = @_;
    return (stat $one)[1] == (stat $other)[1];
}

# What takes the free numbers below one, which is then the first that is free when it is closed.
sub below {
    my ($number) = @_;
    my @handles;
    do {
        open my $handle, '<', $0 or die "no $0: $!";
        push @handles, $handle;
    } while fileno $handles[-1] < $number;
    pop @handles;
    return @handles;
}

sub linger {
    my ($sock) = @_;
    return [unpack 'ii', getsockopt $sock, SOL_SOCKET, SO_LINGER];
}

subtest 'a socket goes with an L, and one link serves all' => sub {
    my ($directory, $path, $sender) = place();
    my $listener = listener($path);
    my @servers  = map { (connection())[1] } 1, 2;
    ok $sender->give($_), 'given' for @servers;
    my $link = $listener->accept;
    for my $server (@servers) {
        my ($message, @handles) = received($link);
        is $message, 'L', 'the message';
        ok @handles == 1 && same($handles[0], $server), 'the socket';
    }
    is $sender->error, undef, 'no error';
};

subtest 'without lingerd one link is tried for in a second' => sub {
    my ($directory, $path, $sender) = place();
    my (undef, $server) = connection();
    ok !$sender->give($server), 'not given';
    like $sender->error, qr/No such file/, 'why';
    my $listener = listener($path);
    $now += 0.9;
    ok !$sender->give($server), 'too early';
    $now += 0.1;
    ok $sender->give($server), 'given';
    is((received(scalar $listener->accept))[0], 'L', 'the message');
};

subtest 'what goes down with a link goes by the next one' => sub {
    my ($directory, $path, $sender) = place();
    my $listener = listener($path);
    my (undef, $server) = connection();
    ok $sender->give($server), 'given';
    close $listener->accept;
    $now += 1;
    ok $sender->give($server), 'given once more';
    my $link = $listener->accept;
    ok same((received($link))[1], $server), 'the socket';
    close $link;
    ok !$sender->give($server), 'but not twice in one second';
};

subtest 'one who does not read holds nobody up, and the link is kept' => sub {
    my ($directory, $path, $sender) = place();
    my $listener = listener($path);
    my (undef, $server) = connection();
    my $given = 0;
    $given++ while $sender->give($server);
    my $link = $listener->accept;
    is join('', map { (received($link))[0] } 1 .. $given), 'L' x $given, "$given messages";
    ok $sender->give($server), 'there is room again';
    is((received($link))[0], 'L', 'on the same link');
};

subtest 'a child has a link of its own, and leaves its parent\'s alone' => sub {
    my ($directory, $path, $sender) = place();
    my $listener = listener($path);
    my (undef, $server) = connection();
    ok $sender->give($server), 'given by the parent';
    my $first = $listener->accept;
    my $child = fork;
    if (!$child) {
        POSIX::_exit($sender->give($server) ? 0 : 1);
    }
    waitpid $child, 0;
    is $?, 0, 'given by the child';
    is((received(scalar $listener->accept))[0], 'L', 'on another link');
    received($first);
    ok $sender->give($server), 'given by the parent';
    is((received($first))[0], 'L', 'on its link');
};

subtest 'what has come by the number of a parent\'s link stays open in a child' => sub {
    my ($directory, $path, $sender) = place();
    my $listener = listener($path);
    my (undef, $server) = connection();
    ok $sender->give($server), 'given by the parent';
    my $number = fileno $sender->{links}[0]{link};
    for my $part (sub { $sender->give($server) }, sub { undef $sender }) {
        pipe my $reader, my $writer or die "no pipe: $!";
        my $child = fork;
        if (!$child) {

            # As who closes all that there is, and opens something else.
            POSIX::dup2(fileno $writer, $number);
            close $writer;
            $part->();
            POSIX::write($number, 'open', 4);
            system $^X, '-e', 'open my $it, ">&=", shift; syswrite $it, " for all"', $number;
            POSIX::_exit(0);
        }
        close $writer;
        waitpid $child, 0;
        is join('', <$reader>), 'open for all', 'it can be written to, and by what the child starts';
    }
};

subtest 'what Perl opens by the number of a parent\'s link is closed when the child closes it' => sub {
    my ($directory, $path, $sender) = place();
    my $listener = listener($path);
    my (undef, $server) = connection();
    ok $sender->give($server), 'given by the parent';
    my $number = fileno $sender->{links}[0]{link};
    my @below  = below($number);
    my $give   = sub { $sender->give($server) };
    my $leave  = sub { undef $sender };
    my $none   = sub { };
    for my $parts ([$leave, $none], [$none, $leave], [$none, $give]) {
        my $child = fork;
        if (!$child) {
            pipe my $reader, my $writer or die "no pipe: $!";
            $reader->blocking(0);
            POSIX::close($number);
            $! = 0;
            $parts->[0]->();
            my $kept = $! == 0;
            open my $opened, '>&', $writer or die "no second one: $!";
            close $writer;
            my $there = fileno $opened == $number;
            $parts->[1]->();
            my $open = syswrite $opened, 'open';
            close $opened;
            my $got = sysread $reader, my $bytes, 10;
            my $end = sysread $reader, $bytes, 10;
            POSIX::_exit($kept && $there && $open && $got && defined $end ? 0 : 1);
        }
        waitpid $child, 0;
        is $?, 0, 'its reader has the end';
    }
};

subtest 'a child keeps its locks on a file that has come by the number of its parent\'s link' => sub {
    plan skip_all => 'the struct flock here is that of Linux' unless $^O eq 'linux' && length pack('l!', 0) == 8;
    my ($directory, $path, $sender) = place();
    my $listener = listener($path);
    my (undef, $server) = connection();
    ok $sender->give($server), 'given by the parent';
    my $number = fileno $sender->{links}[0]{link};
    my @below  = below($number);
    my $lock   = pack 's2 x![q] q2 i x![q]', Fcntl::F_WRLCK(), 0, 0, 0, 0;
    my $child  = fork;
    if (!$child) {
        POSIX::close($number);
        open my $file, '>', "$directory/file" or die "no file: $!";
        my $locked = fileno $file == $number && fcntl $file, Fcntl::F_SETLK(), $lock;
        undef $sender;
        my $other = fork;
        POSIX::_exit(fcntl($file, Fcntl::F_SETLK(), $lock) ? 1 : 0) if !$other;
        waitpid $other, 0;
        POSIX::_exit($locked && $? == 0 ? 0 : 1);
    }
    waitpid $child, 0;
    is $?, 0, 'nobody else has it';
};

subtest 'what lingerd does not take is not sent' => sub {
    my ($directory, $path, $sender) = place();
    my $listener = listener($path);
    my ($unix) = IO::Socket::UNIX->socketpair(Socket::AF_UNIX(), Socket::SOCK_STREAM(), 0);
    my (undef, $closed) = connection();
    close $closed;
    ok !$sender->give($_), 'not given' for $unix, $closed, \*STDERR;

    # Net::Server's other TLS, which is no IO::Socket::SSL; and whatever is written through a class.
    @Net::Server::Proto::SSLEAY::ISA = 'IO::Socket::INET';
    my (undef, $tls)  = connection();
    my (undef, $tied) = connection();
    bless $tls, 'Net::Server::Proto::SSLEAY';
    require Tie::Handle;
    tie *$tied, 'Tie::StdHandle', '+<&=', fileno $tied;
    ok !$sender->give($_), 'not given' for $tls, $tied;
    is $sender->error, undef, 'that is no error';
};

subtest 'one that is not worth more time says so' => sub {
    my ($directory, $path, $sender) = place();
    my (undef, $server) = connection();
    ok !$sender->give($server, 2), 'not given';
    is linger($server)->[0], 0, 'as if nothing was';
    my $listener = listener($path);
    $now += 1;
    ok $sender->give($server, 2), 'given';
    is_deeply linger((received(scalar $listener->accept))[1]), [1, 2], 'with its seconds';
    ok !eval { $sender->give($server, 0); 1 }, 'none is too few';
};

subtest 'a path that cannot be is said at once' => sub {
    ok !eval { Lingerd::Sender->new($_); 1 }, "'$_'" for '', '/' . 'x' x 200, "/a\0b";
};

subtest 'it half-closes, and lets go' => sub {
    my ($directory, $path, $sender) = place();
    my $listener = listener($path);
    my ($client, $server) = connection();
    ok $sender->finish($server), 'given';
    my (undef, $handle) = received(scalar $listener->accept);
    ok !defined fileno $server, 'closed';
    is sysread($client, my $nothing, 1), 0, 'the client has the end';
    syswrite $client, 'late';
    is sysread($handle, my $late, 10), 4, 'which can still be heard';
};

subtest 'what Perl still keeps is written first' => sub {
    my ($directory, $path, $sender) = place();
    my $listener = listener($path);
    my $link;
    for my $method ('finish', 'give') {
        my ($client, $server) = connection();
        $server->autoflush(0);
        print {$server} 'hello';
        ok $sender->$method($server), $method;
        $link ||= $listener->accept;
        is sysread($client, my $got, 10), 5, 'the client has it';
    }

    # Without lingerd, too.
    my ($client, $server) = connection();
    $server->autoflush(0);
    print {$server} 'hello';
    shutdown $client, 1;
    Lingerd::Closing::lingering_close($server);
    is sysread($client, my $got, 10), 5, 'the client has it';
};

subtest 'what cannot be written is not handed over, and ends nobody' => sub {
    my ($directory, $path, $sender) = place();
    my $listener = listener($path);
    my ($client, $server) = connection();
    $server->autoflush(0);
    print {$server} 'hello';
    shutdown $server, 1;
    local $SIG{PIPE} = sub { die 'SIGPIPE' };
    ok !$sender->finish($server), 'not given';
    ok !defined fileno $server, 'closed';
    $listener->blocking(0);
    ok !$listener->accept, 'nobody has come';
};

subtest 'nobody lingers on a client that is done' => sub {
    my ($directory, $path, $sender) = place();
    my $listener = listener($path);
    my ($client, $server) = connection();
    close $client;
    Lingerd::Closing::wait_for(60, [$server], []);
    ok $sender->finish($server), 'finished';
    $listener->blocking(0);
    ok !$listener->accept, 'nobody has come';
};

subtest 'what lingerd does not take is closed as the caller says, or lingered on' => sub {
    my ($directory, $path, $sender) = place();
    my ($client, $server) = connection();
    my $closed;
    ok !$sender->finish($server, sub { $closed = shift }), 'not given';
    is $closed, $server, 'left to the caller';
    ($client, my $other) = connection();
    syswrite $client, 'late';
    shutdown $client, 1;
    ok !$sender->finish($other), 'not given';
    ok !defined fileno $other, 'closed';
    is sysread($client, my $nothing, 1), 0, 'the client has an end, and no reset';
};

subtest 'no signal ends the wait for a client' => sub {
    my ($directory, $path, $sender) = place();
    my ($client, $server) = connection();
    my $signals = 0;
    local $SIG{ALRM} = sub {
        return if ++$signals < 3;
        Time::HiRes::ualarm(0);
        syswrite $client, 'late';
        shutdown $client, 1;
    };
    Time::HiRes::ualarm(100_000, 100_000);
    ok !$sender->finish($server), 'not given';
    is $signals, 3, 'the third one had the client end';
    is sysread($client, my $nothing, 1), 0, 'the client has an end, and no reset';
};

subtest 'a response goes when lingerd has said so' => sub {
    my ($directory, $path, $sender) = place();
    my $listener = listener("$path.2");
    my (undef, $server) = connection();
    open my $file, '+>', undef or die "no file: $!";
    print {$file} 'response';    # which Perl still keeps
    open my $other, '<', $0 or die "no $0: $!";
    my $parts = [[$file, 2, 3, 1], [$other, 0, 8]];
    ok !$sender->spool($server, $parts), 'not yet';
    my $link = $listener->accept;
    syswrite $link, 'G';
    ok $sender->may_spool(60), 'now';
    ok $sender->spool($server, $parts, 7), 'spooled';
    my ($head, @handles) = received($link, 72);
    is_deeply [unpack 'a C S> L> (Q>)8', $head], ['S', 2, 1, 7000, 2, 3, 0, 8, 0, 0, 0, 0], 'the head';
    ok same($handles[0], $server) && same($handles[1], $file) && same($handles[2], $other), 'the descriptors';
    is -s $handles[1], 8, 'the file is all there';
    is_deeply linger($handles[0]), [1, 0], 'who is killed resets it';
    ok !$sender->may_spool, 'one G is for one response';
    ok !eval { $sender->spool($server, $_); 1 }, 'what cannot be' for [], [($parts->[0]) x 5], [[$file, -1, 8]];
};

{
    package Refusing;
    sub may_spool { return 1 }
    sub spool { push @{ $_[0] }, 'asked'; return 0 }
}

subtest 'what lingerd does not take it is not asked for again at once' => sub {
    plan skip_all => 'there is no Starman' unless eval { require Lingerd::Starman };
    my ($client, $server) = connection();
    my $sender = bless [], 'Refusing';
    my $page   = 'x' x 8_000_000;
    my $reader;
    no warnings 'redefine', 'once';
    local *Lingerd::Starman::wait_for = sub {
        push @$sender, $_[0];
        if (!defined $reader && !($reader = fork)) {
            my $got = 0;
            close $server;
            while (my $n = sysread $client, my $bytes, 65_536) { $got += $n }
            POSIX::_exit($got == length $page ? 0 : 1);
        }
        return Lingerd::Closing::wait_for(@_);
    };
    bless({ lingerd => $sender }, 'Lingerd::Starman')->_write_last($server, \$page);
    is_deeply [@$sender[0, 1]], ['asked', Lingerd::Starman::WAIT()], 'then it waits';
    close $server;
    waitpid $reader, 0;
    is $?, 0, 'the client has it from the worker';
};

done_testing;
