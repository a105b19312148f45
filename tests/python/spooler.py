# SPDX-License-Identifier: BSD-3-Clause
# A server that sends a file to each client: what the socket takes, and the rest lingerd.
import os
import socket
import sys

import lingerd

sender = lingerd.Sender(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    conn, _ = listener.accept()
    with conn, open(sys.argv[2], "rb") as file:
        conn.recv(65536)
        sent = conn.send(file.read(65536), socket.MSG_DONTWAIT)
        rest = lingerd.Part(file, sent, os.fstat(file.fileno()).st_size - sent)
        if not sender.may_spool(60) or not sender.spool(conn, [rest]):
            sys.exit("lingerd did not take it")
