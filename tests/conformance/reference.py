# SPDX-License-Identifier: BSD-3-Clause
# A server that the suite finds nothing wrong with, with nothing but Python's own library. faults.rs makes each of the
# mistakes in it that the suite is there for, so that a line here is changed together with one there.
import errno
import os
import select
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time

path = os.environ["LINGERD_SOCKET"]
seconds = int(os.environ.get("LINGER_SECONDS", 0))
tls = None
if "TLS_CERT" in os.environ:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(os.environ["TLS_CERT"], os.environ["TLS_KEY"])
NOT_NOW = {errno.EAGAIN, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINTR}


class Link:
    """A connection to one of lingerd's sockets."""

    def __init__(self, path):
        self.path = path
        self.lock = threading.RLock()
        self.forget()

    def forget(self):
        self.sock, self.tried, self.may_spool, self.pid = None, None, False, os.getpid()

    def connected(self):
        """Whether there is a link; tries once a second."""
        if self.pid != os.getpid():
            self.forget()
        if self.sock is None:
            if self.tried is not None and time.monotonic() - self.tried < 1:
                return False
            self.tried, self.may_spool = time.monotonic(), False
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            try:
                sock.connect(self.path)
            except OSError:
                sock.close()
                return False
            self.sock = sock
        return True

    def send(self, message, descriptors):
        """Whether lingerd has it now."""
        with self.lock:
            for _ in range(2):
                if not self.connected():
                    return False
                try:
                    return socket.send_fds(self.sock, [message], descriptors) == len(message)
                except OSError as error:
                    if error.errno in NOT_NOW:
                        return False
                    self.sock.close()
                    self.sock = None
            return False

    def go_ahead(self):
        """Whether lingerd takes a response, or says within a second that it does."""
        if self.connected() and not self.may_spool and select.select([self.sock], [], [], 1)[0]:
            self.may_spool = self.sock.recv(1) == b"G"
            if not self.may_spool:
                self.sock.close()
                self.sock = None
        return self.may_spool


first, second = Link(path), Link(path + ".2")


def set_linger(conn, on, seconds):
    try:
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, seconds))
    except OSError:
        pass  # the client has gone


def spool(conn, response):
    """Whether lingerd writes that."""
    with tempfile.TemporaryFile() as file:
        file.write(response)
        file.flush()
        head = struct.pack("!cBHI8Q", b"S", 1, 1, 60_000, 0, len(response), 0, 0, 0, 0, 0, 0)
        if not second.go_ahead():
            return False
        set_linger(conn, True, 0)
        if second.send(head, [conn.fileno(), file.fileno()]):
            second.may_spool = False
            return True
        set_linger(conn, False, 0)
        return False


def write(conn, response):
    """Whether all is written; else lingerd writes the rest."""
    if "SPOOL" in os.environ:
        try:
            response = response[conn.send(response, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            pass
        if response and spool(conn, response):
            return False
    conn.sendall(response)
    return True


def half_close(conn):
    try:
        socket.socket.shutdown(conn, socket.SHUT_WR)
    except OSError:
        pass  # the client has gone


def goodbye(conn):
    """The end of TLS, without waiting for the client's."""
    if tls:
        conn.settimeout(0)
        try:
            conn.unwrap()
        except OSError:
            pass


def linger(conn):
    half_close(conn)
    until = time.monotonic() + 30
    conn.settimeout(2)
    try:
        while time.monotonic() < until and socket.socket.recv(conn, 65536):
            pass
    except OSError:
        pass


def give(conn):
    """Whether lingerd has it now."""
    if seconds:
        set_linger(conn, True, seconds)
    if first.send(b"L", [conn.fileno()]):
        return True
    set_linger(conn, False, 0)
    return False


def serve(conn):
    try:
        if tls:
            conn = tls.wrap_socket(conn, server_side=True)
        request = conn.recv(65536)
        length = int(request.split()[1][1:])
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length
        if write(conn, head + b"x" * length):
            goodbye(conn)
            half_close(conn)
            if not give(conn):
                linger(conn)
    except (OSError, IndexError):
        pass  # the client has gone
    conn.close()


def serve_all():
    while True:
        serve(listener.accept()[0])


listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
if "PROCESSES" in os.environ:
    serve(listener.accept()[0])
    os.fork()
if "THREADS" in os.environ:
    threading.Thread(target=serve_all, daemon=True).start()
serve_all()
