# SPDX-License-Identifier: BSD-3-Clause
"""The sender: what lingerd-protocol(7) has a server do.

This must not know how long lingerd waits, for what, and what becomes of a
socket, nor which server it is for.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
import sys
import threading
import time
from typing import Callable, Dict, NamedTuple, Optional, Protocol, Sequence, Union

from ._closing import close, close_notify, half_close, lingering_close

SOCKET = "/var/run/lingerd/lingerd.sock"
"""Where lingerd listens unless it is told otherwise."""

# The link is good, and what is queued in it will be read.
_NOT_NOW = {
    errno.EAGAIN,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EINTR,
    getattr(errno, "ETOOMANYREFS", errno.EAGAIN),
}
# Of connect(2), which is to be asked again.
_UNDER_WAY = {errno.EINPROGRESS, errno.EALREADY}

# How many bytes of a path go into a socket's address, beside its final NUL.
_LONGEST_PATH = 107 if sys.platform.startswith(("linux", "sunos")) else 103

_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)

# On macOS SO_LINGER counts in hundredths of a second.
_SO_LINGER = 0x1080 if sys.platform == "darwin" else socket.SO_LINGER

_MOST_PARTS = 4
_SPOOL = struct.Struct("!cBHI8Q")


class HasFileno(Protocol):
    """Something with a descriptor."""

    def fileno(self) -> int: ...


class Part(NamedTuple):
    """What is still to be written, of one file."""

    file: Union[int, HasFileno]
    offset: int
    length: int
    ours: bool = False
    """Whether nobody else has use for the file, so that lingerd may give back the
    room that it takes up while it is sent."""


class _State:
    """What one process knows of its link."""

    def __init__(self) -> None:
        # Taken by one thread twice where a signal's handler hands over, too.
        self.lock = threading.RLock()
        self.sock: Optional[socket.socket] = None
        # Which file that is: what the daemon calls it need not be what we do.
        self.stat: Optional[os.stat_result] = None
        self.connected = False
        self.tried: Optional[float] = None
        self.may_spool = False
        self.error: Optional[OSError] = None

    def drop(self, sock: socket.socket, error: OSError) -> None:
        """Close the link, unless there is another one by now."""
        close(sock)
        if self.sock is sock:
            self.sock = None
            self.connected = self.may_spool = False
            self.error = error


class _Link:
    """A connection to one of lingerd's sockets, for one process at a time."""

    def __init__(self, path: str) -> None:
        self.path = path
        # By process, so that of several threads which are the first after fork(2)
        # one wins, and no lock is needed that another one held then.
        self._states: Dict[int, _State] = {}

    def state(self) -> _State:
        pid = os.getpid()
        state = self._states.get(pid)
        if state is None:
            fresh = _State()
            state = self._states.setdefault(pid, fresh)
            if state is fresh:
                for other in [each for each in list(self._states) if each != pid]:
                    self._leave(self._states.pop(other))
        return state

    def _leave(self, state: _State) -> None:
        """Part with the link of a parent. Who closes all descriptors after fork(2),
        as daemons do, may have something else by that number."""
        if state.sock is None:
            return
        try:
            now = os.fstat(state.sock.fileno())
            ours = state.stat is not None and os.path.samestat(now, state.stat)
        except OSError:
            ours = False
        if ours:
            close(state.sock)
        else:
            state.sock.detach()

    def open(self, state: _State) -> Optional[socket.socket]:
        """The link, if there is one; tries to make one once a second at most. With
        the lock held."""
        if state.sock is None:
            now = time.monotonic()
            if state.tried is not None and now - state.tried < 1:
                return None
            state.tried = now
            try:
                state.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                state.sock.setblocking(False)
                state.stat = os.fstat(state.sock.fileno())
            except OSError as error:
                state.error = error
                state.sock = None
                return None
        if state.connected:
            return state.sock
        sock = state.sock
        try:
            code = sock.connect_ex(self.path)
        except OSError as error:
            state.drop(sock, error)
            return None
        if code in (0, errno.EISCONN):
            state.connected = True
            state.error = None
            return sock
        if code not in _UNDER_WAY:
            state.drop(sock, OSError(code, os.strerror(code), self.path))
        return None

    def send(self, message: bytes, descriptors: Sequence[int], spooled: bool = False) -> bool:
        """Whether lingerd has it now. A link that turns out to be dead most likely
        means that lingerd was started anew: then once more, on a new one."""
        state = self.state()
        with state.lock:
            for _ in range(2):
                sock = self.open(state)
                if sock is None or (spooled and not self._go_ahead(state, sock)):
                    return False
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
                try:
                    if sock.sendmsg([message], [rights], _SEND_FLAGS) == len(message):
                        if spooled:
                            state.may_spool = False
                        return True
                    error = OSError(errno.EPIPE, os.strerror(errno.EPIPE), self.path)
                except OSError as failed:
                    if failed.errno in _NOT_NOW:
                        return False
                    error = failed
                state.drop(sock, error)
        return False

    def go_ahead(self, seconds: float, room: Optional[socket.socket]) -> bool:
        """Whether lingerd takes a response now, or within so many seconds, and before
        there is room to write to that socket."""
        until = time.monotonic() + seconds
        state = self.state()
        while True:
            with state.lock:
                sock = self.open(state)
                if sock is not None and self._go_ahead(state, sock):
                    return True
                sock = state.sock
            left = until - time.monotonic()
            if left <= 0 or (sock is None and room is None):
                return False
            # Without the lock: if another thread drops the link meanwhile, this
            # looks in vain.
            waiting = select.poll()
            try:
                if sock is not None:
                    waiting.register(sock, select.POLLIN)
                if room is not None:
                    waiting.register(room, select.POLLOUT)
                ready = waiting.poll(left * 1000)
            except (OSError, ValueError):
                return False
            if not ready or (room is not None and room.fileno() in dict(ready)):
                return False

    def _go_ahead(self, state: _State, sock: socket.socket) -> bool:
        """With the lock held; takes note of what lingerd has said."""
        if state.may_spool:
            return True
        try:
            said = sock.recv(64)
        except OSError as error:
            if error.errno not in _NOT_NOW:
                state.drop(sock, error)
            return False
        if not said:
            state.drop(sock, OSError(errno.EPIPE, os.strerror(errno.EPIPE), self.path))
        state.may_spool = b"G" in said
        return state.may_spool

    def close(self) -> None:
        state = self.state()
        with state.lock:
            if state.sock is not None:
                state.drop(state.sock, OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), self.path))


class Sender:
    """Hands connections over to the lingerd that listens at path.

    One serves a whole process, with all its threads; a child of fork(2) may use it,
    and has links of its own then. Links are opened when they are needed first; when
    there is none, one is tried for once a second at most.

    give() and spool() never wait for lingerd: what it does not take at once is the
    caller's to do, as if there were no lingerd.
    """

    def __init__(self, path: Union[str, os.PathLike[str]] = SOCKET) -> None:
        """Raises ValueError for a path that no socket can have."""
        path = os.fspath(path)
        for each in (path, path + ".2"):
            if not path or "\0" in path or len(os.fsencode(each)) > _LONGEST_PATH:
                raise ValueError(f"no socket can have the path {each!r}")
        self.path: str = path
        self._first = _Link(path)
        self._second = _Link(path + ".2")

    @property
    def error(self) -> Optional[OSError]:
        """Why there is no link to hand over on; None if there is one, or none was
        needed yet."""
        return self._first.state().error

    def give(self, sock: socket.socket, seconds: Optional[int] = None) -> bool:
        """Hand over a connection on which all is written: lingerd half-closes it, if
        the caller has not, and lingers.

        True: lingerd has it, and the caller closes its own copy, with close() and
        without shutdown(). False: the caller has it to itself, and lingers. Is of
        TCP, else the answer is False; what TLS has to say has been said
        (close_notify).

        seconds, at least 1, is for one that is not worth more: lingerd ends it then,
        whatever its client does.
        """
        if not _is_tcp(sock):
            return False
        if seconds is None:
            return self._first.send(b"L", [sock.fileno()])
        if seconds < 1:
            raise ValueError("seconds must be at least 1")
        _set_linger(sock, True, seconds)
        given = self._first.send(b"L", [sock.fileno()])
        if not given:
            _set_linger(sock, False, 0)
        return given

    def finish(
        self,
        sock: socket.socket,
        instead: Callable[[socket.socket], object] = lingering_close,
    ) -> bool:
        """End a connection on which all is written: what a server calls in the place
        of its own lingering close. It says the end of TLS, half-closes, and hands
        over, unless the client has closed already; then sock is closed.

        If lingerd does not take it, instead(sock) is called, which waits as long as
        it waits, and closes. Returns whether it was not needed.

        Files that makefile() has made of sock have been closed: one that is open
        keeps the connection.
        """
        if _is_tcp(sock) and close_notify(sock) and (half_close(sock) or self.give(sock)):
            close(sock)
            return True
        instead(sock)
        return False

    def may_spool(self, wait: float = 0, room: Optional[socket.socket] = None) -> bool:
        """Whether lingerd takes a response now, with spool(); or within so many
        seconds. A moment is well spent: one that was just given a response, or has
        just been connected to, says so in a moment.

        With room, the socket of a client, it does not wait longer than until that can
        be written to; and as long as that if lingerd is not there.
        """
        return self._second.go_ahead(wait, room)

    def spool(self, sock: socket.socket, parts: Sequence[Part], patience: float = 300) -> bool:
        """Hand over a connection on which 1 to 4 parts of files are still to be
        written, in their order. lingerd writes them, and then does as with give();
        it resets the connection if that does not get on for patience seconds.

        sock is not half-closed, and without TLS. True: lingerd has it, and the caller
        closes its own copy. False: the caller has it to itself, and writes.
        """
        if not 1 <= len(parts) <= _MOST_PARTS:
            raise ValueError(f"there are 1 to {_MOST_PARTS} parts")
        if not patience >= 0.001:
            raise ValueError("patience must be a millisecond at least")
        milliseconds = int(min(patience * 1000, 0x7FFFFFFF))
        if not _is_tcp(sock) or hasattr(sock, "unwrap"):
            return False
        numbers = [0] * (2 * _MOST_PARTS)
        flags = 0
        descriptors = [sock.fileno()]
        for n, part in enumerate(parts):
            if part.offset < 0 or part.length < 0:
                raise ValueError("a part has no negative offset or length")
            numbers[2 * n : 2 * n + 2] = part.offset, part.length
            flags |= part.ours << n
            descriptors.append(part.file if isinstance(part.file, int) else part.file.fileno())
        head = _SPOOL.pack(b"S", len(parts), flags, milliseconds, *numbers)
        if not self._second.go_ahead(0, None):
            return False
        # Whoever closes it last resets it from here on, if lingerd is killed before
        # it has read this: the client might take for the end what is none.
        _set_linger(sock, True, 0)
        given = self._second.send(head, descriptors, spooled=True)
        if not given:
            _set_linger(sock, False, 0)
        return given

    def close(self) -> None:
        """Close the links. One that is needed again is opened again."""
        self._first.close()
        self._second.close()


def _is_tcp(sock: socket.socket) -> bool:
    """Whether it is open, and of a kind that lingerd takes."""
    return (
        sock.fileno() >= 0
        and sock.family in (socket.AF_INET, socket.AF_INET6)
        and sock.type == socket.SOCK_STREAM
    )


def _set_linger(sock: socket.socket, on: bool, seconds: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_LINGER, struct.pack("ii", on, seconds))
    except OSError:
        pass  # the client has gone
