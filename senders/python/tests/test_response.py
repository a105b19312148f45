# SPDX-License-Identifier: BSD-3-Clause
"""A connection of gunicorn's, with a response like gunicorn's, before a client that
reads nothing and a listener that is told what lingerd would be.

tests/python has it in the real gunicorn.
"""

import errno
import os
import socket
import tempfile
import threading
from unittest import mock

from lingerd import _response
from test_sender import TestCase, connection

PAGE = bytes(n // 251 % 256 for n in range(8_000_000))


class Response:
    """What is seen of gunicorn's."""

    status = "200 OK"
    headers_sent = True
    sent = 0

    def __init__(self, length=None, chunked=False, closes=True):
        self.response_length = length
        self.chunked = chunked
        self.closes = closes

    def should_close(self):
        return self.closes


class Slow(TestCase):
    def setUp(self):
        super().setUp()
        self.listener = self.listen(self.path + ".2")
        self.link = None
        self.client, server = connection()
        self.addCleanup(self.client.close)
        self.server = _response.Connection(server, self.sender)
        self.addCleanup(self.server.close)

    def go_ahead(self):
        self.assertFalse(self.sender.may_spool())
        self.link = self.accept(self.listener)
        self.link.sendall(b"G")

    def write(self, response, pieces):
        """As gunicorn writes."""
        for each in pieces:
            response.sent += len(each)
            if response.chunked:
                each = b"%X\r\n%s\r\n" % (len(each), each)
            self.server.sendall(each)
        if response.chunked:
            self.server.sendall(b"0\r\n\r\n")

    def sent(self):
        """What the client has, and what is left of it, in files, in their order."""
        head, (sock, *files) = self.received(self.link, 1000)
        numbers = [int.from_bytes(head[at : at + 8], "big") for at in range(8, 72, 8)]
        rest = [os.pread(file, numbers[2 * n + 1], numbers[2 * n]) for n, file in enumerate(files)]
        self.assertEqual(head[1], len(files))
        # With the last copy of the connection it would be reset.
        self.client.settimeout(0)
        got = b""
        try:
            while True:
                got += self.client.recv(1 << 20)
        except BlockingIOError:
            pass
        return got, b"".join(rest)

    def reading(self):
        """A client that reads to the end, from now on; what it has then."""
        got = []

        def read():
            self.client.settimeout(60)
            while True:
                piece = self.client.recv(1 << 20)
                if not piece:
                    return
                got.append(piece)

        thread = threading.Thread(target=read)
        thread.start()

        def end():
            self.server.close()
            thread.join()
            return b"".join(got)

        return end

    def test_the_last_piece_of_a_known_length_goes(self):
        self.go_ahead()
        response = Response(length=len(PAGE))
        self.server.begin(response)
        self.write(response, [PAGE])
        got, rest = self.sent()
        self.assertTrue(got + rest == PAGE)
        self.assertGreater(len(rest), 0)
        # gunicorn goes on with it as if it were there.
        self.assertEqual(self.server.recv(100), b"")
        self.server.setblocking(True)
        self.server.end()
        self.assertEqual(self.server.fileno(), -1)

    def test_a_list_goes_when_its_end_is_there(self):
        self.go_ahead()
        response = Response(chunked=True)
        self.server.begin(response)
        self.server.all_is_there()
        self.write(response, [PAGE, b"x", PAGE[:100]])
        got, rest = self.sent()
        whole = b"%X\r\n%s\r\n1\r\nx\r\n64\r\n%s\r\n0\r\n\r\n" % (len(PAGE), PAGE, PAGE[:100])
        self.assertTrue(got + rest == whole)

    def test_one_that_has_no_end_but_that_of_the_stream_goes_when_it_is_over(self):
        self.go_ahead()
        response = Response()
        self.server.begin(response)
        self.server.all_is_there()
        self.write(response, [PAGE, b"end"])
        self.assertGreaterEqual(self.server.fileno(), 0)
        self.server.end()
        got, rest = self.sent()
        self.assertTrue(got + rest == PAGE + b"end")

    def test_a_file_goes_as_it_is_and_what_is_behind_it(self):
        for chunked in False, True:
            with self.subTest(chunked=chunked), tempfile.TemporaryFile() as file:
                self.setUp()
                self.go_ahead()
                file.write(b"before" + PAGE)
                file.flush()
                response = Response(chunked=chunked)
                self.server.begin(response)
                self.assertEqual(self.server.sendfile(file, 6, len(PAGE)), len(PAGE))
                if chunked:
                    self.server.sendall(b"\r\n")
                    self.server.sendall(b"0\r\n\r\n")
                got, rest = self.sent()
                self.assertTrue(got + rest == PAGE + (b"\r\n0\r\n\r\n" if chunked else b""))

    def test_what_is_given_up_is_not_written(self):
        with tempfile.TemporaryFile() as file:
            file.write(PAGE)
            file.flush()
            self.server.begin(Response(chunked=True))
            self.server.sendfile(file, 0, len(PAGE))
        # By its number there is none, or another one.
        self.server.forget()
        self.server.end()
        self.client.settimeout(60)
        end = self.reading()
        self.assertLess(len(end()), len(PAGE))

    def test_into_half_a_response_nobody_writes_an_error(self):
        response = Response()
        self.server.begin(response)
        self.server.all_is_there()
        self.write(response, [PAGE])

        def time_out(*_):
            raise SystemExit(1)

        self.sender.may_spool = time_out
        with self.assertRaises(SystemExit):
            self.server.end()
        self.server.forget()
        with self.assertRaises(OSError):
            self.server.sendall(b"HTTP/1.1 500 Internal Server Error")

    def test_who_reads_at_once_needs_nobody(self):
        end = self.reading()
        response = Response(length=len(PAGE))
        self.server.begin(response)
        with mock.patch.object(_response, "_MOMENT", 60):
            self.write(response, [PAGE])
        self.assertTrue(end() == PAGE)
        self.assertIsNone(self.sender._second.state().sock)

    def test_what_is_not_the_last_on_its_connection_stays(self):
        self.go_ahead()
        end = self.reading()
        response = Response(length=len(PAGE), closes=False)
        self.server.begin(response)
        self.server.all_is_there()
        self.write(response, [PAGE])
        self.server.end()
        self.assertTrue(end() == PAGE)

    def test_what_is_still_being_made_is_not_kept(self):
        self.go_ahead()
        end = self.reading()
        response = Response(chunked=True)
        self.server.begin(response)
        self.write(response, [PAGE, b"end"])
        self.server.end()
        self.assertTrue(end() == b"%X\r\n%s\r\n3\r\nend\r\n0\r\n\r\n" % (len(PAGE), PAGE))

    def test_a_head_may_be_all_and_is_not_kept(self):
        response = Response(length=10)
        response.headers_sent = False
        self.server.begin(response)
        self.server.all_is_there()
        self.server.sendall(b"head")
        self.assertEqual(self.client.recv(100), b"head")

    def test_without_a_descriptor_or_memory_the_worker_writes(self):
        self.go_ahead()
        response = Response(length=len(PAGE))
        self.server.begin(response)
        end = []

        def none():
            if not end:
                end.append(self.reading())
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with mock.patch.object(_response, "_memory", none):
            self.write(response, [PAGE])
        self.assertTrue(end[0]() == PAGE)

    def test_one_who_does_not_take_it_is_not_asked_again_at_once(self):
        response = Response(length=len(PAGE))
        self.server.begin(response)
        waits = _response.Connection._has_room
        done, end = [], []

        def not_taken(*_):
            done.append("asked")
            return False

        def has_room(connection, seconds):
            done.append(seconds)
            if len(done) < 7:
                return False
            if not end:
                end.append(self.reading())
            return waits(connection, 60)

        self.sender.may_spool = lambda *_: True
        self.sender.spool = not_taken
        with mock.patch.object(_response.Connection, "_has_room", has_room):
            self.write(response, [PAGE])
        self.assertEqual(done[:6], [_response._MOMENT, "asked", _response._WAIT] * 2)
        self.assertNotIn("asked", done[6:])
        self.assertTrue(end[0]() == PAGE)

    def test_what_another_thread_was_faster_with_is_neither_copied_nor_waited_for(self):
        self.go_ahead()
        response = Response(length=len(PAGE))
        self.server.begin(response)
        may_spool = self.sender.may_spool
        done = []

        def taken(*wait):
            if not wait and "taken" not in done:
                done.append("taken")
                return False
            return may_spool(*wait)

        def has_room(_, seconds):
            done.append(seconds)
            return False

        def memory():
            done.append("copied")
            return _memory()

        _memory = _response._memory
        self.sender.may_spool = taken
        with mock.patch.object(_response.Connection, "_has_room", has_room), mock.patch.object(
            _response, "_memory", memory
        ):
            self.write(response, [PAGE])
        self.assertEqual(done, [_response._MOMENT, "taken", _response._MOMENT, "copied"])
        got, rest = self.sent()
        self.assertTrue(got + rest == PAGE)

    def test_a_client_that_has_gone_is_an_error_as_ever(self):
        response = Response(length=len(PAGE))
        self.server.begin(response)
        self.client.close()
        with self.assertRaises(OSError):
            self.write(response, [PAGE])

    def test_it_waits_as_the_socket_did(self):
        for seconds in None, 0, 3:
            for by_default in None, 5:
                _, server = self.connection()
                server.settimeout(seconds)
                socket.setdefaulttimeout(by_default)
                try:
                    with _response.Connection(server, self.sender) as same:
                        self.assertEqual(same.gettimeout(), seconds)
                finally:
                    socket.setdefaulttimeout(None)

    def test_a_copy_is_as_any_other_socket(self):
        self.server.settimeout(3)
        with self.server.dup() as copy:
            self.assertIs(type(copy), socket.socket)
            self.assertEqual(copy.gettimeout(), 3)
            self.assertFalse(os.get_inheritable(copy.fileno()))
            copy.sendall(b"from a copy")
        self.assertEqual(self.client.recv(100), b"from a copy")
        self.assertGreaterEqual(self.server.fileno(), 0)
