// SPDX-License-Identifier: BSD-3-Clause

//! What concerns the process as a whole: its table of descriptors, its children, its time. So
//! these tests run one at a time.

mod support;

use libc::{EBADF, ENOENT};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use support::*;

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_kqueue_is_not_closed_on_exec() {
    let _alone = alone();
    let kq = Kqueue::new();
    // SAFETY: F_GETFD takes no pointer.
    assert_eq!(unsafe { libc::fcntl(kq.0.as_raw_fd(), libc::F_GETFD) }, 0);
}

#[test]
fn a_closed_kqueue_leaves_nothing_to_the_next_of_its_number() {
    let _alone = alone();
    let (a, mut peer) = UnixStream::pair().unwrap();
    peer.write_all(b"x").unwrap();
    let kq = Kqueue::new();
    let number = kq.0.as_raw_fd();
    kq.change(&[change(&a, EVFILT_READ, ADD, 1)]);
    // It is closed in here, and its number asked for events all the same.
    let gone = std::mem::ManuallyDrop::new(kq);
    // SAFETY: close(2): we own it, and it is not closed a second time.
    assert_eq!(unsafe { libc::close(number) }, 0);
    for changes in [&[][..], &[change(&a, EVFILT_READ, DELETE, 0)]] {
        assert_eq!(gone.call(changes, 1, POLL).unwrap_err().raw_os_error(), Some(EBADF));
    }

    let next = Kqueue::new();
    assert_eq!(next.0.as_raw_fd(), number, "the lowest that is free");
    assert!(next.events(POLL).is_empty());
    assert_eq!(next.refusal(change(&a, EVFILT_READ, DELETE, 0)), Some(ENOENT));
    next.change(&[change(&a, EVFILT_READ, ADD, 2)]);
    assert_eq!(keys(&next.events(PATIENCE)), [(2, EVFILT_READ)]);
}

#[test]
fn a_child_does_not_inherit_the_kqueue() {
    let _alone = alone();
    let kq = Kqueue::new();
    // SAFETY: fork(2): no other thread holds anything that the child needs (see `alone`).
    let child = unsafe { libc::fork() };
    if child == 0 {
        let inherited = kq.call(&[], 0, POLL).is_ok();
        drop(kq);
        // One of the child's own may have the same number.
        let own = Kqueue::new().call(&[], 0, POLL).is_ok();
        // SAFETY: _exit(2) runs nothing of what the parent has set up.
        unsafe { libc::_exit(if own && !inherited { 7 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(libc::WEXITSTATUS(status), 7, "the child could use it, or could not use its own");
    assert!(kq.events(POLL).is_empty());
}

#[test]
fn a_call_costs_what_it_changes_and_returns_not_what_is_registered() {
    let _alone = alone();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) and setrlimit(2) write and read one rlimit.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max.min(10_100);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }

    let kq = Kqueue::new();
    let (busy, mut peer) = UnixStream::pair().unwrap();
    peer.write_all(b"x").unwrap();
    let call = [change(&busy, EVFILT_READ, ADD, 1)];
    // The shortest of many, which is the one that nothing else has disturbed.
    let cost = || {
        let calls = (0..50).map(|_| {
            let before = Instant::now();
            for _ in 0..20 {
                assert_eq!(kq.call(&call, 8, POLL).unwrap().len(), 1);
            }
            before.elapsed()
        });
        calls.min().unwrap()
    };
    let with_none = cost();
    let idle: Vec<_> = (0..limit.rlim_cur - 100).map(|_| UnixDatagram::unbound().unwrap()).collect();
    for socket in &idle {
        kq.change(&[change(socket, EVFILT_READ, ADD, 2)]);
    }
    let with_many = cost();
    assert!(
        with_many < with_none * 4 + Duration::from_micros(20),
        "{with_many:?} with {} registered, {with_none:?} with none",
        idle.len()
    );
}
