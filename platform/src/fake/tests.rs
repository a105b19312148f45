// SPDX-License-Identifier: BSD-3-Clause

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

const ROOT: Peer = Peer { uid: 0, groups: Vec::new(), all_groups: true, pid: None };
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

/// A link, and who is at its other end.
fn linked(kernel: &Kernel, process: &Process) -> (Caller, Link) {
    let (door, address) = process.door(8);
    let caller = kernel.connect(address, ROOT).unwrap();
    let link = door.accept().unwrap();
    (caller, link)
}

#[test]
fn what_has_no_number_left_is_closed_and_said_to_be() {
    for (flavour, arrives) in [(Flavour::linux(), Some(2)), (Flavour::bsd(), None)] {
        let kernel = Kernel::new(1, flavour);
        let process = kernel.process(64);
        let (caller, link) = linked(&kernel, &process);
        process.set_limit(process.open_descriptors() + 2);
        let pipe = kernel.other("pipe");
        caller.send(b"L", &[&pipe; 3]).unwrap();
        let mut descriptors = Vec::new();
        let received = link.receive(&mut descriptors).unwrap();
        assert_eq!(received == fdpass::Received::Lost, arrives.is_none());
        assert_eq!(descriptors.len(), arrives.unwrap_or(0));
        assert_eq!(pipe.references(), 1 + descriptors.len());
        assert_eq!(kernel.truncated() as usize, 3 - descriptors.len());
    }
}

#[test]
fn at_the_descriptor_limit_a_caller_goes_on_waiting() {
    let kernel = linux();
    let process = kernel.process(64);
    let (door, address) = process.door(0);
    let _caller = kernel.connect(address, ROOT).unwrap();
    assert_eq!(kernel.connect(address, ROOT).err().unwrap().kind(), io::ErrorKind::WouldBlock);
    process.set_limit(process.open_descriptors());
    assert_eq!(door.accept().err().unwrap().raw_os_error(), Some(libc::EMFILE));
    process.set_limit(64);
    assert!(door.accept().is_ok());
}

#[test]
fn that_no_descriptor_is_left_says_nothing_of_who_waits() {
    let kernel = linux();
    let process = kernel.process(64);
    let (door, address) = process.door(1);
    kernel.set_faults(Faults { accept: 1.0, ..Faults::default() });
    let says = || door.accept().err().unwrap();
    assert!((0..20).all(|_| fdpass::wants_descriptor(&says())), "nobody waits");
    let _caller = kernel.connect(address, ROOT).unwrap();
    assert!((0..20).any(|_| !fdpass::wants_descriptor(&says())), "it is memory, now and then");
    kernel.set_faults(Faults { aborted: 1.0, ..Faults::default() });
    assert_eq!(says().kind(), io::ErrorKind::ConnectionAborted);
    assert_eq!(says().kind(), io::ErrorKind::WouldBlock, "the caller has gone");
}

#[test]
fn so_much_is_in_flight_and_no_more() {
    let kernel = linux();
    let process = kernel.process(1024);
    let (caller, link) = linked(&kernel, &process);
    let pipe = kernel.other("pipe");
    let queued = (0..1000).take_while(|_| caller.send(b"L", &[&pipe]).is_ok()).count();
    assert_eq!((queued, kernel.in_flight()), (278, 278));
    assert_eq!(caller.send(b"L", &[&pipe]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let mut descriptors = Vec::new();
    link.receive(&mut descriptors).unwrap();
    caller.send(b"L", &[&pipe]).unwrap();
    kernel.adapt(|flavour| flavour.in_flight = 279);
    link.receive(&mut descriptors).unwrap();
    let refused = caller.send(b"L", &[&pipe, &pipe, &pipe]).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ETOOMANYREFS));
}

#[test]
fn descriptors_may_come_with_the_end() {
    let kernel = linux();
    let process = kernel.process(64);
    let (caller, link) = linked(&kernel, &process);
    let pipe = kernel.other("pipe");
    caller.close_with(&[&pipe]);
    let mut descriptors = Vec::new();
    assert_eq!(link.receive(&mut descriptors).unwrap(), fdpass::Received::End);
    assert_eq!((descriptors.len(), pipe.references()), (1, 2));
}

#[test]
fn who_hangs_up_on_an_answer_resets_the_link() {
    let kernel = linux();
    let process = kernel.process(64);
    let (caller, mut link) = linked(&kernel, &process);
    link.tell(b"counters").unwrap();
    caller.close();
    let gone = link.receive(&mut Vec::new()).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(link.receive(&mut Vec::new()).unwrap(), fdpass::Received::End);
}

#[test]
fn a_sender_can_hand_over_its_own_end() {
    let kernel = linux();
    let process = kernel.process(64);
    let (caller, link) = linked(&kernel, &process);
    caller.send(b"L", &[&caller.end().unwrap()]).unwrap();
    caller.close();
    let mut descriptors = Vec::new();
    link.receive(&mut descriptors).unwrap();
    assert_eq!(
        link.receive(&mut descriptors).unwrap_err().kind(),
        io::ErrorKind::WouldBlock,
        "the daemon has it"
    );
    let mut slow = process.slow_close();
    slow.close(Socket::of(descriptors.pop().unwrap()).err().unwrap());
    kernel.run_out();
    assert_eq!(link.receive(&mut descriptors).unwrap(), fdpass::Received::End);
    assert_eq!(kernel.violations(), [""; 0]);
}

#[test]
fn a_link_that_is_dropped_with_something_slow_in_it_is_a_violation() {
    let kernel = linux();
    let process = kernel.process(64);
    let (caller, link) = linked(&kernel, &process);
    caller.send(b"L", &[&kernel.slow("file", SECOND)]).unwrap();
    drop(link);
    assert_eq!((kernel.violations().len(), kernel.now()), (1, SECOND));
}

#[test]
fn a_small_batch_starves_nobody() {
    let kernel = Kernel::new(1, Flavour { batch: 2, ..Flavour::linux() });
    let process = kernel.process(64);
    let mut backend = process.backend();
    let signals: Vec<_> = (0..4).map(|_| process.signals()).collect();
    let all = signals.iter().flat_map(|(s, r)| [(&s.stop, &r.stop), (&s.report, &r.report)]);
    for (n, (signal, raiser)) in all.enumerate() {
        backend.add(signal, Token(n as u64), Interest::Read).unwrap();
        raiser.raise();
    }
    let mut seen = [0; 8];
    for _ in 0..12 {
        let ready = wait(&mut backend);
        assert_eq!(ready.len(), 2);
        ready.iter().for_each(|token| seen[token.0 as usize] += 1);
    }
    assert_eq!(seen, [3; 8]);
}

#[test]
fn what_kqueue_refuses_is_ready_and_rearm_says_why() {
    let kernel = Kernel::new(1, Flavour::bsd());
    let process = kernel.process(64);
    let mut backend = process.backend();
    let (signals, _raisers) = process.signals();
    kernel.set_faults(Faults { add: 1.0, rearm: 1.0, ..Faults::default() });
    backend.add(&signals.stop, Token(1), Interest::Read).unwrap();
    assert_eq!(wait(&mut backend), [Token(1)]);
    backend.rearm(&signals.stop, Token(1), Interest::Read).unwrap_err();
    let mut ready = Vec::new();
    backend.wait(&mut ready, Some(SECOND)).unwrap();
    assert_eq!(ready, []);
    kernel.set_faults(Faults::default());
    backend.rearm(&signals.stop, Token(1), Interest::Read).unwrap();
    backend.wait(&mut ready, Some(SECOND)).unwrap();
    assert_eq!(ready, []);
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let kernel = linux();
    let process = kernel.process(64);
    let mut backend = process.backend();
    let file = process.inherit(&kernel.slow("file", SECOND));
    let refused = backend.add(&file, Token(1), Interest::Read).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    assert_eq!(backend.remove(&file).unwrap_err().kind(), io::ErrorKind::NotFound);
    process.slow_close().close(file);
}

#[test]
fn a_wait_may_return_too_early_and_may_report_what_is_not_ready() {
    let kernel = linux();
    let process = kernel.process(64);
    let mut backend = process.backend();
    let (signals, _raisers) = process.signals();
    backend.add(&signals.stop, Token(1), Interest::Read).unwrap();
    let mut ready = Vec::new();
    kernel.set_faults(Faults { early: 1.0, ..Faults::default() });
    backend.wait(&mut ready, Some(SECOND)).unwrap();
    assert!(ready.is_empty() && kernel.now() < SECOND);
    kernel.set_faults(Faults { spurious: 1.0, ..Faults::default() });
    backend.wait(&mut ready, Some(SECOND)).unwrap();
    assert_eq!(ready, [Token(1)]);
}

#[test]
fn the_clock_leaps_and_goes_back_and_the_agenda_does_not() {
    let kernel = linux();
    let clock = kernel.process(64).clock();
    kernel.set_clock(SECOND * 100);
    kernel.set_faults(Faults { back: 1.0, ..Faults::default() });
    assert!((SECOND * 99..SECOND * 100).contains(&clock.now()));
    kernel.set_faults(Faults { leap: 1.0, ..Faults::default() });
    assert!(clock.now() > SECOND * 100);
    assert_eq!(kernel.now(), Duration::ZERO);
}

#[test]
fn what_is_done_to_a_socket_without_a_connection_is_a_violation() {
    let kernel = linux();
    let process = kernel.process(64);
    for idle in [Idle::Unconnected, Idle::Connecting, Idle::Listening] {
        let socket = hand_over(&process, kernel.idle(idle));
        socket.half_close();
        socket.close();
    }
    assert_eq!(kernel.violations().len(), 6);
}

#[test]
fn to_arm_what_is_not_registered_or_is_by_another_name_is_a_violation() {
    let kernel = linux();
    let process = kernel.process(64);
    let mut backend = process.backend();
    let (signals, _raisers) = process.signals();
    backend.rearm(&signals.stop, Token(1), Interest::Read).unwrap_err();
    backend.add(&signals.stop, Token(1), Interest::Read).unwrap();
    backend.rearm(&signals.stop, Token(2), Interest::Read).unwrap();
    backend.rearm(&signals.stop, Token(1), Interest::Both).unwrap();
    assert_eq!(kernel.violations().len(), 3);
}

#[test]
fn a_second_half_close_in_fin_wait_2_is_told_and_may_end_receiving() {
    for ends in [false, true] {
        let flavour = Flavour { second_half_close_ends_receiving: ends, ..Flavour::bsd() };
        let kernel = Kernel::new(1, flavour);
        let process = kernel.process(64);
        let (client, held) = kernel.connection(&Setup::default());
        let socket = hand_over(&process, held);
        socket.half_close();
        socket.half_close();
        assert_eq!(client.facts().half_closed_in_fin_wait_2, 1);
        assert_eq!(socket.discard().is_ok(), ends);
        drop(socket);
    }
}

#[test]
fn what_others_do_happens_between_the_calls_of_a_daemon_that_takes_its_time() {
    let kernel = Kernel::new(1, Flavour { cost: Duration::from_micros(10), ..Flavour::linux() });
    let process = kernel.process(64);
    let (client, held) = kernel.connection(&Setup::default());
    let socket = hand_over(&process, held);
    let sends = client.clone();
    kernel.after(Duration::from_micros(25), move |_| sends.send(1));
    assert!(!socket.has_unread());
    assert!(!socket.has_unread());
    socket.close();
    assert_eq!(client.facts().closed_unread, 1, "it came in between");
}

#[test]
#[should_panic = "the daemon spins"]
fn a_daemon_that_never_sleeps_is_found_out() {
    let kernel = linux();
    let process = kernel.process(64);
    let mut backend = process.backend();
    let (signals, raisers) = process.signals();
    backend.add(&signals.stop, Token(1), Interest::Read).unwrap();
    raisers.stop.raise();
    loop {
        wait(&mut backend);
    }
}

#[test]
fn the_log_says_what_was_called_and_when() {
    let kernel = linux();
    kernel.keep_log();
    let process = kernel.process(64);
    let (_client, held) = kernel.connection(&Setup::default());
    let socket = hand_over(&process, held);
    kernel.run_until(SECOND);
    socket.close();
    let lines: Vec<_> = kernel.log().iter().map(Line::to_string).collect();
    assert_eq!(lines, ["0.000000 Of 3 = 1", "1.000000 Close 3 = 0"]);
}
