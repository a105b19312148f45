# SPDX-License-Identifier: BSD-3-Clause
# A server for tests/conformance, which says what it has to do.
use strict;
use warnings;

use IO::Socket::INET ();
use Lingerd::Sender  ();
use Socket           'MSG_DONTWAIT';

my %lacks = (THREADS => 'a process of Perl serves in one thread', TLS_CERT => 'IO::Socket::SSL is not handed over');
for my $name (sort keys %lacks) {
    next unless defined $ENV{$name};
    print "lacks: $lacks{$name}\n";
    exit;
}
local $SIG{PIPE} = 'IGNORE';

my $sender   = Lingerd::Sender->new($ENV{LINGERD_SOCKET});
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ENV{PORT}, Listen => 128, ReuseAddr => 1)
    or die "cannot listen: $@";
my $forks = ($ENV{PROCESSES} || 1) - 1;
while (1) {
    my $client = $listener->accept or next;
    respond($client);
    for (; $forks > 0; $forks--) {
        $forks = 0 unless fork;
    }
}

sub respond {
    my ($client) = @_;
    return unless sysread $client, my $request, 65_536;
    my ($size) = $request =~ m{^GET /(\d+) } or return;
    my $response = "HTTP/1.1 200 OK\r\nContent-Length: $size\r\n\r\n" . 'x' x $size;
    while ($response ne '') {
        my $sent = send $client, $response, $ENV{SPOOL} ? MSG_DONTWAIT : 0;
        if (defined $sent) {
            substr $response, 0, $sent, '';
        }
        elsif (!$!{EAGAIN}) {
            return;
        }
        elsif ($sender->may_spool(1, $client)) {
            open my $file, '+>', undef or die "no file: $!";
            print {$file} $response;
            $file->flush;
            return if $sender->spool($client, [[$file, 0, length $response, 1]]);
        }
    }
    return if $ENV{LINGER_SECONDS} && $sender->give($client, $ENV{LINGER_SECONDS});
    return $sender->finish($client);
}
