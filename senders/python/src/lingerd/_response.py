# SPDX-License-Identifier: BSD-3-Clause
"""A connection of gunicorn's sync worker whose client may read slowly: of the last
piece of a response, what the kernel does not take is handed over with it.

The last piece only: what an application has said so far is on its way while it
thinks about what comes next, as PEP 3333 has it.

This must not know what a message to lingerd looks like.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from typing import IO, Any, Callable, Optional

from ._closing import close
from ._sender import Part, Sender

# How long to wait, in seconds, for lingerd and the client, before lingerd is tried to
# be reached again if it is not there.
_WAIT = 1

# How much of a file is read for the socket at once, in bytes.
_PIECE = 65536


class Connection(socket.socket):
    """Takes the place of sock, of TCP and without TLS, which is detached."""

    response: Any = None
    """gunicorn's Response, as soon as there is one."""

    def __init__(self, sock: socket.socket, sender: Sender) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._sender = sender

    def sendall(self, data: Any, flags: int = 0) -> None:
        if not self._is_last():
            super().sendall(data, flags)
            return
        view = memoryview(data).cast("B")

        def rest(at: int, file: IO[bytes]) -> Part:
            file.write(view[at:])
            file.flush()
            return Part(file, 0, len(view) - at, ours=True)

        self._write(0, len(view), lambda at: view[at:], rest)

    def sendfile(self, file: Any, offset: int = 0, count: Optional[int] = None) -> int:
        fd = file.fileno()
        if not count or self.response is None or self.response.is_chunked() or not _is_regular(fd):
            return super().sendfile(file, offset, count)
        end = offset + count
        written = self._write(
            offset,
            end,
            lambda at: os.pread(fd, min(_PIECE, end - at), at),
            lambda at, _: Part(fd, at, end - at),
        )
        return written - offset

    def _is_last(self) -> bool:
        """Whether what is to be written now is all that there is."""
        response = self.response
        return (
            response is not None
            and not response.chunked
            and response.response_length is not None
            and response.sent >= response.response_length
        )

    def _write(
        self,
        at: int,
        end: int,
        piece: Callable[[int], Any],
        rest: Callable[[int, IO[bytes]], Part],
    ) -> int:
        """Write from at to end what piece has from there on; or hand over with what rest
        has, in a file that it may use, and close. Returns where it ends."""
        while at < end:
            data = piece(at)
            if not len(data):
                break  # the file is not what it was
            try:
                at += self.send(data, socket.MSG_DONTWAIT)
                continue
            except BlockingIOError:
                pass
            if self._sender.may_spool(_WAIT, self):
                with _memory() as file:
                    given = self._sender.spool(self, [rest(at, file)])
                if given:
                    close(self)
                    return end
        return at


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _memory() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("lingerd"), "w+b")
    return tempfile.TemporaryFile()
