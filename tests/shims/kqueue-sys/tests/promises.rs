// SPDX-License-Identifier: BSD-3-Clause

//! What kqueue(2) promises, one test a promise.

mod support;

use kqueue_sys::{EventFilter, EventFlag, FilterFlag, kevent};
use libc::{EBADF, ECONNRESET, EINTR, EINVAL, ENOENT, EPIPE, timespec};
use std::collections::HashSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::thread::JoinHandleExt;
use std::time::{Duration, Instant};
use std::{io, ptr, thread};
use support::*;

/// A pair of which the first has something to read and both have room to write.
fn readable(bytes: &[u8]) -> (UnixStream, UnixStream) {
    let (first, mut second) = UnixStream::pair().unwrap();
    second.write_all(bytes).unwrap();
    (first, second)
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// The reading and the writing end; neither blocks.
fn pipe() -> (File, File) {
    let mut ends = [0; 2];
    // SAFETY: pipe2(2) writes two descriptors, which are ours.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK), 0);
        (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
    }
}

/// Closes with a reset in the place of an end of stream.
fn reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: setsockopt(2) reads so many bytes of what it is given.
    let done = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            ptr::from_ref(&linger).cast(),
            size_of_val(&linger) as libc::socklen_t,
        )
    };
    assert_eq!(done, 0);
}

/// Closes what `number` stands for, and puts a copy of `with` in its place.
fn reuse(number: &impl AsRawFd, with: &impl AsRawFd) {
    // SAFETY: dup2(2) takes no pointer; the number's owner goes on to own it.
    assert_ne!(unsafe { libc::dup2(with.as_raw_fd(), number.as_raw_fd()) }, -1);
}

/// A number that is no open descriptor.
struct NoDescriptor;

impl AsRawFd for NoDescriptor {
    fn as_raw_fd(&self) -> RawFd {
        RawFd::MAX
    }
}

// Changes

#[test]
fn changes_are_applied_before_the_wait() {
    let kq = Kqueue::new();
    let (a, _a) = readable(b"x");
    let (b, _b) = readable(b"x");
    kq.change(&[change(&a, EVFILT_READ, ADD, 1)]);
    let changes = [change(&a, EVFILT_READ, DELETE, 0), change(&b, EVFILT_READ, ADD, 2)];
    let events = kq.call(&changes, 4, PATIENCE).unwrap();
    assert_eq!(keys(&events), [(2, EVFILT_READ)]);
}

#[test]
fn a_failed_change_is_an_event_where_there_is_room() {
    let kq = Kqueue::new();
    let (ready, _peer) = readable(b"x");
    let (idle, mut peer) = UnixStream::pair().unwrap();
    kq.change(&[change(&ready, EVFILT_READ, ADD, 1)]);
    let changes = [
        change(&NoDescriptor, EVFILT_READ, ADD, 7),
        change(&idle, EVFILT_READ, ADD, 2),
        change(&idle, EVFILT_WRITE, DELETE, 8),
    ];
    // It does not wait, and does not bring what is ready: only the answers.
    let events = kq.call(&changes, 4, FOR_EVER).unwrap();
    assert_eq!(keys(&events), [(7, EVFILT_READ), (8, EVFILT_WRITE)]);
    assert_eq!(events.iter().map(answer).collect::<Vec<_>>(), [Some(EBADF), Some(ENOENT)]);
    assert_eq!(events[1].ident, idle.as_raw_fd() as usize);
    // The change between the two has been made.
    peer.write_all(b"x").unwrap();
    assert_eq!(keys(&kq.events(PATIENCE)), [(1, EVFILT_READ), (2, EVFILT_READ)]);
}

#[test]
fn a_failed_change_is_the_calls_error_where_there_is_no_room() {
    let kq = Kqueue::new();
    let bad = change(&NoDescriptor, EVFILT_READ, ADD, 7);
    let none = kq.call(&[bad], 0, POLL).unwrap_err();
    assert_eq!(none.raw_os_error(), Some(EBADF));
    let (idle, _peer) = UnixStream::pair().unwrap();
    let missing = change(&idle, EVFILT_READ, DELETE, 0);
    let full = kq.call(&[bad, missing], 1, POLL).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(ENOENT));
    // No man page says what becomes of a receipt without a place. FreeBSD's kernel leaves the rest
    // of the changes undone; a caller has to make room.
    let changes = [ADD | RECEIPT, DELETE].map(|flags| change(&idle, EVFILT_READ, flags, 0));
    kq.change(&changes);
    kq.change(&changes[1..]);
}

#[test]
fn receipts_answer_each_change_and_drain_nothing() {
    let kq = Kqueue::new();
    let (a, _a) = readable(b"x");
    let (b, _b) = readable(b"x");
    let changes = [
        change(&a, EVFILT_READ, ADD | RECEIPT, 1),
        change(&NoDescriptor, EVFILT_READ, ADD | RECEIPT, 2),
        change(&b, EVFILT_READ, ADD | RECEIPT, 3),
    ];
    let answers = kq.call(&changes, 8, FOR_EVER).unwrap();
    assert_eq!(keys(&answers), [(1, EVFILT_READ), (2, EVFILT_READ), (3, EVFILT_READ)]);
    assert_eq!(answers.iter().map(answer).collect::<Vec<_>>(), [Some(0), Some(EBADF), Some(0)]);
    let events = kq.events(PATIENCE);
    assert_eq!(keys(&events), [(1, EVFILT_READ), (3, EVFILT_READ)]);
    assert_eq!(events.iter().filter_map(answer).count(), 0);
}

#[test]
fn one_list_serves_for_changes_and_events() {
    let kq = Kqueue::new();
    let streams: Vec<_> = (0..3).map(|_| readable(b"x")).collect();
    let mut list = vec![
        change(&streams[0].0, EVFILT_READ, ADD, 1),
        change(&NoDescriptor, EVFILT_READ, ADD, 2),
        change(&streams[1].0, EVFILT_READ, ADD | RECEIPT, 3),
        change(&streams[2].0, EVFILT_WRITE, DELETE, 4),
        change(&streams[2].0, EVFILT_READ, ADD, 5),
    ];
    let mut call = |changes| {
        // SAFETY: "the same array may be used for the changelist and eventlist", and it has five.
        let n = unsafe {
            let list = list.as_mut_ptr();
            kqueue_sys::kevent(kq.0.as_raw_fd(), list, changes, list, 5, ptr::null())
        };
        list[..n as usize].to_vec()
    };
    let answers = call(5);
    assert_eq!(answers.iter().map(key).map(|key| key.0).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(answers.iter().map(answer).collect::<Vec<_>>(), [Some(EBADF), Some(0), Some(ENOENT)]);
    assert_eq!(keys(&call(0)), [(1, EVFILT_READ), (3, EVFILT_READ), (5, EVFILT_READ)]);
}

#[test]
fn adding_again_modifies() {
    let kq = Kqueue::new();
    let (a, _a) = readable(b"x");
    kq.change(&[change(&a, EVFILT_READ, ADD, 1), change(&a, EVFILT_READ, DISABLE, 1)]);
    // Flags of the system's, left from an event, mean nothing in a change.
    kq.change(&[change(&a, EVFILT_READ, ADD | EOF | ERROR, 2)]);
    let events = kq.events(PATIENCE);
    assert_eq!(keys(&events), [(2, EVFILT_READ)], "new udata, enabled, and only one");
    assert!(!events[0].flags.intersects(EOF | ERROR));
    kq.change(&[change(&a, EVFILT_READ, DELETE, 0)]);
    assert_eq!(kq.refusal(change(&a, EVFILT_READ, DELETE, 0)), Some(ENOENT));
    assert!(kq.events(POLL).is_empty());
}

#[test]
fn what_is_not_there_cannot_be_changed() {
    let kq = Kqueue::new();
    let (a, _a) = readable(b"x");
    kq.change(&[change(&a, EVFILT_WRITE, ADD, 1)]);
    for flags in [DELETE, ENABLE, DISABLE] {
        assert_eq!(kq.refusal(change(&a, EVFILT_READ, flags, 0)), Some(ENOENT), "{flags:?}");
    }
    assert_eq!(keys(&kq.events(PATIENCE)), [(1, EVFILT_WRITE)]);
}

#[test]
fn a_bad_descriptor_is_ebadf() {
    let kq = Kqueue::new();
    for flags in [ADD, DELETE, ENABLE] {
        assert_eq!(kq.refusal(change(&NoDescriptor, EVFILT_READ, flags, 0)), Some(EBADF), "{flags:?}");
    }
    // A descriptor is an int: what does not fit must not be cut until it does.
    let (a, _a) = readable(b"x");
    let mut long = change(&a, EVFILT_READ, ADD, 0);
    long.ident += 1 << 32;
    assert_eq!(kq.refusal(long), Some(EBADF));
}

#[test]
fn what_is_not_offered_is_refused() {
    let kq = Kqueue::new();
    let (a, _a) = readable(b"x");
    assert_eq!(kq.refusal(change(&a, EventFilter::EVFILT_VNODE, ADD, 0)), Some(EINVAL));
    for flag in [EventFlag::EV_CLEAR, EventFlag::EV_DISPATCH, EventFlag::from_bits_retain(0x0100)] {
        assert_eq!(kq.refusal(change(&a, EVFILT_READ, ADD | flag, 0)), Some(EINVAL), "{flag:?}");
    }
    let mut lowat = change(&a, EVFILT_READ, ADD, 0);
    lowat.fflags = FilterFlag::NOTE_LOWAT;
    assert_eq!(kq.refusal(lowat), Some(EINVAL));
    let file = File::open("/proc/self/exe").unwrap();
    assert_eq!(kq.refusal(change(&file, EVFILT_READ, ADD, 0)), Some(EINVAL));
    assert_eq!(kq.refusal(change(&a, EVFILT_READ, DELETE, 0)), Some(ENOENT), "nothing of it was kept");
}

#[test]
fn disabled_is_kept_but_not_reported() {
    let kq = Kqueue::new();
    let (a, peer) = readable(b"x");
    kq.change(&[change(&a, EVFILT_READ, ADD | DISABLE, 1)]);
    assert!(kq.events(SOON).is_empty());
    // Not even a hang-up is reported; nor does it end the wait, or keep it busy.
    drop(peer);
    kq.assert_idle(1, Duration::from_millis(60));
    kq.change(&[change(&a, EVFILT_READ, ENABLE, 2)]);
    assert_eq!(keys(&kq.events(PATIENCE)).len(), 1);
    kq.change(&[change(&a, EVFILT_READ, DISABLE, 3)]);
    assert!(kq.events(SOON).is_empty());
    kq.change(&[change(&a, EVFILT_READ, DELETE, 0)]);
}

#[test]
fn oneshot_is_deleted_when_it_has_been_reported() {
    let kq = Kqueue::new();
    let (a, mut peer) = UnixStream::pair().unwrap();
    kq.change(&[
        change(&a, EVFILT_READ, ADD | ONESHOT | DISABLE, 1),
        change(&a, EVFILT_READ, ENABLE, 1),
        change(&a, EVFILT_WRITE, ADD | DISABLE, 2),
    ]);
    assert!(kq.events(SOON).is_empty(), "nothing to report yet");
    peer.write_all(b"x").unwrap();
    assert_eq!(keys(&kq.events(PATIENCE)), [(1, EVFILT_READ)]);
    kq.assert_idle(1, Duration::from_millis(60));
    assert_eq!(kq.refusal(change(&a, EVFILT_READ, ENABLE, 1)), Some(ENOENT));
    kq.change(&[change(&a, EVFILT_WRITE, ENABLE, 2)]);
    assert_eq!(keys(&kq.events(PATIENCE)), [(2, EVFILT_WRITE)], "the other filter is left alone");
}

// Events

#[test]
fn the_two_filters_of_a_descriptor_are_two() {
    let kq = Kqueue::new();
    let (a, mut peer) = UnixStream::pair().unwrap();
    kq.change(&[change(&a, EVFILT_READ, ADD, 1), change(&a, EVFILT_WRITE, ADD, 2)]);
    assert_eq!(keys(&kq.events(PATIENCE)), [(2, EVFILT_WRITE)]);
    peer.write_all(b"x").unwrap();
    assert_eq!(keys(&kq.events(PATIENCE)), [(1, EVFILT_READ), (2, EVFILT_WRITE)]);
    kq.change(&[change(&a, EVFILT_READ, DISABLE, 1)]);
    assert_eq!(keys(&kq.events(PATIENCE)), [(2, EVFILT_WRITE)]);
    kq.change(&[change(&a, EVFILT_WRITE, DELETE, 0), change(&a, EVFILT_READ, ENABLE, 1)]);
    assert_eq!(keys(&kq.events(PATIENCE)), [(1, EVFILT_READ)]);
    kq.change(&[change(&a, EVFILT_READ, DELETE, 0)]);
    assert!(kq.events(POLL).is_empty());
}

#[test]
fn a_change_of_one_filter_is_none_of_the_other() {
    let kq = Kqueue::new();
    let (a, mut peer) = UnixStream::pair().unwrap();
    kq.change(&[change(&a, EVFILT_READ, ADD, 1)]);
    // Both in the list of the call that waits: what is removed there is not reported any more.
    let to_write = [change(&a, EVFILT_READ, DELETE, 0), change(&a, EVFILT_WRITE, ADD, 2)];
    let to_read = [change(&a, EVFILT_READ, ADD, 3), change(&a, EVFILT_WRITE, DELETE, 0)];
    peer.write_all(b"x").unwrap();
    for _ in 0..2 {
        assert_eq!(keys(&kq.call(&to_write, 4, PATIENCE).unwrap()), [(2, EVFILT_WRITE)]);
        assert_eq!(keys(&kq.call(&to_read, 4, PATIENCE).unwrap()), [(3, EVFILT_READ)]);
    }
    kq.change(&[to_write[1]]);
    assert_eq!(kq.refusal(change(&a, EVFILT_WRITE, ADD | EventFlag::EV_CLEAR, 4)), Some(EINVAL));
    assert_eq!(keys(&kq.events(PATIENCE)), [(2, EVFILT_WRITE), (3, EVFILT_READ)]);
}

#[test]
fn there_is_no_waiting_for_room_in_a_pipe_that_nobody_reads_from() {
    let kq = Kqueue::new();
    let ((reader, writer), (known_reader, known_writer)) = (pipe(), pipe());
    kq.change(&[change(&known_writer, EVFILT_WRITE, ADD, 1)]);
    drop((reader, known_reader));
    assert_eq!(kq.refusal(change(&writer, EVFILT_WRITE, ADD, 2)), Some(EPIPE));
    assert_eq!(kq.refusal(change(&writer, EVFILT_WRITE, DELETE, 0)), Some(ENOENT));
    // Who waits already is told, and may go on.
    kq.change(&[change(&known_writer, EVFILT_WRITE, ADD, 3)]);
    assert_eq!(keys(&kq.events(PATIENCE)), [(3, EVFILT_WRITE)]);
    // The other filter has no such rule.
    kq.change(&[change(&writer, EVFILT_READ, ADD, 4), change(&writer, EVFILT_READ, DELETE, 0)]);
}

#[test]
fn what_stays_ready_is_reported_again_with_the_bytes_that_are_left() {
    let kq = Kqueue::new();
    let (mut a, _a) = readable(b"12345");
    kq.change(&[change(&a, EVFILT_READ, ADD, 1)]);
    for left in (1..=5).rev() {
        let events = kq.events(PATIENCE);
        assert_eq!(keys(&events), [(1, EVFILT_READ)]);
        assert_eq!((events[0].ident, events[0].data), (a.as_raw_fd() as usize, left));
        assert!(!events[0].flags.intersects(EOF | ERROR));
        a.read_exact(&mut [0]).unwrap();
    }
    assert!(kq.events(SOON).is_empty());
}

#[test]
fn a_listener_is_ready_when_somebody_waits() {
    let kq = Kqueue::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    kq.change(&[change(&listener, EVFILT_READ, ADD, 1)]);
    assert!(kq.events(SOON).is_empty());
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let events = kq.events(PATIENCE);
    assert_eq!(keys(&events), [(1, EVFILT_READ)]);
    assert!(events[0].data >= 1 && !events[0].flags.contains(EOF));
    let _server = listener.accept().unwrap();
    assert!(kq.events(SOON).is_empty());
}

#[test]
fn write_waits_for_room() {
    let kq = Kqueue::new();
    let (mut a, mut peer) = UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while let Ok(n) = a.write(&[0; 4096]) {
        sent += n;
    }
    kq.change(&[change(&a, EVFILT_WRITE, ADD, 1)]);
    assert!(kq.events(SOON).is_empty());
    peer.read_exact(&mut vec![0; sent]).unwrap();
    let events = kq.events(PATIENCE);
    assert_eq!(keys(&events), [(1, EVFILT_WRITE)]);
    assert!(events[0].data >= 1 && !events[0].flags.contains(EOF));
}

#[test]
fn the_end_of_the_stream_is_reported_while_data_is_left() {
    let kq = Kqueue::new();
    let (mut client, mut server) = tcp();
    kq.change(&[change(&server, EVFILT_READ, ADD, 1)]);
    client.write_all(b"abc").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    // The bytes may be there a moment before the end.
    let end = || kq.await_event(|event| event.flags.contains(EOF));
    assert_eq!((key(&end()), end().data), ((1, EVFILT_READ), 3));
    server.read_exact(&mut [0; 3]).unwrap();
    assert_eq!((end().data, end().fflags), (0, FilterFlag::empty()));
    // The other direction is open still.
    kq.change(&[change(&server, EVFILT_READ, DELETE, 0), change(&server, EVFILT_WRITE, ADD, 2)]);
    let events = kq.events(PATIENCE);
    assert_eq!(keys(&events), [(2, EVFILT_WRITE)]);
    assert!(!events[0].flags.contains(EOF));
}

#[test]
fn both_ends_closed_is_the_end_for_either_filter() {
    for filter in [EVFILT_READ, EVFILT_WRITE] {
        let kq = Kqueue::new();
        let (client, server) = tcp();
        server.shutdown(Shutdown::Write).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (a, peer) = UnixStream::pair().unwrap();
        drop(peer);
        kq.change(&[change(&server, filter, ADD, 1), change(&a, filter, ADD, 2)]);
        for udata in [1, 2] {
            kq.await_event(|event| key(event).0 == udata && event.flags.contains(EOF));
        }
    }
}

#[test]
fn a_reset_is_reported_to_either_filter_and_left_to_the_caller() {
    for filter in [EVFILT_READ, EVFILT_WRITE] {
        let kq = Kqueue::new();
        let (client, mut server) = tcp();
        // No room: what EVFILT_WRITE reports is the reset and nothing else.
        server.set_nonblocking(true).unwrap();
        while server.write(&[0; 65536]).is_ok() {}
        server.set_nonblocking(false).unwrap();
        kq.change(&[change(&server, filter, ADD, 1)]);
        assert!(kq.events(SOON).is_empty());
        reset(client);
        for _ in 0..2 {
            let events = kq.events(PATIENCE);
            assert_eq!(keys(&events), [(1, filter)]);
            assert!(events[0].flags.contains(EOF));
        }
        assert_eq!(server.read(&mut [0]).unwrap_err().raw_os_error(), Some(ECONNRESET));
    }
}

#[test]
fn a_pipe_ends_with_its_other_end() {
    let kq = Kqueue::new();
    let (mut reader, mut writer) = pipe();
    kq.change(&[change(&reader, EVFILT_READ, ADD, 1)]);
    assert!(kq.events(SOON).is_empty());
    writer.write_all(b"ab").unwrap();
    drop(writer);
    for left in [2, 1, 0] {
        let events = kq.events(PATIENCE);
        assert_eq!(keys(&events), [(1, EVFILT_READ)]);
        assert!(events[0].flags.contains(EOF) && events[0].data == left, "{left} left: {events:?}");
        assert_eq!(reader.read(&mut [0]).unwrap(), usize::from(left > 0));
    }
    kq.change(&[change(&reader, EVFILT_READ, DELETE, 0)]);

    // Full, so that it is the reader's going and not the room which is reported.
    let (reader, mut writer) = pipe();
    while writer.write(&[0; 4096]).is_ok() {}
    kq.change(&[change(&writer, EVFILT_WRITE, ADD, 2)]);
    assert!(kq.events(SOON).is_empty());
    drop(reader);
    let events = kq.events(PATIENCE);
    assert_eq!(keys(&events), [(2, EVFILT_WRITE)]);
    assert!(events[0].flags.contains(EOF));
}

#[test]
fn more_than_fit_take_turns() {
    for room in 1..=5 {
        let kq = Kqueue::new();
        let streams: Vec<_> = (0..6).map(|_| readable(b"x")).collect();
        for (n, (stream, _)) in streams.iter().enumerate() {
            kq.change(&[change(stream, EVFILT_READ, ADD, n), change(stream, EVFILT_WRITE, ADD, n)]);
        }
        // Twelve are ready all the time. Each has its turn within two rounds of the descriptors.
        let mut seen = HashSet::new();
        for _ in 0..12_usize.div_ceil(room) + 6 {
            let events = kq.call(&[], room, PATIENCE).unwrap();
            let once: HashSet<_> = events.iter().map(key).collect();
            assert_eq!(once.len(), events.len(), "twice in one call: {events:?}");
            seen.extend(once);
        }
        assert_eq!(seen.len(), 12, "room for {room}: {seen:?}");
    }
}

#[test]
fn all_that_are_ready_come_at_once_where_there_is_room() {
    let kq = Kqueue::new();
    let streams: Vec<_> = (0..20).map(|_| readable(b"x")).collect();
    for (n, (stream, _)) in streams.iter().enumerate() {
        kq.change(&[change(stream, EVFILT_READ, ADD, n), change(stream, EVFILT_WRITE, ADD, n)]);
    }
    assert_eq!(kq.call(&[], 40, PATIENCE).unwrap().len(), 40);
}

// Time

#[test]
fn a_poll_does_not_wait_and_a_time_limit_is_kept() {
    let kq = Kqueue::new();
    let (a, _peer) = UnixStream::pair().unwrap();
    kq.change(&[change(&a, EVFILT_READ, ADD, 1)]);
    let poll = || {
        let before = Instant::now();
        assert!(kq.events(POLL).is_empty());
        before.elapsed()
    };
    assert!((0..5).any(|_| poll() < Duration::from_millis(1)));
    // A part of a millisecond is neither cut nor spent in a loop.
    kq.assert_idle(50, Duration::from_micros(900));
    kq.assert_idle(1, Duration::from_micros(30_500));
    // No room for events means no waiting, whatever the time limit.
    let before = Instant::now();
    kq.call(&[], 0, PATIENCE).unwrap();
    assert!(before.elapsed() < Duration::from_secs(5));
}

#[test]
fn without_a_time_limit_it_waits_for_ever() {
    let pause = Duration::from_millis(60);
    // What the clock cannot hold is for ever, too.
    for timeout in [FOR_EVER, Some(timespec { tv_sec: (u64::MAX / 2).try_into().unwrap(), tv_nsec: 0 })] {
        let kq = Kqueue::new();
        let (a, mut peer) = UnixStream::pair().unwrap();
        let before = Instant::now();
        let writer = thread::spawn(move || {
            // There is no end to wait for: that it still waits after a while has to do.
            thread::sleep(pause);
            peer.write_all(b"x").map(|()| peer)
        });
        let events = kq.call(&[change(&a, EVFILT_READ, ADD, 1)], 1, timeout).unwrap();
        assert_eq!(keys(&events), [(1, EVFILT_READ)]);
        assert!(before.elapsed() >= pause);
        drop(writer.join().unwrap().unwrap());
    }
}

#[test]
fn no_time_is_einval() {
    let kq = Kqueue::new();
    for (tv_sec, tv_nsec) in [(-1, 0), (0, -1), (0, 1_000_000_000)] {
        let error = kq.call(&[], 1, Some(timespec { tv_sec, tv_nsec })).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EINVAL), "{tv_sec} s {tv_nsec} ns");
    }
}

#[test]
fn a_signal_ends_the_wait_but_not_the_changes() {
    extern "C" fn ignore(_: libc::c_int) {}
    // SAFETY: signal(2): the handler does nothing, so it may do it at any time.
    unsafe { libc::signal(libc::SIGUSR1, ignore as *const () as libc::sighandler_t) };
    let (a, _peer) = UnixStream::pair().unwrap();
    let waiter = thread::spawn(move || {
        let kq = Kqueue::new();
        let outcome = kq.call(&[change(&a, EVFILT_READ, ADD, 1)], 1, PATIENCE);
        kq.change(&[change(&a, EVFILT_READ, DELETE, 0)]);
        outcome.map(|events| keys(&events))
    });
    // Again and again, for a signal that comes before the wait has begun is lost.
    while !waiter.is_finished() {
        // SAFETY: pthread_kill(3): the thread has not been joined.
        unsafe { libc::pthread_kill(waiter.as_pthread_t(), libc::SIGUSR1) };
        thread::sleep(Duration::from_millis(5));
    }
    let error = waiter.join().unwrap().unwrap_err();
    assert_eq!((error.raw_os_error(), error.kind()), (Some(EINTR), ErrorKind::Interrupted));
}

// Descriptors that come and go

#[test]
fn a_knote_dies_with_its_descriptor() {
    let kq = Kqueue::new();
    let (old, _old) = readable(b"x");
    let (new, _new) = readable(b"xyz");
    kq.change(&[change(&old, EVFILT_READ, ADD, 1), change(&old, EVFILT_WRITE, ADD, 2)]);
    reuse(&old, &new);
    assert!(kq.events(SOON).is_empty());
    assert_eq!(kq.refusal(change(&old, EVFILT_READ, DELETE, 0)), Some(ENOENT));
    assert_eq!(kq.refusal(change(&old, EVFILT_WRITE, ENABLE, 0)), Some(ENOENT));
}

#[test]
fn a_number_used_again_begins_anew() {
    let kq = Kqueue::new();
    let (old, _old) = readable(b"x");
    let (new, _new) = readable(b"xyz");
    kq.change(&[change(&old, EVFILT_READ, ADD | DISABLE, 1), change(&old, EVFILT_WRITE, ADD, 2)]);
    reuse(&old, &new);
    kq.change(&[change(&old, EVFILT_READ, ADD, 3)]);
    let events = kq.events(PATIENCE);
    assert_eq!(keys(&events), [(3, EVFILT_READ)], "and the older EVFILT_WRITE is not there again");
    assert_eq!(events[0].data, 3);
}

#[test]
fn a_copy_that_lives_on_does_not_speak_for_the_new_user_of_its_number() {
    let kq = Kqueue::new();
    let (old, mut old_peer) = UnixStream::pair().unwrap();
    let (new, mut new_peer) = UnixStream::pair().unwrap();
    let copy = old.try_clone().unwrap();
    kq.change(&[change(&old, EVFILT_READ, ADD, 1)]);
    reuse(&old, &new);
    kq.change(&[change(&old, EVFILT_READ, ADD, 2)]);
    old_peer.write_all(b"x").unwrap();
    drop(old_peer);
    assert!(kq.events(SOON).is_empty());
    new_peer.write_all(b"x").unwrap();
    assert_eq!(keys(&kq.call(&[], 1, PATIENCE).unwrap()), [(2, EVFILT_READ)]);
    // Even if the copy gets its old number back.
    kq.change(&[change(&old, EVFILT_READ, DELETE, 0)]);
    reuse(&old, &copy);
    kq.change(&[change(&old, EVFILT_WRITE, ADD, 3)]);
    assert_eq!(keys(&kq.events(PATIENCE)), [(3, EVFILT_WRITE)]);
}

// Several kqueues, several threads

#[test]
fn kqueues_know_nothing_of_each_other() {
    let (one, other) = (Kqueue::new(), Kqueue::new());
    let (a, _a) = readable(b"x");
    one.change(&[change(&a, EVFILT_READ, ADD, 1)]);
    assert_eq!(other.refusal(change(&a, EVFILT_READ, DELETE, 0)), Some(ENOENT));
    other.change(&[change(&a, EVFILT_READ, ADD, 2)]);
    assert_eq!(keys(&one.events(PATIENCE)), [(1, EVFILT_READ)]);
    one.change(&[change(&a, EVFILT_READ, DELETE, 0)]);
    assert_eq!(keys(&other.events(PATIENCE)), [(2, EVFILT_READ)]);
}

#[test]
fn a_change_by_another_thread_reaches_the_one_that_waits() {
    let kq = Kqueue::new();
    let (a, _a) = readable(b"x");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| keys(&kq.events(PATIENCE)));
        // Gives it the time to wait in the kernel; nothing fails if that was too short.
        thread::sleep(Duration::from_millis(30));
        kq.change(&[change(&a, EVFILT_READ, ADD, 1)]);
        assert_eq!(waiter.join().unwrap(), [(1, EVFILT_READ)]);
    });
}

#[test]
fn threads_that_share_a_kqueue_get_each_oneshot_event_once() {
    const STREAMS: usize = 200;
    let kq = Kqueue::new();
    let streams: Vec<_> = (0..STREAMS).map(|_| readable(b"x")).collect();
    let mut seen: Vec<usize> = thread::scope(|scope| {
        let take = || {
            let mut mine = Vec::new();
            loop {
                match kq.call(&[], 4, SOON).unwrap() {
                    events if events.is_empty() => break mine,
                    events => mine.extend(events.iter().map(|event| key(event).0)),
                }
            }
        };
        let takers: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        for (n, (stream, _)) in streams.iter().enumerate() {
            kq.change(&[change(stream, EVFILT_READ, ADD | ONESHOT, n)]);
        }
        takers.into_iter().flat_map(|taker| taker.join().unwrap()).chain(take()).collect()
    });
    seen.sort();
    assert_eq!(seen, (0..STREAMS).collect::<Vec<_>>());
}

#[test]
fn a_negative_number_of_elements_is_einval() {
    let kq = Kqueue::new();
    let mut list: [kevent; 0] = [];
    for (changes, events) in [(-1, 0), (0, -1)] {
        let list = list.as_mut_ptr();
        // SAFETY: no list has fewer elements than none: nothing may be read or written.
        let count = unsafe { kqueue_sys::kevent(kq.0.as_raw_fd(), list, changes, list, events, ptr::null()) };
        assert_eq!((count, io::Error::last_os_error().raw_os_error()), (-1, Some(EINVAL)));
    }
}
