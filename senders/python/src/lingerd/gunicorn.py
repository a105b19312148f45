# SPDX-License-Identifier: BSD-3-Clause
"""Workers for gunicorn(1) that leave the lingering close to lingerd(8)::

    gunicorn -k lingerd.gunicorn.SyncWorker app:app
    gunicorn -k lingerd.gunicorn.ThreadWorker --threads 8 app:app

They are gunicorn's own, sync and gthread, in all but how a connection ends: with what
its client is slow to read of the last response, too.
The environment variable LINGERD_SOCKET says where lingerd listens if it is not
at /var/run/lingerd/lingerd.sock; gunicorn sets it with -e, or with raw_env in
its configuration.

This must not know what a message to lingerd looks like.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Callable, Optional

from gunicorn import util
from gunicorn.http.wsgi import Response
from gunicorn.workers import gthread, sync

from ._response import Connection
from ._sender import SOCKET, Sender

__all__ = ["SyncWorker", "ThreadWorker"]


class _Lingering:
    """What both have: a process in which gunicorn closes connections through
    lingerd, and an application whose response the connection knows.

    gunicorn's workers have no method for a close. All of them call functions of
    gunicorn.util: close_graceful, which newer ones have for the lingering close, and
    close, for close(2) alone; they look them up there each time. So in the process
    of a worker, and nowhere else, there are others by these names.
    """

    cfg: Any
    log: Any
    wsgi: Any
    sender: Optional[Sender] = None

    def init_process(self) -> None:
        path = os.environ.get("LINGERD_SOCKET") or SOCKET
        try:
            self.sender = sender = Sender(path)
        except ValueError as error:
            self.log.error("lingerd: %s: workers linger themselves", error)
        else:
            away = _Away(sender, self.log)
            for name in "close_graceful", "close":
                if hasattr(util, name):
                    setattr(util, name, _Closing(sender, getattr(util, name), away))
        super().init_process()  # type: ignore[misc]  # gunicorn's, which serves

    def load_wsgi(self) -> None:
        super().load_wsgi()  # type: ignore[misc]
        application = self.wsgi

        def told(environ: Any, start_response: Any) -> Any:
            """Has the connection know the response that is written to it."""
            connection = environ.get("gunicorn.socket")
            response = getattr(start_response, "__self__", None)
            # Not that of HTTP/2, which is framed in another way.
            if not isinstance(connection, Connection) or type(response) is not Response:
                return application(environ, start_response)
            connection.begin(response)
            body = application(environ, start_response)
            if isinstance(body, (list, tuple)):
                connection.all_is_there()
            return body

        self.wsgi = told

    def spooling(self, client: socket.socket) -> socket.socket:
        """The same connection, as one whose response is handed over if its client is
        slow; unless lingerd cannot do that."""
        if self.sender is None or self.cfg.is_ssl or client.family == socket.AF_UNIX:
            return client
        return Connection(client, self.sender)


class _Away:
    """Says in the log when lingerd is away, and when it is there again."""

    def __init__(self, sender: Sender, log: Any) -> None:
        self._sender = sender
        self._log = log
        self._is_away = False

    def look(self) -> None:
        error = self._sender.error
        if (error is not None) == self._is_away:
            return
        self._is_away = error is not None
        if error is not None:
            self._log.warning("lingerd: %s: lingering without it", error)
        else:
            self._log.info("lingerd: at %s again", self._sender.path)


class _Closing:
    """What is called in the place of a function of gunicorn's, and calls that if
    lingerd does not take a connection."""

    def __init__(self, sender: Sender, original: Callable[..., None], away: _Away) -> None:
        self._sender = sender
        self._original = original
        self._away = away

    def __call__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        self._sender.finish(sock, lambda it: self._original(it, *args, **kwargs))
        self._away.look()


class SyncWorker(_Lingering, sync.SyncWorker):  # type: ignore[misc]
    """gunicorn's sync worker, which is free when its response is made."""

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        super().handle(listener, self.spooling(client), addr)

    def handle_request(self, listener: Any, req: Any, client: socket.socket, addr: Any) -> None:
        try:
            super().handle_request(listener, req, client, addr)
            if isinstance(client, Connection):
                client.end()
        finally:
            if isinstance(client, Connection):
                client.forget()


class ThreadWorker(_Lingering, gthread.ThreadWorker):  # type: ignore[misc]
    """gunicorn's gthread worker, whose threads are free when their response is
    made."""

    def enqueue_req(self, conn: Any) -> None:
        if not isinstance(conn.sock, Connection):
            conn.sock = self.spooling(conn.sock)
        super().enqueue_req(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        connection = conn.sock
        try:
            goes_on = super().handle_request(req, conn)
            if isinstance(connection, Connection):
                connection.end()
            return goes_on
        finally:
            if isinstance(connection, Connection):
                connection.forget()
