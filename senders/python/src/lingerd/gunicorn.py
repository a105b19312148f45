# SPDX-License-Identifier: BSD-3-Clause
"""Workers for gunicorn(1) that leave the lingering close to lingerd(8)::

    gunicorn -k lingerd.gunicorn.SyncWorker app:app
    gunicorn -k lingerd.gunicorn.ThreadWorker --threads 8 app:app

They are gunicorn's own, sync and gthread, in all but how a connection ends; and the
first hands over, too, what its client is slow to read of a response.
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
from gunicorn.workers import gthread, sync

from ._response import Connection
from ._sender import SOCKET, Sender

__all__ = ["SyncWorker", "ThreadWorker"]


class _Lingering:
    """What both have: a process in which gunicorn closes connections through
    lingerd.

    gunicorn's workers have no method for that. All of them call one function of
    gunicorn.util, which newer ones have for the lingering close, and older ones for
    close(2) alone; they look it up there each time. So in the process of a worker,
    and nowhere else, there is another function by that name.
    """

    log: Any
    sender: Optional[Sender] = None

    def init_process(self) -> None:
        path = os.environ.get("LINGERD_SOCKET") or SOCKET
        try:
            self.sender = sender = Sender(path)
        except ValueError as error:
            self.log.error("lingerd: %s: workers linger themselves", error)
        else:
            name = "close_graceful" if hasattr(util, "close_graceful") else "close"
            setattr(util, name, _Closing(sender, getattr(util, name), self.log))
        super().init_process()  # type: ignore[misc]  # gunicorn's, which serves


class _Closing:
    """What is called in the place of gunicorn's function, and calls that if
    lingerd does not take a connection."""

    def __init__(self, sender: Sender, original: Callable[..., None], log: Any) -> None:
        self._sender = sender
        self._original = original
        self._log = log
        self._alone = False

    def __call__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        self._sender.finish(sock, lambda it: self._original(it, *args, **kwargs))
        error = self._sender.error
        if (error is not None) != self._alone:
            self._alone = error is not None
            if error is not None:
                self._log.warning("lingerd: %s: lingering without it", error)
            else:
                self._log.info("lingerd: at %s again", self._sender.path)


class SyncWorker(_Lingering, sync.SyncWorker):  # type: ignore[misc]
    """gunicorn's sync worker, which is free when its response is made."""

    wsgi: Any

    def load_wsgi(self) -> None:
        super().load_wsgi()
        application = self.wsgi

        def told(environ: Any, start_response: Any) -> Any:
            """Has the connection know the response that is written to it."""
            connection = environ.get("gunicorn.socket")
            if isinstance(connection, Connection):
                connection.response = getattr(start_response, "__self__", None)
            return application(environ, start_response)

        self.wsgi = told

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        if self.sender is None or self.cfg.is_ssl or client.family == socket.AF_UNIX:
            super().handle(listener, client, addr)
            return
        connection = Connection(client, self.sender)
        try:
            super().handle(listener, connection, addr)
        finally:
            connection.response = None  # which has the connection


class ThreadWorker(_Lingering, gthread.ThreadWorker):  # type: ignore[misc]
    """gunicorn's gthread worker, none of whose threads lingers."""
