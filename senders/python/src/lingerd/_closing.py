# SPDX-License-Identifier: BSD-3-Clause
"""How a connection ends at this side: the end of TLS, the half-close, and what
a server does without lingerd.

This must not know how lingerd is reached.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time


def client_done(sock: socket.socket) -> bool:
    """Whether the client has nothing more to send, and nothing that it has sent
    is unread: then sock can be closed at once, and nobody lingers.

    Does not wait. Also where the client still reads: close(2) resets only if
    something unread is there, or comes, and after the client's FIN nothing does.
    """
    timeout = sock.gettimeout()
    try:
        if timeout:
            # With a time-out Python would wait before it asks the kernel.
            sock.settimeout(0)
        try:
            # Not of a subclass: that of TLS knows no flags.
            return not socket.socket.recv(sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        finally:
            if timeout:
                sock.settimeout(timeout)
    except OSError as error:
        return error.errno == errno.ECONNRESET


def half_close(sock: socket.socket) -> bool:
    """Half-close a connection that is about to be handed over, and say whether
    that is still needed: True is what client_done() says.

    Elsewhere than on Linux lingerd does it: in the TCP of the BSDs a second time,
    by a server that has to linger itself after all, would end receiving, too.
    """
    if sys.platform == "linux":
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                return True
        # Whoever has the processor now may be the client, or let its FIN come in.
        os.sched_yield()
    return client_done(sock)


def close_notify(sock: socket.socket) -> bool:
    """Say the end of TLS on a connection that has it, without waiting for the
    client's. What is passed on is the TCP connection, so that this comes first.

    Returns whether it was said, or nothing is to be: False is for one that has no
    room for it. A connection without TLS is left alone.
    """
    if not hasattr(sock, "unwrap"):
        return True
    import ssl  # who has no TLS need not load it

    timeout = sock.gettimeout()
    try:
        sock.settimeout(0)
        try:
            sock.unwrap()
        finally:
            sock.settimeout(timeout)
    except ssl.SSLWantWriteError:
        return False
    except (OSError, ValueError):
        # It was said, and the client's is not there yet; or TLS never began, or
        # has failed, or the client has gone.
        pass
    return True


def lingering_close(sock: socket.socket, idle: float = 2.0, limit: float = 30.0) -> None:
    """Close a connection as a server has to without lingerd: half-close, and read
    until the client closes, is silent for idle seconds, or limit seconds are over.
    """
    close_notify(sock)
    until = time.monotonic() + limit
    try:
        sock.shutdown(socket.SHUT_WR)
        while True:
            left = until - time.monotonic()
            if left <= 0:
                break
            sock.settimeout(min(idle, left))
            if not socket.socket.recv(sock, 65536):
                break
    except OSError:
        pass  # the client has gone, or is silent
    finally:
        close(sock)


def close(sock: socket.socket) -> None:
    """close(2), of which no error matters any more."""
    try:
        sock.close()
    except OSError:
        pass
