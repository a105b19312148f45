# SPDX-License-Identifier: BSD-3-Clause
"""A server with the package, for the suite that any sender passes: tests/conformance of lingerd's repository says what
is asked of it."""

import os
import socket
import ssl
import tempfile
import threading

import lingerd

sender = lingerd.Sender(os.environ["LINGERD_SOCKET"])
seconds = int(os.environ.get("LINGER_SECONDS", 0))
spool = "SPOOL" in os.environ
tls = None
if "TLS_CERT" in os.environ:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(os.environ["TLS_CERT"], os.environ["TLS_KEY"])


def write(conn, response):
    """Whether all is written; else lingerd writes the rest."""
    if not spool:
        conn.sendall(response)
        return True
    try:
        sent = conn.send(response, socket.MSG_DONTWAIT)
    except BlockingIOError:
        sent = 0
    if sent < len(response):
        with tempfile.TemporaryFile() as file:
            file.write(response)
            file.flush()
            rest = lingerd.Part(file, sent, len(response) - sent, ours=True)
            if sender.may_spool(1) and sender.spool(conn, [rest]):
                return False
        conn.sendall(response[sent:])
    return True


def serve(conn):
    with conn:
        try:
            if tls:
                conn = tls.wrap_socket(conn, server_side=True)
            request = conn.recv(65536)
            if not request:
                return
            length = int(request.split()[1][1:])
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length
            if not write(conn, head + b"x" * length):
                return
        except OSError:
            conn.close()  # the client has gone
            return
        if seconds:
            if not sender.give(conn, seconds):
                lingerd.lingering_close(conn)
        else:
            sender.finish(conn)


def serve_all():
    while True:
        serve(listener.accept()[0])


listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
if "PROCESSES" in os.environ:
    serve(listener.accept()[0])
    for _ in range(int(os.environ["PROCESSES"]) - 1):
        if not os.fork():
            break
for _ in range(int(os.environ.get("THREADS", 1)) - 1):
    threading.Thread(target=serve_all, daemon=True).start()
serve_all()
