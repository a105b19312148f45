// SPDX-License-Identifier: BSD-3-Clause

//! The contract on this system's backend, and what only a kernel can show.

use super::contract::{Pair, Stage, contract_tests, wait};
use super::*;
use socket2::Socket;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::RecvTimeoutError;

const SOON: Option<Duration> = Some(Duration::from_millis(1));

/// The kernel's sockets and its time.
struct Kernel {
    start: std::time::Instant,
}

impl Kernel {
    fn new() -> Self {
        Kernel { start: std::time::Instant::now() }
    }
}

impl Stage for Kernel {
    type Backend = System;
    type Pair = Sockets;

    fn backend(&mut self) -> System {
        System::new().unwrap()
    }

    fn pair(&mut self) -> Sockets {
        let (client, server) = pair();
        Sockets::new(client, server)
    }

    fn local_pair(&mut self) -> Sockets {
        let (far, near) = UnixStream::pair().unwrap();
        Sockets::new(far, near)
    }

    fn send_later(&mut self, pair: &Sockets) {
        let mut far = pair.far.as_ref().unwrap().try_clone().unwrap();
        std::thread::spawn(move || {
            // Gives the other thread the time to wait in the kernel; nothing fails if that was too short.
            std::thread::sleep(Duration::from_millis(20));
            far.write_all(b"x").unwrap();
        });
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

struct Sockets {
    near: Socket,
    /// Until it is closed.
    far: Option<Socket>,
    /// How many bytes are on their way to the far end.
    filled: usize,
}

impl Sockets {
    fn new(far: impl Into<OwnedFd>, near: impl Into<OwnedFd>) -> Self {
        let (far, near): (Socket, Socket) = (far.into().into(), near.into().into());
        near.set_nonblocking(true).unwrap();
        Sockets { near, far: Some(far), filled: 0 }
    }

    fn far(&mut self) -> &mut Socket {
        self.far.as_mut().unwrap()
    }
}

impl Pair for Sockets {
    fn near(&self) -> impl Descriptor {
        &self.near
    }

    fn send(&mut self) {
        self.far().write_all(b"x").unwrap();
    }

    fn drain(&mut self) {
        while matches!(self.near.read(&mut [0; 64]), Ok(1..)) {}
    }

    fn fill(&mut self) {
        // What is too much for the room that is left need not fill it.
        for size in [65_536, 1] {
            while let Ok(count) = self.near.write(&vec![0; size]) {
                self.filled += count;
            }
        }
    }

    fn make_room(&mut self) {
        let mut bytes = vec![0; std::mem::take(&mut self.filled)];
        self.far().read_exact(&mut bytes).unwrap();
    }

    fn half_close(&mut self) {
        self.far().shutdown(Shutdown::Write).unwrap();
    }

    fn close(&mut self) {
        self.far = None;
    }

    fn reset(&mut self) {
        self.far().set_linger(Some(Duration::ZERO)).unwrap();
        self.far = None;
    }
}

contract_tests!(Kernel::new());

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Whether nothing came for the whole time, not even a wake-up for nothing.
fn silent(backend: &mut System) -> bool {
    const WHILE: Duration = Duration::from_millis(50);
    let start = std::time::Instant::now();
    wait(backend, Some(WHILE)).is_empty() && start.elapsed() >= WHILE
}

#[test]
fn timeouts_are_rounded_up_and_capped() {
    assert_eq!(millis(None), -1);
    assert_eq!(millis(Some(Duration::ZERO)), 0);
    assert_eq!(millis(Some(Duration::from_nanos(1))), 1);
    assert_eq!(millis(Some(Duration::from_millis(7))), 7);
    assert_eq!(millis(Some(Duration::from_micros(7_001))), 8);
    assert_eq!(millis(Some(Duration::MAX)), libc::c_int::MAX);
}

#[test]
fn a_timespec_is_exact_and_of_a_day_at_most() {
    let time = timespec(Duration::from_micros(7_000_001));
    assert_eq!((time.tv_sec, time.tv_nsec), (7, 1_000));
    let time = timespec(Duration::MAX);
    assert_eq!((time.tv_sec, time.tv_nsec), (86_400, 0));
}

#[test]
fn removed_is_silent_even_where_a_copy_lives_on() {
    let (mut client, server) = pair();
    let copy = server.try_clone().unwrap();
    let mut backend = System::new().unwrap();
    backend.add(&server, Token(1), Interest::Read).unwrap();
    client.write_all(b"x").unwrap();
    assert_eq!(wait(&mut backend, None), [Token(1)]);
    backend.remove(&server).unwrap();
    drop(server);
    assert_eq!(wait(&mut backend, SOON), []);
    drop(copy);
}

#[test]
fn a_wait_that_a_signal_ends_has_registered_what_was_added() {
    use std::os::unix::thread::JoinHandleExt;
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: signal(3): the handler does nothing; no other test wants SIGURG.
    unsafe { libc::signal(libc::SIGURG, nothing as *const () as libc::sighandler_t) };
    let (mut client, server) = pair();
    let (told, interrupted) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let mut backend = System::new().unwrap();
        backend.add(&server, Token(1), Interest::Read).unwrap();
        assert_eq!(wait(&mut backend, Some(Duration::from_secs(60))), []);
        told.send(()).unwrap();
        backend.remove(&server).unwrap();
        client.write_all(b"x").unwrap();
        // One more signal may have been on its way.
        assert!(silent(&mut backend) || silent(&mut backend));
        backend.add(&server, Token(2), Interest::Read).unwrap();
        assert_eq!(wait(&mut backend, None), [Token(2)]);
    });
    // Again and again, as a signal that comes before the wait has begun ends nothing.
    while interrupted.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
        // SAFETY: pthread_kill(3): the thread has not been joined.
        unsafe { libc::pthread_kill(waiter.as_pthread_t() as _, libc::SIGURG) };
    }
    waiter.join().unwrap();
}

/// The descriptors that a program would inherit.
fn inheritable() -> std::collections::HashSet<libc::c_int> {
    // SAFETY: F_GETFD takes no argument and touches no memory, fcntl(2).
    (0..1024).filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } == 0).collect()
}

#[test]
fn nothing_is_opened_that_a_program_would_inherit() {
    let before = inheritable();
    let _backend = System::new().unwrap();
    // Another test's may be seen between its making and its being set so; but not for ever.
    let start = std::time::Instant::now();
    while inheritable().difference(&before).count() > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "something is");
        std::thread::yield_now();
    }
}

#[test]
fn more_than_a_batch_before_the_first_wait() {
    let pairs: Vec<_> = (0..600).map(|_| UnixStream::pair().unwrap()).collect();
    let mut backend = System::new().unwrap();
    for (n, (_, b)) in pairs.iter().enumerate() {
        backend.add(&b, Token(n as u64), Interest::Read).unwrap();
    }
    let null = std::fs::File::open("/dev/null").unwrap();
    if backend.add(&null, Token(1000), Interest::Read).is_ok() {
        assert_eq!(wait(&mut backend, Some(Duration::from_secs(10))), [Token(1000)]);
    } else {
        backend.remove(&null).unwrap_err();
    }
    for (mut a, b) in pairs[200..].iter().map(|(a, b)| (a, b)) {
        backend.remove(&b).unwrap();
        a.write_all(b"x").unwrap();
    }
    if backend.remove(&null).is_err() {
        assert!(silent(&mut backend));
    }
    (&pairs[3].0).write_all(b"x").unwrap();
    assert_eq!(wait(&mut backend, None), [Token(3)]);
}

/// Puts a copy of another descriptor in the place of one, which is closed by that.
fn replace(fd: &(impl AsFd + AsRawFd), with: &impl AsRawFd) {
    // SAFETY: dup2(2) takes two numbers; who owns them goes on owning them.
    assert_ne!(unsafe { libc::dup2(with.as_raw_fd(), fd.as_raw_fd()) }, -1);
    crate::set_cloexec(fd).unwrap();
}

#[test]
fn what_was_refused_can_be_armed_when_the_cause_is_gone() {
    for by_change in [false, true] {
        let null = std::fs::File::open("/dev/null").unwrap();
        let (mut client, server) = pair();
        let mut backend = System::new().unwrap();
        if backend.add(&null, Token(1), Interest::Read).is_err() {
            return; // said at once
        }
        assert_eq!(wait(&mut backend, None), [Token(1)]);
        if backend.rearm(&null, Token(1), Interest::Read).is_ok() {
            assert_eq!(wait(&mut backend, Some(Duration::from_secs(10))), [Token(1)], "armed, they said");
            return;
        }
        replace(&null, &server);
        if by_change {
            backend.change(&null, Token(1), Interest::Read).unwrap();
        } else {
            backend.rearm(&null, Token(1), Interest::Read).unwrap();
        }
        client.write_all(b"x").unwrap();
        assert_eq!(wait(&mut backend, None), [Token(1)]);
        backend.remove(&null).unwrap();
        assert!(silent(&mut backend));
    }
}

#[test]
fn where_both_interests_are_refused_at_once_both_are_armed_when_the_cause_is_gone() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let pairs: Vec<_> = (0..300).map(|_| UnixStream::pair().unwrap()).collect();
    let mut backend = System::new().unwrap();
    if backend.add(&null, Token(1), Interest::Read).is_err() {
        return; // there is nothing to change
    }
    assert_eq!(wait(&mut backend, None), [Token(1)]);
    for (n, (_, b)) in pairs.iter().enumerate() {
        backend.add(b, Token(2 + n as u64), Interest::Read).unwrap();
    }
    if backend.change(&null, Token(1), Interest::Both).is_err() {
        replace(&null, &pairs[0].0);
        backend.rearm(&null, Token(1), Interest::Both).unwrap();
    }
    assert_eq!(wait(&mut backend, None), [Token(1)], "nothing to read, but room");
    backend.remove(&null).unwrap();
    assert!(silent(&mut backend));
}

/// A pipe's two ends; the second is for writing.
fn pipe() -> [OwnedFd; 2] {
    let mut ends = [-1; 2];
    // SAFETY: pipe(2) writes two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: pipe(2) returned them a line above: they are open and nobody else has them.
    let ends = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    for end in &ends {
        crate::set_cloexec(end).unwrap();
    }
    ends
}

#[test]
fn where_one_of_two_interests_is_refused_the_other_is_silent_until_both_are_armed() {
    // To some kernels (kqueue) there is no waiting for room in a pipe that nobody reads from.
    for changed in [false, true] {
        let [reader, writer] = pipe();
        let mut backend = System::new().unwrap();
        if changed {
            backend.add(&writer, Token(1), Interest::Read).unwrap();
            assert_eq!(wait(&mut backend, SOON), []);
            drop(reader);
            backend.change(&writer, Token(1), Interest::Both).unwrap();
        } else {
            drop(reader);
            backend.add(&writer, Token(1), Interest::Both).unwrap();
        }
        assert_eq!(wait(&mut backend, None), [Token(1)]);
        if backend.rearm(&writer, Token(1), Interest::Both).is_ok() {
            assert_eq!(wait(&mut backend, Some(Duration::from_secs(10))), [Token(1)], "armed, they said");
        } else {
            assert!(silent(&mut backend), "refused, and so not reported again");
            backend.rearm(&writer, Token(1), Interest::Both).unwrap_err();
            let (mut far, mut near) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            while near.write(&[0]).is_ok() {}
            replace(&writer, &near);
            backend.rearm(&writer, Token(1), Interest::Both).unwrap();
            assert!(silent(&mut backend), "the cause is gone, and neither is ready");
            far.write_all(b"x").unwrap();
            assert_eq!(wait(&mut backend, None), [Token(1)]);
        }
        backend.remove(&writer).unwrap();
        assert!(silent(&mut backend));
    }
}

#[test]
fn what_is_refused_at_once_is_said_and_leaves_nothing() {
    let [reader, writer] = pipe();
    let [other_reader, other_writer] = pipe();
    let pairs: Vec<_> = (0..300).map(|_| UnixStream::pair().unwrap()).collect();
    let mut backend = System::new().unwrap();
    backend.add(&writer, Token(1), Interest::Read).unwrap();
    assert_eq!(wait(&mut backend, SOON), []);
    for (n, (_, b)) in pairs.iter().enumerate() {
        backend.add(b, Token(2 + n as u64), Interest::Read).unwrap();
    }
    drop((reader, other_reader));
    if backend.change(&writer, Token(1), Interest::Both).is_err() {
        assert!(silent(&mut backend));
        backend.rearm(&writer, Token(1), Interest::Both).unwrap_err();
    }
    backend.remove(&writer).unwrap();
    for (n, (_, b)) in pairs.iter().enumerate() {
        backend.remove(b).unwrap();
        backend.add(b, Token(2 + n as u64), Interest::Read).unwrap();
    }
    if backend.add(&other_writer, Token(1), Interest::Both).is_ok() {
        assert_eq!(wait(&mut backend, None), [Token(1)]);
        backend.remove(&other_writer).unwrap();
    }
    assert_eq!(backend.remove(&other_writer).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(silent(&mut backend));
}

#[test]
fn what_the_kernel_cannot_watch_is_said_and_can_be_removed() {
    // To some kernels (epoll) this is nothing to wait for, to others it is always ready.
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut backend = System::new().unwrap();
    if backend.add(&null, Token(1), Interest::Read).is_ok() {
        assert_eq!(wait(&mut backend, None), [Token(1)]);
        if backend.rearm(&null, Token(1), Interest::Read).is_err() {
            assert_eq!(wait(&mut backend, SOON), [], "refused, and so not reported again");
        }
        backend.remove(&null).unwrap();
    }
    backend.remove(&null).unwrap_err();
    assert_eq!(wait(&mut backend, SOON), []);
}
