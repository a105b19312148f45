//! What no contract says, because it is the simulation's: time, chance, evidence, and that what is
//! forbidden is noticed.

use super::*;
use crate::backend::{Backend as _, Interest, Token};
use crate::clock::Clock as _;
use crate::closing::SlowClose as _;
use crate::fdpass::{self, Door as _, Link as _};
use crate::signals::Signal as _;
use crate::tcp::Tcp as _;
use std::rc::Rc;

const ROOT: Peer = Peer { uid: 0, pid: None };
const SECOND: Duration = Duration::from_secs(1);

fn linux() -> Kernel {
    Kernel::new(1, Flavour::linux())
}

/// What waits for ever if nothing happens.
fn wait(backend: &mut Backend) -> Vec<Token> {
    let mut ready = Vec::new();
    backend.wait(&mut ready, None).unwrap();
    ready
}

/// Hands `held` over as a process finds it.
fn hand_over(process: &Process, held: Held) -> Socket {
    Socket::of(process.inherit(&held)).ok().unwrap()
}

#[test]
fn a_connection_goes_from_its_sender_to_its_end() {
    let kernel = linux();
    let process = kernel.process(64);
    let mut backend = process.backend();
    let (door, address) = process.door(8);
    backend.add(&door, Token(1), Interest::Read).unwrap();
    let (client, held) = kernel.connection(&Setup { latency: SECOND / 10, closes: true, ..Setup::default() });
    kernel.at(SECOND, move |kernel| {
        let sender = kernel.connect(address, ROOT).unwrap();
        sender.send(b"L", &[&held]).unwrap();
    });

    assert_eq!(wait(&mut backend), [Token(1)]);
    assert_eq!(kernel.now(), SECOND);
    let link = door.accept().unwrap();
    assert_eq!(door.accept().err().unwrap().kind(), io::ErrorKind::WouldBlock);
    let mut descriptors = Vec::new();
    let byte = fdpass::Received::Byte { byte: b'L', truncated: false };
    assert_eq!(link.receive(&mut descriptors).unwrap(), byte);
    assert_eq!(link.receive(&mut descriptors).unwrap(), fdpass::Received::End);
    let socket = Socket::of(descriptors.pop().unwrap()).ok().unwrap();
    backend.add(&socket, Token(2), Interest::Read).unwrap();
    assert_eq!(socket.discard().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(socket.is_acknowledged(), Some(true));
    socket.half_close();
    assert_eq!(socket.is_acknowledged(), Some(false));
    assert_eq!(wait(&mut backend), [Token(2)]);
    assert_eq!(socket.discard().unwrap(), 0);
    backend.remove(&socket).unwrap();
    socket.close();

    let facts = client.facts();
    assert_eq!((facts.read, facts.lost), (20_000, 0));
    assert_eq!(facts.read_to_end, Some(SECOND + SECOND / 10));
    assert_eq!(facts.client_ended, Some(SECOND + SECOND / 5));
    assert_eq!((facts.closed, facts.closed_by), (Some(kernel.now()), Some(By::Daemon)));
    backend.remove(&door).unwrap();
    drop((link, door));
    assert_eq!(process.descriptors().len(), 1, "the backend's");
    assert_eq!(kernel.violations(), [""; 0]);
}

#[test]
fn the_agenda_is_in_the_order_of_time_and_then_of_insertion() {
    let kernel = linux();
    let seen = Rc::new(RefCell::new(Vec::new()));
    for (n, seconds) in [3, 1, 2, 1, 3].into_iter().enumerate() {
        let seen = Rc::clone(&seen);
        kernel.at(SECOND * seconds, move |kernel| seen.borrow_mut().push((kernel.now().as_secs(), n)));
    }
    kernel.run_until(SECOND * 2);
    assert_eq!(*seen.borrow(), [(1, 1), (1, 3), (2, 2)]);
    kernel.run_out();
    assert_eq!(seen.borrow()[3..], [(3, 0), (3, 4)]);
}

#[test]
fn time_outs_are_rounded_up_and_the_pause_is_a_millisecond() {
    let kernel = linux();
    let process = kernel.process(64);
    let (mut backend, clock) = (process.backend(), process.clock());
    kernel.set_clock(Duration::from_secs(1 << 26));
    let start = clock.now();
    let mut ready = Vec::new();
    backend.wait(&mut ready, Some(Duration::from_nanos(1_000_001))).unwrap();
    assert_eq!(clock.now() - start, Duration::from_millis(2));
    clock.pause();
    assert_eq!(clock.now() - start, Duration::from_millis(3));
    backend.wait(&mut ready, Some(Duration::ZERO)).unwrap();
    assert_eq!(kernel.now(), Duration::from_millis(3));
}

#[test]
fn at_rest_things_happen_one_by_one() {
    let kernel = linux();
    let process = kernel.process(64);
    let mut backend = process.backend();
    let (mut signals, raisers) = process.signals();
    backend.add(&signals.stop, Token(1), Interest::Read).unwrap();
    for _ in 0..2 {
        let stop = raisers.stop.clone();
        kernel.at_rest(move |_| stop.raise());
    }
    for _ in 0..2 {
        assert_eq!(wait(&mut backend), [Token(1)]);
        assert_eq!(signals.stop.take(), 1);
    }
    assert_eq!(kernel.now(), Duration::ZERO);
}

#[test]
#[should_panic = "waits for ever"]
fn a_daemon_that_forgets_to_rearm_is_found_out() {
    let kernel = Kernel::new(1, Flavour::solaris());
    let process = kernel.process(64);
    let mut backend = process.backend();
    let (signals, raisers) = process.signals();
    backend.add(&signals.stop, Token(7), Interest::Read).unwrap();
    raisers.stop.raise();
    assert_eq!(wait(&mut backend), [Token(7)]);
    wait(&mut backend);
}

#[test]
fn to_close_what_is_registered_is_a_violation() {
    let kernel = linux();
    let process = kernel.process(64);
    let mut backend = process.backend();
    let (client, held) = kernel.connection(&Setup::default());
    let socket = hand_over(&process, held.clone());
    backend.add(&socket, Token(7), Interest::Read).unwrap();
    drop(socket);
    assert!(kernel.violations()[0].contains("registered as Token(7)"));
    // And it is reported for as long as there is a copy.
    client.half_close();
    assert_eq!(wait(&mut backend), [Token(7)]);
    drop(held);
    assert_eq!(process.registrations(), 0);
}

#[test]
fn what_may_wait_to_be_closed_is_for_slow_close() {
    let kernel = linux();
    let process = kernel.process(64);
    let file = kernel.slow("file", SECOND);
    let (one, other) = (process.inherit(&file), process.inherit(&kernel.slow("file", SECOND)));
    let mut slow = process.slow_close();
    slow.close(one);
    assert_eq!((slow.waiting(), file.references()), (1, 2));
    drop(other);
    assert_eq!(kernel.now(), SECOND, "the daemon has waited");
    assert_eq!(kernel.violations().len(), 1);
    kernel.run_out();
    assert_eq!((slow.waiting(), file.references()), (0, 1));
}

#[test]
fn a_close_with_something_unread_destroys_what_the_client_has_not_read() {
    let kernel = linux();
    let process = kernel.process(64);
    let setup = Setup { reads: false, ..Setup::default() };
    let (client, held) = kernel.connection(&setup);
    let socket = hand_over(&process, held);
    client.read(5_000);
    client.send(1);
    socket.close();
    let facts = client.facts();
    assert_eq!((facts.closed_unread, facts.lost), (1, 15_000));

    // So does a byte that comes after it.
    let (client, held) = kernel.connection(&setup);
    hand_over(&process, held).close();
    assert_eq!((client.facts().closed_unread, client.facts().lost), (0, 0));
    client.send(1);
    assert_eq!(client.facts().lost, 20_000);
}

#[test]
fn what_does_not_fit_waits_for_the_reader() {
    let kernel = linux();
    let process = kernel.process(64);
    let setup = Setup { response: 300_000, reads: false, latency: SECOND, ..Setup::default() };
    let (client, held) = kernel.connection(&setup);
    let socket = hand_over(&process, held);
    socket.half_close();
    kernel.run_out();
    assert_eq!((client.unread(), socket.is_acknowledged()), (65_536, Some(false)));
    while client.facts().read_to_end.is_none() {
        client.read(u64::MAX);
        kernel.run_out();
    }
    assert_eq!((client.facts().read, socket.is_acknowledged()), (300_000, Some(true)));
}

#[test]
fn who_disappears_acknowledges_nothing_until_it_is_back_or_given_up() {
    let kernel = linux();
    let process = kernel.process(64);
    let (client, held) = kernel.connection(&Setup::default());
    let socket = hand_over(&process, held);
    client.disappear();
    socket.half_close();
    kernel.run_until(SECOND * 100);
    assert_eq!(socket.is_acknowledged(), Some(false));
    client.come_back();
    assert_eq!(socket.is_acknowledged(), Some(true));
    assert!(client.facts().read_to_end.is_some());

    let (client, held) = kernel.connection(&Setup::default());
    let socket = hand_over(&process, held);
    client.disappear();
    socket.half_close();
    kernel.run_out();
    assert_eq!(socket.discard().unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(socket.discard().unwrap(), 0);
}

#[test]
fn a_killed_process_leaves_nothing_open() {
    let kernel = linux();
    let process = kernel.process(64);
    let mut backend = process.backend();
    let (door, address) = process.door(8);
    backend.add(&door, Token(1), Interest::Read).unwrap();
    let (client, held) = kernel.connection(&Setup::default());
    let sender = kernel.connect(address, ROOT).unwrap();
    sender.send(b"L", &[&held]).unwrap();
    drop(held);
    process.kill();
    assert_eq!((process.open_descriptors(), process.registrations(), kernel.in_flight()), (0, 0, 0));
    assert_eq!(client.facts().closed_by, Some(By::Kernel));
    assert!(sender.is_hung_up());
    assert_eq!(kernel.connect(address, ROOT).err().unwrap().kind(), io::ErrorKind::ConnectionRefused);
    drop((backend, door));
    assert_eq!(kernel.violations(), [""; 0]);
}
