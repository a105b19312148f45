<?php
// SPDX-License-Identifier: BSD-3-Clause

declare(strict_types=1);

namespace Lingerd;

/**
 * Hands connections over to lingerd(8), for a server in PHP that has a process per connection: what lingerd-protocol(7)
 * has it do.
 *
 * One sender serves a process; in a child of pcntl_fork() it makes links of its own. Links are opened when they are
 * needed first; when there is none, one is tried for once a second at most. A connection is a Socket, or a stream.
 *
 * This must not know how long lingerd waits, for what, and what becomes of a socket.
 */
final class Sender
{
    /** Where lingerd listens unless it is told otherwise. */
    public const SOCKET = '/var/run/lingerd/lingerd.sock';

    private const MOST_PARTS = 4;

    /** How many bytes of a path go into a socket's address, beside its final NUL. */
    private const LONGEST_PATH = PHP_OS_FAMILY === 'Linux' || PHP_OS_FAMILY === 'Solaris' ? 107 : 103;

    /** @var array{Link, Link}|null */
    private ?array $links = null;
    private int $process = 0;

    /** @throws \ValueError for a path that no socket can have */
    public function __construct(public readonly string $path = self::SOCKET)
    {
        if ($path === '' || str_contains($path, "\0") || strlen("$path.2") > self::LONGEST_PATH) {
            throw new \ValueError("no socket can have the path '$path'");
        }
    }

    /** Why there is no link to hand over on; null if there is one, or none was needed yet. */
    public function error(): ?string
    {
        return $this->links()[0]->error;
    }

    /**
     * Hands over a connection on which all is written. Never waits.
     *
     * True: lingerd has it, and the caller closes its own copy, without a shutdown. False: the caller has it to itself,
     * and lingers.
     *
     * @param \Socket|resource $connection of TCP and without TLS, else the answer is false
     * @param ?int $seconds at least 1; for one that is not worth more
     */
    public function give(mixed $connection, ?int $seconds = null): bool
    {
        if ($seconds !== null && $seconds < 1) {
            throw new \ValueError('seconds must be at least 1');
        }
        $socket = self::tcp($connection);
        if ($socket === null || !self::flush($connection)) {
            return false;
        }
        if ($seconds !== null) {
            self::linger($socket, 1, $seconds);
        }
        $given = $this->links()[0]->send('L', [self::stream($connection)]);
        if ($seconds !== null && !$given) {
            self::linger($socket, 0, 0);
        }
        return $given;
    }

    /**
     * Ends a connection on which all is written: what a server calls in the place of fclose() or socket_close().
     * Half-closes, hands over unless the client has closed already, and closes.
     *
     * @param \Socket|resource $connection
     * @param ?callable $instead is called, with the connection, if lingerd does not take it, and closes it as the
     *     server would; else it is lingeringClose(), which waits
     * @return bool whether that was not needed
     */
    public function finish(mixed $connection, ?callable $instead = null): bool
    {
        $socket = self::tcp($connection);
        if ($socket !== null && self::flush($connection) && (self::halfClose($socket) || $this->give($connection))) {
            self::close($connection);
            return true;
        }
        ($instead ?? self::lingeringClose(...))($connection);
        return false;
    }

    /**
     * Whether lingerd takes a response now, with spool(); or within so many seconds, and, if it is given the client's
     * connection, until there is room on that.
     *
     * @param \Socket|resource|null $room
     */
    public function maySpool(float $wait = 0, mixed $room = null): bool
    {
        return $this->links()[1]->goAhead($wait, $room === null ? null : self::tcp($room));
    }

    /**
     * Hands over a connection on which 1 to 4 parts of files are still to be written, in their order. lingerd writes
     * them, and then does as with give(); it resets the connection if that does not get on for so many seconds.
     *
     * It is not half-closed. True: lingerd has it, and the caller closes its own copy. False: the caller has it to
     * itself, and writes.
     *
     * @param \Socket|resource $connection
     * @param list<Part> $parts
     */
    public function spool(mixed $connection, array $parts, float $patience = 300): bool
    {
        if (count($parts) < 1 || count($parts) > self::MOST_PARTS) {
            throw new \ValueError('there are 1 to ' . self::MOST_PARTS . ' parts');
        }
        $milliseconds = (int) min($patience * 1000, 0x7fffffff);
        if ($milliseconds < 1) {
            throw new \ValueError('patience must be more than 0');
        }
        $socket = self::tcp($connection);
        if ($socket === null || !$this->maySpool() || !self::flush($connection)) {
            return false;
        }
        foreach ($parts as $part) {
            if (!self::flush($part->file)) {
                return false;
            }
        }
        [$flags, $numbers] = [0, []];
        foreach (array_values($parts) as $n => $part) {
            array_push($numbers, $part->offset, $part->length);
            $flags |= (int) $part->ours << $n;
        }
        $numbers = array_pad($numbers, 2 * self::MOST_PARTS, 0);
        $head = pack('aCnNJ8', 'S', count($parts), $flags, $milliseconds, ...$numbers);
        // Whoever closes it last resets it from here on, if lingerd is killed before it has read this: the client might
        // take for the end what is none.
        self::linger($socket, 1, 0);
        $files = array_map(fn (Part $part) => $part->file, array_values($parts));
        $given = $this->links()[1]->send($head, [self::stream($connection), ...$files], true);
        if (!$given) {
            self::linger($socket, 0, 0);
        }
        return $given;
    }

    /**
     * Closes a connection as a server has to without lingerd: half-closes, and reads until the client closes, is silent
     * for two seconds, or thirty are over.
     *
     * @param \Socket|resource $connection
     */
    public static function lingeringClose(mixed $connection): void
    {
        $socket = self::tcp($connection);
        $now = fn (): float => hrtime(true) / 1e9;
        [$until, $silent] = [$now() + 30, $now() + 2];
        if ($socket !== null && self::flush($connection) && @socket_shutdown($socket, 1)) {
            while (($left = min($until, $silent) - $now()) > 0) {
                [$read, $write, $except] = [[$socket], null, null];
                $ready = Link::select($read, $write, $except, $left);
                if ($ready === 0 || ($ready && !@socket_recv($socket, $late, 65_536, MSG_DONTWAIT))) {
                    break;
                }
                $silent = $ready ? $now() + 2 : $silent;
            }
        }
        self::close($connection);
    }

    /** Closes the links. One that is needed again is opened again. */
    public function closeLinks(): void
    {
        foreach ($this->links() as $link) {
            $link->close();
        }
    }

    /**
     * The two of this process.
     *
     * @return array{Link, Link}
     */
    private function links(): array
    {
        if ($this->links === null || $this->process !== getmypid()) {
            $this->process = getmypid();
            $this->links = [new Link($this->path), new Link("$this->path.2")];
        }
        return $this->links;
    }

    /**
     * Its socket, if it is open, and of a kind that lingerd takes.
     *
     * @param \Socket|resource $connection
     */
    private static function tcp(mixed $connection): ?\Socket
    {
        if (is_resource($connection)) {
            if (get_resource_type($connection) !== 'stream' || isset(stream_get_meta_data($connection)['crypto'])) {
                return null;
            }
            $connection = @socket_import_stream($connection);
        }
        try {
            // A Unix socket has no port.
            $is = $connection instanceof \Socket
                && @socket_getsockname($connection, $address, $port) && $port !== null
                && @socket_get_option($connection, SOL_SOCKET, SO_TYPE) === SOCK_STREAM;
        } catch (\Error) {
            return null;    // it is closed
        }
        return $is ? $connection : null;
    }

    /**
     * What is passed on: PHP 8.0 to 8.4 pass another descriptor than that of a Socket, which is mended in newer ones
     * (php-src, pull request 22338). They share it, and whoever closes one closes the other.
     *
     * @param \Socket|resource $connection
     * @return resource
     */
    private static function stream(mixed $connection): mixed
    {
        return is_resource($connection) ? $connection : socket_export_stream($connection);
    }

    /**
     * Half-closes, and says whether the client is done. Elsewhere than on Linux lingerd does it: in the TCP of the BSDs
     * a second time, by a server that has to linger itself after all, would end receiving, too.
     */
    private static function halfClose(\Socket $socket): bool
    {
        if (PHP_OS_FAMILY === 'Linux' && !@socket_shutdown($socket, 1)) {
            return socket_last_error($socket) === SOCKET_ENOTCONN;
        }
        $length = @socket_recv($socket, $said, 1, MSG_PEEK | MSG_DONTWAIT);
        return $length === 0 || ($length === false && socket_last_error($socket) === SOCKET_ECONNRESET);
    }

    /** Has the kernel have what a stream still keeps of what was written, as one with a filter may. */
    private static function flush(mixed $stream): bool
    {
        return !is_resource($stream) || @fflush($stream);
    }

    private static function linger(\Socket $socket, int $on, int $seconds): void
    {
        // Else the client has gone.
        @socket_set_option($socket, SOL_SOCKET, SO_LINGER, ['l_onoff' => $on, 'l_linger' => $seconds]);
    }

    private static function close(mixed $connection): void
    {
        try {
            is_resource($connection) ? fclose($connection) : socket_close($connection);
        } catch (\Error) {
            // It is closed already.
        }
    }
}
