# SPDX-License-Identifier: BSD-3-Clause
"""Hands connections over to lingerd(8), for a server in Python.

A server that has written its response, and closes, has to wait until its
client has closed too; else a late byte of the client has the kernel reset the
connection, and what the client has not read yet of the response is lost (RFC
9112, section 9.6). With this it passes the socket to lingerd, which waits::

    sender = lingerd.Sender()
    ...
    sender.finish(conn)         # in the place of conn.close()

For gunicorn there are workers, in lingerd.gunicorn.
"""

from ._closing import client_done, close_notify, half_close, lingering_close
from ._sender import SOCKET, Part, Sender

__all__ = [
    "SOCKET",
    "Part",
    "Sender",
    "client_done",
    "close_notify",
    "half_close",
    "lingering_close",
]
