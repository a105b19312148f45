# SPDX-License-Identifier: BSD-3-Clause
"""The sender before a listener that reads what lingerd would, and a clock that
stands still until a test moves it.

tests/python has it before the real lingerd.
"""

import errno
import os
import shutil
import socket
import struct
import tempfile
import threading
import unittest
from unittest import mock

import lingerd
from lingerd import _sender


def connection():
    """The client's end and the server's of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    client.settimeout(60)
    return client, server


class TestCase(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = os.path.join(self.directory, "lingerd.sock")
        self.now = 1000.0
        clock = mock.patch.object(_sender.time, "monotonic", lambda: self.now)
        clock.start()
        self.addCleanup(clock.stop)
        self.sender = lingerd.Sender(self.path)
        self.addCleanup(self.sender.close)

    def listen(self, path=None, backlog=128):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path or self.path)
        listener.listen(backlog)
        listener.settimeout(60)
        self.addCleanup(listener.close)
        return listener

    def accept(self, listener):
        link = listener.accept()[0]
        link.settimeout(60)
        self.addCleanup(link.close)
        return link

    def connection(self):
        client, server = connection()
        self.addCleanup(client.close)
        self.addCleanup(server.close)
        return client, server

    def received(self, link, size=1):
        """A message, and the sockets and files that came with it."""
        message, descriptors, _, _ = socket.recv_fds(link, size, 253)
        for each in descriptors:
            self.addCleanup(os.close, each)
        return message, descriptors

    def assert_is(self, descriptor, sock):
        self.assertEqual(os.fstat(descriptor).st_ino, os.fstat(sock.fileno()).st_ino)


class Give(TestCase):
    def test_a_socket_goes_with_an_L_and_one_link_serves_all(self):
        listener = self.listen()
        _, first = self.connection()
        self.assertTrue(self.sender.give(first))
        link = self.accept(listener)
        _, second = self.connection()
        self.assertTrue(self.sender.give(second))
        for sock in first, second:
            message, descriptors = self.received(link)
            self.assertEqual(message, b"L")
            self.assertEqual(len(descriptors), 1)
            self.assert_is(descriptors[0], sock)
        self.assertIsNone(self.sender.error)

    def test_without_lingerd_one_link_is_tried_for_in_a_second(self):
        _, server = self.connection()
        self.assertFalse(self.sender.give(server))
        self.assertIsInstance(self.sender.error, FileNotFoundError)
        listener = self.listen()
        self.now += 0.9
        self.assertFalse(self.sender.give(server))
        self.now += 0.1
        self.assertTrue(self.sender.give(server))
        self.assertEqual(self.received(self.accept(listener))[0], b"L")

    def test_what_goes_down_with_a_link_goes_by_the_next_one(self):
        listener = self.listen()
        _, server = self.connection()
        self.assertTrue(self.sender.give(server))
        self.accept(listener).close()
        self.now += 1
        self.assertTrue(self.sender.give(server))
        link = self.accept(listener)
        self.assert_is(self.received(link)[1][0], server)
        # But not twice in one second.
        link.close()
        self.assertFalse(self.sender.give(server))
        self.assertIsNotNone(self.sender.error)

    def test_one_who_does_not_read_holds_nobody_up_and_the_link_is_kept(self):
        listener = self.listen()
        _, server = self.connection()
        given = 0
        while self.sender.give(server):
            given += 1
        link = self.accept(listener)
        for _ in range(given):
            self.assertEqual(len(self.received(link)[1]), 1)
        self.assertTrue(self.sender.give(server))
        self.assertEqual(len(self.received(link)[1]), 1)

    def test_one_who_lets_nobody_in_holds_nobody_up(self):
        self.listen(backlog=0)
        senders = [lingerd.Sender(self.path) for _ in range(10)]
        _, server = self.connection()
        given = [each.give(server) for each in senders]
        for each in senders:
            each.close()
        self.assertIn(True, given)
        self.assertIn(False, given)

    def test_less_time_is_an_option_of_the_socket(self):
        option = socket.SOL_SOCKET, _sender._SO_LINGER, 8
        _, server = self.connection()
        self.assertFalse(self.sender.give(server, 2))
        self.assertEqual(struct.unpack("ii", server.getsockopt(*option))[0], 0)
        listener = self.listen()
        self.now += 1
        self.assertTrue(self.sender.give(server, 2))
        self.assertEqual(struct.unpack("ii", server.getsockopt(*option))[1], 2)
        self.assertEqual(self.received(self.accept(listener))[0], b"L")
        with self.assertRaises(ValueError):
            self.sender.give(server, 0)

    def test_too_many_on_their_way_is_not_now_and_the_link_is_kept(self):
        listener = self.listen()
        _, server = self.connection()
        self.assertTrue(self.sender.give(server))
        link = self.accept(listener)
        for number in errno.ETOOMANYREFS, errno.EMFILE, errno.ENOBUFS, errno.ENOMEM:
            with mock.patch.object(socket.socket, "sendmsg", side_effect=OSError(number, "")):
                self.assertFalse(self.sender.give(server))
            self.assertTrue(self.sender.give(server))
        for _ in range(5):
            self.assertEqual(len(self.received(link)[1]), 1)

    def test_without_a_descriptor_for_a_link_it_is_tried_again_in_a_second(self):
        listener = self.listen()
        _, server = self.connection()
        with mock.patch.object(_sender.socket, "socket", side_effect=OSError(errno.EMFILE, "")) as none:
            self.assertFalse(self.sender.give(server))
            self.assertFalse(self.sender.give(server))
        self.assertEqual(none.call_count, 1)
        self.assertEqual(self.sender.error.errno, errno.EMFILE)
        self.now += 1
        self.assertTrue(self.sender.give(server))
        self.accept(listener)

    def test_what_lingerd_does_not_take_is_not_given(self):
        self.listen()
        _, closed = self.connection()
        closed.close()
        one, other = socket.socketpair()
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with one, other, datagrams:
            for sock in closed, one, datagrams:
                self.assertFalse(self.sender.give(sock))

    def test_paths_that_no_socket_can_have(self):
        for path in "", "a\0b", "/" + 200 * "x":
            with self.assertRaises(ValueError):
                lingerd.Sender(path)

    def test_threads_share_a_link(self):
        listener = self.listen()
        _, server = self.connection()
        given = []

        def give():
            for _ in range(20):
                given.append(self.sender.give(server))

        threads = [threading.Thread(target=give) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual(given, [True] * 160)
        link = self.accept(listener)
        for _ in given:
            self.assertEqual(len(self.received(link)[1]), 1)
        listener.setblocking(False)
        with self.assertRaises(BlockingIOError):
            listener.accept()


@unittest.skipUnless(hasattr(os, "fork"), "fork")
class Fork(TestCase):
    def in_child(self, work):
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if work() else 1)
            finally:
                os._exit(2)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)

    def test_a_child_has_a_link_of_its_own(self):
        listener = self.listen()
        _, server = self.connection()
        self.assertTrue(self.sender.give(server))
        parents = self.accept(listener)
        self.received(parents)
        self.in_child(lambda: self.sender.give(server))
        childs = self.accept(listener)
        self.assertEqual(self.received(childs)[0], b"L")
        self.assertEqual(childs.recv(1), b"")
        # Of the parent's nothing was said, or ended.
        self.assertTrue(self.sender.give(server))
        self.assertEqual(self.received(parents)[0], b"L")

    def test_a_child_closes_its_parents_link_whatever_the_daemon_calls_it(self):
        # As /var/run is where systemd listens in /run.
        elsewhere = os.path.join(self.directory, "elsewhere")
        os.symlink(self.directory, elsewhere)
        listener = self.listen(os.path.join(elsewhere, "lingerd.sock"))
        _, server = self.connection()
        self.assertTrue(self.sender.give(server))
        self.accept(listener)
        sock = self.sender._first.state().sock
        number, inode = sock.fileno(), os.fstat(sock.fileno()).st_ino

        def closed():
            self.sender.give(server)
            try:
                return os.fstat(number).st_ino != inode
            except OSError:
                return True

        self.in_child(closed)

    def test_what_a_child_has_in_the_place_of_the_link_is_left_alone(self):
        listener = self.listen()
        _, server = self.connection()
        self.assertTrue(self.sender.give(server))
        self.received(self.accept(listener))

        def replaced():
            number = self.sender._first._states[os.getppid()].sock.fileno()
            os.dup2(os.open(os.devnull, os.O_RDONLY), number)
            inode = os.fstat(number).st_ino
            return self.sender.give(server) and os.fstat(number).st_ino == inode

        self.in_child(replaced)
        self.assertEqual(self.received(self.accept(listener))[0], b"L")

    def test_a_lock_that_another_thread_held_then_stops_no_child(self):
        listener = self.listen()
        _, server = self.connection()
        held, let_go = threading.Event(), threading.Event()

        def hold():
            with self.sender._first.state().lock:
                held.set()
                let_go.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        try:
            self.in_child(lambda: self.sender.give(server))
        finally:
            let_go.set()
            thread.join()
        self.assertEqual(self.received(self.accept(listener))[0], b"L")


class Finish(TestCase):
    def not_instead(self, sock):
        self.fail("nobody was to linger")

    def test_it_is_handed_over_and_closed(self):
        listener = self.listen()
        client, server = self.connection()
        server.settimeout(5)
        server.sendall(b"response")
        self.assertTrue(self.sender.finish(server, self.not_instead))
        self.assertEqual(server.fileno(), -1)
        self.assertEqual(len(self.received(self.accept(listener))[1]), 1)
        self.assertEqual(client.recv(100), b"response")

    def test_who_has_closed_already_is_not_handed_over(self):
        self.listen()
        client, server = self.connection()
        client.shutdown(socket.SHUT_WR)
        while not lingerd.client_done(server):
            pass
        self.assertTrue(self.sender.finish(server, self.not_instead))
        self.assertEqual(server.fileno(), -1)
        self.assertIsNone(self.sender._first.state().sock)

    def test_without_lingerd_the_caller_does_it(self):
        client, server = self.connection()
        instead = mock.Mock()
        self.assertFalse(self.sender.finish(server, instead))
        instead.assert_called_once_with(server)
        self.assertGreaterEqual(server.fileno(), 0)

    def test_it_lingers_itself_until_the_client_closes(self):
        client, server = self.connection()
        server.sendall(b"response")
        client.sendall(b"late")
        client.shutdown(socket.SHUT_WR)
        # Neither is silence what ends it, nor the clock.
        lingerd.lingering_close(server, idle=600, limit=600)
        self.assertEqual(server.fileno(), -1)
        self.assertEqual(client.recv(100), b"response")
        self.assertEqual(client.recv(100), b"")

    def test_silence_ends_it(self):
        client, server = self.connection()
        lingerd.lingering_close(server, idle=0.01, limit=600)
        self.assertEqual(server.fileno(), -1)
        self.assertEqual(client.recv(100), b"")


class Spool(TestCase):
    def setUp(self):
        super().setUp()
        self.file = tempfile.TemporaryFile()
        self.addCleanup(self.file.close)
        self.file.write(b"0123456789")
        self.file.flush()

    def resets(self, sock):
        option = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        on, seconds = struct.unpack("ii", option)
        return on != 0 and seconds == 0

    def test_one_response_for_each_G(self):
        listener = self.listen(self.path + ".2")
        _, server = self.connection()
        parts = [lingerd.Part(self.file, 3, 7, True), lingerd.Part(self.file.fileno(), 0, 1)]
        self.assertFalse(self.sender.spool(server, parts))
        link = self.accept(listener)
        self.assertFalse(self.resets(server))

        link.sendall(b"G")
        self.assertTrue(self.sender.may_spool())
        self.assertTrue(self.sender.spool(server, parts, 2.5))
        self.assertTrue(self.resets(server))
        head, descriptors = self.received(link, 1000)
        expected = b"S\2\0\1" + struct.pack("!I8Q", 2500, 3, 7, 0, 1, 0, 0, 0, 0)
        self.assertEqual(head, expected)
        self.assertEqual(len(head), 72)
        for descriptor, file in zip(descriptors, [server, self.file, self.file]):
            self.assert_is(descriptor, file)
        self.assertEqual(len(descriptors), 3)

        _, another = self.connection()
        self.assertFalse(self.sender.may_spool())
        self.assertFalse(self.sender.spool(another, parts))
        self.assertFalse(self.resets(another))

    def test_a_G_goes_down_with_its_link(self):
        listener = self.listen(self.path + ".2")
        _, server = self.connection()
        self.assertFalse(self.sender.may_spool())
        link = self.accept(listener)
        link.sendall(b"G")
        self.assertTrue(self.sender.may_spool())
        link.close()
        self.now += 1
        # The next one has not said it yet.
        self.assertFalse(self.sender.spool(server, [lingerd.Part(self.file, 0, 10)]))
        self.assertFalse(self.resets(server))
        self.accept(listener).sendall(b"G")
        self.assertTrue(self.sender.spool(server, [lingerd.Part(self.file, 0, 10)]))

    def test_room_for_the_client_ends_the_wait(self):
        listener = self.listen(self.path + ".2")
        client, server = self.connection()
        # The clock stands still: nothing else ends it.
        self.assertFalse(self.sender.may_spool(600, server))
        link = self.accept(listener)
        server.setblocking(False)
        with self.assertRaises(BlockingIOError):
            while True:
                server.send(bytes(65536))
        threading.Timer(0, link.sendall, [b"G"]).start()
        self.assertTrue(self.sender.may_spool(600, server))

    def test_half_a_head_ends_the_link_and_the_caller_writes(self):
        listener = self.listen(self.path + ".2")
        _, server = self.connection()
        self.assertFalse(self.sender.may_spool())
        link = self.accept(listener)
        link.sendall(b"G")
        whole = socket.socket.sendmsg

        def half(sock, buffers, *others):
            return whole(sock, [buffers[0][:36]], *others)

        with mock.patch.object(socket.socket, "sendmsg", half):
            self.assertFalse(self.sender.spool(server, [lingerd.Part(self.file, 0, 10)]))
        self.assertFalse(self.resets(server))
        self.assertEqual(len(self.received(link, 1000)[0]), 36)
        self.assertEqual(link.recv(1), b"")
        # And another one, with a G of its own, is not before a second is over.
        self.assertFalse(self.sender.may_spool())
        self.now += 1
        self.assertFalse(self.sender.may_spool())
        self.accept(listener).sendall(b"G")
        self.assertTrue(self.sender.spool(server, [lingerd.Part(self.file, 0, 10)]))

    def test_one_that_is_not_taken_now_has_its_G_still(self):
        listener = self.listen(self.path + ".2")
        _, server = self.connection()
        self.assertFalse(self.sender.may_spool())
        self.accept(listener).sendall(b"G")
        parts = [lingerd.Part(self.file, 0, 10)]
        with mock.patch.object(socket.socket, "sendmsg", side_effect=OSError(errno.ETOOMANYREFS, "")):
            self.assertFalse(self.sender.spool(server, parts))
        self.assertFalse(self.resets(server))
        self.assertTrue(self.sender.spool(server, parts, float("inf")))

    def test_a_lingerd_that_cannot_has_no_such_socket(self):
        self.listen()
        _, server = self.connection()
        self.assertFalse(self.sender.may_spool())
        self.assertFalse(self.sender.spool(server, [lingerd.Part(self.file, 0, 10)]))

    def test_what_makes_no_sense(self):
        _, server = self.connection()
        good = lingerd.Part(self.file, 0, 10)
        nan = float("nan")
        bad = good._replace(offset=-1)
        for parts, patience in ([], 1), ([good] * 5, 1), ([good], 0), ([good], nan), ([bad], 1):
            with self.assertRaises(ValueError):
                self.sender.spool(server, parts, patience)


if __name__ == "__main__":
    unittest.main()
