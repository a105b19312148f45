<?php
// SPDX-License-Identifier: BSD-3-Clause
//
// A server for tests/conformance, which says what it has to do.

declare(strict_types=1);

use Lingerd\Part;
use Lingerd\Sender;

foreach (['Link', 'Part', 'Sender'] as $class) {
    require __DIR__ . "/../src/$class.php";
}

if (getenv('CHECK') === 'exec') {
    echo "lacks: PHP cannot have a socket closed in the programs that it runs\n";
    exit(0);
}
foreach (['THREADS' => 'PHP has no threads', 'TLS_CERT' => 'a stream with TLS is not handed over'] as $name => $why) {
    if (getenv($name) !== false) {
        echo "lacks: $why\n";
        exit(0);
    }
}

function respond(Sender $sender, \Socket $client): void
{
    if (!@socket_recv($client, $request, 65_536, 0) || !preg_match('~^GET /(\d+) ~', $request, $size)) {
        socket_close($client);
        return;
    }
    $body = "HTTP/1.1 200 OK\r\nContent-Length: $size[1]\r\n\r\n" . str_repeat('x', (int) $size[1]);
    while ($body !== '') {
        $sent = @socket_send($client, $body, strlen($body), getenv('SPOOL') !== false ? MSG_DONTWAIT : 0);
        if ($sent !== false) {
            $body = substr($body, $sent);
        } elseif (socket_last_error($client) !== SOCKET_EAGAIN) {
            break;
        } elseif ($sender->maySpool(1, $client)) {
            $file = tmpfile();
            fwrite($file, $body);
            fflush($file);
            if ($sender->spool($client, [new Part($file, 0, strlen($body), true)])) {
                socket_close($client);
                return;
            }
        }
    }
    $seconds = getenv('LINGER_SECONDS');
    if ($seconds !== false && $sender->give($client, (int) $seconds)) {
        socket_close($client);
        return;
    }
    $sender->finish($client);
}

$sender = new Sender(getenv('LINGERD_SOCKET'));
$listener = socket_create(AF_INET, SOCK_STREAM, 0);
socket_set_option($listener, SOL_SOCKET, SO_REUSEADDR, 1);
socket_bind($listener, '127.0.0.1', (int) getenv('PORT'));
socket_listen($listener, 128);
$forks = (int) getenv('PROCESSES') - 1;
while (true) {
    respond($sender, socket_accept($listener));
    for (; $forks > 0; $forks--) {
        if (pcntl_fork() === 0) {
            $forks = 0;
        }
    }
}
