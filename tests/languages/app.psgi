# SPDX-License-Identifier: BSD-3-Clause
# What Starman serves in the tests.
use strict;
use warnings;
use File::Temp;

sub page {
    my ($size) = @_;
    return pack 'C*', map { (int($_ / 251) + $_) & 255 } 0 .. $size - 1;
}

my $big  = page(5_000_000);
my $page = page(20_000);
my $file = File::Temp->new;
binmode $file;
print {$file} 'before', $big;
$file->flush;

sub {
    my ($env) = @_;
    my $path = $env->{PATH_INFO};
    if ($path eq '/file') {
        open my $handle, '<:raw', $file->filename or die $!;
        seek $handle, 6, 0;
        return [200, ['Content-Length' => length $big], $handle];
    }
    if ($path eq '/pieces') {
        return sub {
            my $writer = shift->([200, []]);
            for (my $at = 0; $at < length $big; $at += 50_000) {
                $writer->write(substr $big, $at, 50_000);
            }
            $writer->close;
        };
    }
    # A number is how many bytes tests/conformance wants.
    my $body = $path eq '/big' ? $big : $path eq '/pid' ? $$ : $path =~ m{^/(\d+)$} ? 'x' x $1 : $page;
    return [200, ['Content-Length' => length $body], [$body]];
};
