<?php
// SPDX-License-Identifier: BSD-3-Clause

declare(strict_types=1);

namespace Lingerd;

/**
 * A connection to one of lingerd's sockets, for one process.
 *
 * This must not know what becomes of what is sent.
 *
 * @internal
 */
final class Link
{
    /** The link is good, and what is queued in it will be read. */
    private const NOT_NOW = [
        SOCKET_EAGAIN, SOCKET_EMFILE, SOCKET_ENFILE, SOCKET_ENOBUFS, SOCKET_ENOMEM, SOCKET_EINTR, SOCKET_ETOOMANYREFS,
    ];

    /** Why there is no link, or null. */
    public ?string $error = null;

    private ?\Socket $socket = null;
    private bool $connected = false;
    private bool $maySpool = false;
    private ?float $tried = null;

    public function __construct(private readonly string $path)
    {
    }

    /**
     * Whether lingerd has it now. A link that turns out to be dead most likely means that lingerd was started anew:
     * then once more, on a new one.
     *
     * @param list<resource> $descriptors streams
     */
    public function send(string $message, array $descriptors, bool $spooled = false): bool
    {
        $control = [['level' => SOL_SOCKET, 'type' => SCM_RIGHTS, 'data' => $descriptors]];
        for ($attempt = 0; $attempt < 2; $attempt++) {
            $socket = $this->open();
            if ($socket === null || ($spooled && !$this->goesAhead($socket))) {
                return false;
            }
            $sent = @socket_sendmsg($socket, ['iov' => [$message], 'control' => $control], self::flags());
            if ($sent === strlen($message)) {
                $this->maySpool = $this->maySpool && !$spooled;
                return true;
            }
            $error = $sent === false ? socket_last_error($socket) : SOCKET_EPIPE;
            if (in_array($error, self::NOT_NOW, true)) {
                return false;
            }
            $this->drop($error);
        }
        return false;
    }

    /** Whether lingerd takes a response now, or within so many seconds, and before there is room to write there. */
    public function goAhead(float $seconds, ?\Socket $room): bool
    {
        $until = self::now() + $seconds;
        while (true) {
            $socket = $this->open();
            if ($socket !== null && $this->goesAhead($socket)) {
                return true;
            }
            $left = $until - self::now();
            [$read, $write, $except] = [array_filter([$this->socket]), array_filter([$room]), null];
            if ($left <= 0 || !($read || $write)) {
                return false;
            }
            $ready = self::select($read, $write, $except, $left);
            if ($ready === 0 || ($ready && $write)) {
                return false;
            }
        }
    }

    /**
     * socket_select(), for so many seconds: how many are ready; 0 also if it fails; null if a signal has ended it.
     *
     * @param list<\Socket> $read
     * @param ?list<\Socket> $write
     */
    public static function select(array &$read, ?array &$write, ?array &$except, float $seconds): ?int
    {
        $micros = (int) ceil($seconds * 1e6);
        $ready = @socket_select($read, $write, $except, intdiv($micros, 1_000_000), $micros % 1_000_000);
        return $ready === false && socket_last_error() === SOCKET_EINTR ? null : (int) $ready;
    }

    public function close(): void
    {
        if ($this->socket !== null) {
            $this->drop(SOCKET_ENOTCONN);
        }
    }

    /** The link, if there is one; tries to make one once a second at most. */
    private function open(): ?\Socket
    {
        if ($this->connected) {
            return $this->socket;
        }
        if ($this->socket === null) {
            if ($this->tried !== null && self::now() - $this->tried < 1) {
                return null;
            }
            $this->tried = self::now();
            $this->socket = @socket_create(AF_UNIX, SOCK_STREAM, 0) ?: null;
            if ($this->socket === null || !socket_set_nonblock($this->socket)) {
                $this->drop(socket_last_error());
                return null;
            }
        }
        $connected = @socket_connect($this->socket, $this->path);
        $error = $connected ? SOCKET_EISCONN : socket_last_error($this->socket);
        if ($error === SOCKET_EISCONN) {
            $this->connected = true;
            $this->error = null;
            return $this->socket;
        }
        if ($error !== SOCKET_EINPROGRESS && $error !== SOCKET_EALREADY) {
            $this->drop($error);
        }
        return null;
    }

    /** Takes note of what lingerd has said. */
    private function goesAhead(\Socket $socket): bool
    {
        if ($this->maySpool) {
            return true;
        }
        $length = @socket_recv($socket, $said, 64, MSG_DONTWAIT);
        $error = $length === false ? socket_last_error($socket) : SOCKET_EPIPE;
        if ($length) {
            $this->maySpool = str_contains($said, 'G');
        } elseif (!in_array($error, self::NOT_NOW, true)) {
            $this->drop($error);
        }
        return $this->maySpool;
    }

    private function drop(int $error): void
    {
        if ($this->socket !== null) {
            socket_close($this->socket);
        }
        $this->socket = null;
        $this->connected = $this->maySpool = false;
        $this->error = $this->path . ': ' . socket_strerror($error);
    }

    private static function flags(): int
    {
        return MSG_DONTWAIT | (defined('MSG_NOSIGNAL') ? MSG_NOSIGNAL : 0);
    }

    private static function now(): float
    {
        return hrtime(true) / 1e9;
    }
}
