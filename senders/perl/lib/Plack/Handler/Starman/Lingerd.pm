# SPDX-License-Identifier: BSD-3-Clause
package Plack::Handler::Starman::Lingerd;

# What 'starman -s Starman::Lingerd' runs.

use strict;
use warnings;

use parent 'Plack::Handler::Starman';

use Lingerd::Starman ();

our $VERSION = '0.1.0';

sub run {
    my ($self, $app) = @_;
    my $new = Starman::Server->can('new');

    # The handler names the class of its server itself.
    no warnings 'redefine', 'once';
    local *Starman::Server::new = sub {
        my (undef, @arguments) = @_;
        return Lingerd::Starman->$new(@arguments);
    };
    return $self->SUPER::run($app);
}

1;

__END__

=head1 NAME

Plack::Handler::Starman::Lingerd - Starman, whose connections lingerd ends

=head1 SYNOPSIS

  starman -s Starman::Lingerd --workers 4 app.psgi
  starman -s Starman::Lingerd --lingerd-socket /run/lingerd/lingerd.sock app.psgi

=head1 DESCRIPTION

L<Starman>, with all its options, but for how a connection ends: it is handed over to lingerd(8), and with it what the
client is slow to read. If lingerd is not there a worker does what Starman does. Instead of C<--lingerd-socket> the
environment variable C<LINGERD_SOCKET> can say where it is.

=head1 LICENSE

BSD-3-Clause.

=cut
