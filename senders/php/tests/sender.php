<?php
// SPDX-License-Identifier: BSD-3-Clause
//
// What the sender does with connections at its own end. tests/conformance has it before the real lingerd.

declare(strict_types=1);

use Lingerd\Sender;

foreach (['Link', 'Part', 'Sender'] as $class) {
    require __DIR__ . "/../src/$class.php";
}

function check(bool $holds, string $what): void
{
    echo $holds ? "ok - $what\n" : "not ok - $what\n";
    if (!$holds) {
        exit(1);
    }
}

/** The client's end and the server's of a connection, two streams. */
function connection(): array
{
    $listener = stream_socket_server('tcp://127.0.0.1:0');
    $client = stream_socket_client('tcp://' . stream_socket_get_name($listener, false));
    return [$client, stream_socket_accept($listener)];
}

$nobody = new Sender(__DIR__ . '/nobody');

[, $stream] = connection();
fclose($stream);
[, $server] = connection();
$socket = socket_import_stream($server);
socket_close($socket);
foreach ([$stream, $socket] as $closed) {
    check(!$nobody->finish($closed), 'one that is closed is not handed over');
    check(!$nobody->give($closed), 'nor given');
}

// A signal is no silence: what comes with it is still read, else the client would be reset.
pcntl_async_signals(true);
[$client, $server] = connection();
pcntl_signal(SIGALRM, fn () => fwrite($client, 'late'));
pcntl_alarm(1);
check(!$nobody->finish($server), 'without lingerd it lingers');
check(fread($client, 1) === '', 'the client has an end');
check(socket_get_option(socket_import_stream($client), SOL_SOCKET, SO_ERROR) === 0, 'and no reset');
