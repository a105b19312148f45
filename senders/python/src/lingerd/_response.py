# SPDX-License-Identifier: BSD-3-Clause
"""A connection of a gunicorn worker, whose client may read slowly: what the kernel
does not take of a response is kept until all of it is there, and is handed over
with the connection.

Kept is only what nobody has to wait for: the last piece of a response that says
its length, a list or a tuple, and a file. What an application makes bit by bit is
on its way while it thinks about what comes next, as PEP 3333 has it. And only what
is the last response of its connection.

This must not know what a message to lingerd looks like.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import tempfile
import threading
from collections import deque
from typing import IO, Any, Deque, List, Optional, Union

from ._closing import close
from ._sender import Part, Sender

# How long a client may take that is not slow, in seconds.
_MOMENT = 0.002

# How long to wait, in seconds, for lingerd and the client, before lingerd is tried to
# be reached again if it is not there, or asked again if it did not take it.
_WAIT = 1

# How much of a file is read for the socket at once, in bytes.
_PIECE = 65536

# lingerd takes one response of a process at a time. Of threads that are told so one copies
# its response, and not all in vain.
_giving = threading.Lock()

# How a response in chunks ends.
_LAST_CHUNK = b"0\r\n\r\n"


class Connection(socket.socket):
    """Takes the place of sock, of TCP and without TLS, which is detached."""

    def __init__(self, sock: socket.socket, sender: Sender) -> None:
        timeout = sock.gettimeout()
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        if self.gettimeout() != timeout:
            self.settimeout(timeout)
        self._sender = sender
        # gunicorn's, from when the application is called until it is written.
        self._response: Any = None
        self._all_is_there = False
        self._kept: Deque[Union[memoryview, Part]] = deque()
        self._given = False

    def begin(self, response: Any) -> None:
        """From here on a response is made."""
        self._response = response
        self._all_is_there = False

    def all_is_there(self) -> None:
        """What follows of the response comes at once."""
        self._all_is_there = True

    def end(self) -> None:
        """The response is complete: what is kept of it goes. Of one on which nobody
        can write any more there is none."""
        try:
            if self.fileno() >= 0:
                self._flush()
        except BaseException:
            # gunicorn would write a page for the error into the midst of it.
            close(self)
            raise

    def forget(self) -> None:
        """The response is over, or given up: what is kept of it is dropped. Its file
        is closed, and by its number there may be another one."""
        self._kept.clear()
        self._response = None  # which has the connection

    def sendall(self, data: Any, flags: int = 0) -> None:
        is_last = self._is_last(data)
        if not (is_last or self._may_be_kept()):
            super().sendall(data, flags)
            return
        self._keep(memoryview(data).cast("B"))
        if is_last:
            self._flush()

    def sendfile(self, file: Any, offset: int = 0, count: Optional[int] = None) -> int:
        fd = file.fileno()
        if not count or not self._is_closed_after() or not _is_regular(fd):
            return super().sendfile(file, offset, count)
        self.all_is_there()
        self._keep(Part(fd, offset, count))
        if not self._response.chunked:
            self._flush()
        return count

    def dup(self) -> socket.socket:  # type: ignore[override]  # which has it of the same class
        """A copy, as any other socket: what is kept is only here."""
        same = socket.socket(self.family, self.type, self.proto, fileno=os.dup(self.fileno()))
        same.settimeout(self.gettimeout())
        return same

    def recv(self, *args: Any) -> bytes:
        # What the client says is lingerd's.
        return b"" if self._given else super().recv(*args)

    def setblocking(self, flag: bool) -> None:
        # gunicorn has it to be so before it closes, and would be told that it is closed.
        if self.fileno() >= 0:
            super().setblocking(flag)

    def _is_closed_after(self) -> bool:
        """Whether a response is being made that is the last one here."""
        response = self._response
        return response is not None and response.status is not None and bool(response.should_close())

    def _may_be_kept(self) -> bool:
        # Not a head, which may be all that there is.
        return self._all_is_there and self._is_closed_after() and bool(self._response.headers_sent)

    def _is_last(self, data: Any) -> bool:
        """Whether this, which is to be written, is the end of the last response."""
        if not self._is_closed_after():
            return False
        response = self._response
        if response.chunked:
            return bool(self._all_is_there and data == _LAST_CHUNK)
        length = response.response_length
        return length is not None and 0 < length <= response.sent

    def _keep(self, what: Union[memoryview, Part]) -> None:
        """What the socket takes at once need not be kept."""
        is_first = not self._kept
        self._kept.append(what)
        if is_first:
            self._write()

    def _write(self) -> bool:
        """Whether the socket has taken all that is kept, without waiting."""
        while self._kept:
            first = self._kept[0]
            data: Union[memoryview, bytes]
            if isinstance(first, memoryview):
                data = first
            else:
                data = os.pread(_number(first), min(_PIECE, first.length), first.offset)
            if not len(data):  # or the file is not what it was
                self._kept.popleft()
                continue
            try:
                sent = self.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            if isinstance(first, memoryview):
                self._kept[0] = first[sent:]
            else:
                self._kept[0] = first._replace(offset=first.offset + sent, length=first.length - sent)
        return True

    def _flush(self) -> None:
        """Have the client, or lingerd, take all that is kept."""
        while not self._write():
            if self._has_room(_MOMENT) or not self._sender.may_spool(_WAIT, self):
                continue
            with _giving:
                if not self._sender.may_spool():
                    continue  # another thread was faster
                given = self._give()
            if given:
                self._kept.clear()
                self._given = True
                close(self)
                return
            # It did not, and would not at once if it was asked again.
            self._has_room(_WAIT)

    def _give(self) -> bool:
        """Whether lingerd has it now, with what is kept. Not if there is no
        descriptor, or no memory, for that."""
        parts: List[Part] = []
        written = 0
        try:
            with _memory() as file:
                for each in self._kept:
                    if isinstance(each, Part):
                        parts.append(each)
                        continue
                    file.write(each)
                    if parts and parts[-1].file is file:
                        parts[-1] = parts[-1]._replace(length=parts[-1].length + len(each))
                    else:
                        parts.append(Part(file, written, len(each), ours=True))
                    written += len(each)
                file.flush()
                return self._sender.spool(self, parts)
        except OSError:
            return False

    def _has_room(self, seconds: float) -> bool:
        """Whether it can be written to within so many seconds, or has failed."""
        poll = select.poll()
        poll.register(self, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))


def _number(part: Part) -> int:
    return part.file if isinstance(part.file, int) else part.file.fileno()


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _memory() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("lingerd"), "w+b")
    return tempfile.TemporaryFile()
