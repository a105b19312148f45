// SPDX-License-Identifier: BSD-3-Clause

//! A lingerd that says nothing when a response is to be handed over, as it hangs or has as much as it takes: the
//! worker writes until it does, and whoever reads has all of it.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many children serve.
const CHILDREN: usize = 4;

/// Has so many clients read `/much.php`, each on its own, and waits until `enough` of them have all; what is done
/// `meanwhile` the others may need.
fn read_many(apache: &Apache, much: &[u8], enough: usize, meanwhile: impl FnOnce()) {
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..MANY {
            scope.spawn(|| {
                assert!(read(ask(apache.address, &request("/much.php"))).body == much);
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        wait_until("those who read have all", || done.load(Ordering::Relaxed) >= enough);
        meanwhile();
    });
}

#[test]
fn a_lingerd_that_hangs_keeps_no_more_than_a_response_of_each_child() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().workers(CHILDREN).start() else { return };
    let much = publish(&apache);
    let before: Vec<_> = (0..CHILDREN).map(|_| ask(apache.address, &request("/much"))).collect();
    lingerd.wait_for(&format!("spooling={CHILDREN}"));
    lingerd.freeze();
    let slow = ask(apache.address, &request("/much.php"));
    read_many(&apache, &much, MANY - CHILDREN, || lingerd.thaw());
    lingerd.wait_for(&format!("spooling={}", CHILDREN + 1)); // and no worker has it
    before.into_iter().chain([slow]).for_each(|client| assert!(read(client).body == much));
    assert_spooled(&lingerd, apache.address, "/much.php", &much);
    lingerd.wait_for("protocol_errors=0 refused=0");
}

#[test]
fn a_lingerd_that_hangs_keeps_no_response_of_a_child_that_is_new() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).php().workers(CHILDREN).with("MaxConnectionsPerChild 1");
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    lingerd.freeze();
    let slow = ask(apache.address, &request("/much.php"));
    read_many(&apache, &much, MANY, || {});
    lingerd.thaw();
    lingerd.wait_for("spooling=1 spooled=1");
    assert!(read(slow).body == much);
    assert_spooled(&lingerd, apache.address, "/much.php", &much);
    lingerd.wait_for("protocol_errors=0 refused=0");
}

#[test]
fn a_lingerd_that_is_full_keeps_nobody_waiting() {
    for lines in ["", "MaxConnectionsPerChild 1"] {
        let lingerd = lingerd(&["-M", "1"]);
        let setup = setup(&lingerd.site.socket()).php().workers(CHILDREN).with(lines);
        let Some(apache) = setup.start() else { return };
        let much = publish(&apache);
        let slow = ask(apache.address, &request("/much.php"));
        lingerd.wait_for("spooling=1");
        read_many(&apache, &much, MANY, || {});
        let counters = lingerd.counters();
        assert!(counters["spooling"] >= 1, "the slow one is still there: {counters:?}");
        assert!(read(slow).body == much);
        lingerd.wait_for("spooling=0 stalled=0 broken=0 protocol_errors=0 refused=0");
    }
}

#[test]
fn what_a_full_lingerd_has_no_room_for_it_takes_when_there_is() {
    let lingerd = lingerd(&["-M", "1"]);
    let setup = setup(&lingerd.site.socket()).php().with("MaxConnectionsPerChild 1");
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    let first = ask(apache.address, &request("/much.php"));
    lingerd.wait_for("spooling=1 senders=0");
    let refused = || apache.errors_with("does not take a response now").len();
    let before = refused();
    let second = ask(apache.address, &request("/much.php"));
    wait_until("its worker has to write it", || refused() > before);
    lingerd.wait_for("spooled=1 senders=1");
    assert!(read(first).body == much);
    lingerd.wait_for("spooling=1 spooled=2 senders=0");
    assert!(read(second).body == much);
}

#[test]
fn threads_that_wait_for_the_same_word_get_one_each() {
    let lingerd = lingerd(&["-M", "1"]);
    let setup = Setup::new(Mpm::Worker).workers(MANY).lingerd(&lingerd.site.socket());
    let Some(apache) = setup.with("SendBufferSize 65536\nLogLevel lingerd:debug").tls().start() else {
        return;
    };
    let much = publish(&apache);
    let clients: Vec<_> = (0..MANY).map(|_| ask_tls(apache.other, "/much")).collect();
    lingerd.wait_for("spooling=1 senders=1");
    wait_until("all others have to write themselves", || {
        apache.errors_with("does not take a response now").len() >= MANY - 1
    });
    // Each that is read to its end makes room for another one.
    thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| assert_all_over_tls(client, &much));
        }
    });
    lingerd.wait_for("spooling=0 stalled=0 broken=0 protocol_errors=0 refused=0");
    let last = ask_tls(apache.other, "/much");
    lingerd.wait_for("spooling=1");
    assert_all_over_tls(last, &much);
}

/// The link of an earlier lingerd, with a word on it that nobody has read.
#[test]
fn a_word_of_a_lingerd_that_has_ended_costs_no_response() {
    let site = Site::new();
    let first = site.start(&["-m", "0666"]);
    let Some(apache) = setup(&site.socket()).start() else { return };
    let much = publish(&apache);
    let client = ask(apache.address, &request("/much"));
    first.wait_for("spooling=1");
    assert!(read(client).body == much);
    first.wait_for("spooling=0");
    first.kill();
    let second = site.start(&["-m", "0666"]);
    assert_spooled(&second, apache.address, "/much", &much);
    second.wait_for("senders=1 protocol_errors=0");
}

/// Writes of a response all that the client does not take over from `lingerd`, which is away by then.
fn keep_and_kill(apache: &Apache, lingerd: Daemon) -> TcpStream {
    apache.publish("page.php", paused("echo str_repeat('a', 2000000);", "echo 'b';").as_bytes());
    let client = ask(apache.address, &request("/page.php"));
    wait_until("it is kept", || lingerd.counters()["senders"] == 1);
    lingerd.kill();
    apache.publish("go", b"");
    client
}

/// As Apache closes it when it has lingered, with what the client has still to read in the kernel.
#[test]
fn what_the_worker_has_written_itself_ends_with_an_end() {
    let site = Site::new();
    let Some(apache) = setup(&site.socket()).php().start() else { return };
    publish(&apache);
    let client = keep_and_kill(&apache, site.start(&["-m", "0666"]));
    let mut received = Vec::new();
    while apache.access_log().is_empty() {
        let mut piece = [0; 10_000];
        let bytes = tcp::read_some(&client, &mut piece).unwrap();
        received.extend(&piece[..bytes]);
        if bytes == 0 {
            break; // who reads faster than it logs has nothing in the kernel
        }
    }
    wait_until("it is logged", || apache.access_log().len() == 1);
    let log = apache.access_log();
    assert!(!log[0].starts_with('X'), "{log:?}");
    // The worker is free when it has closed the first.
    assert_eq!(read(ask(apache.address, &request("/small"))).body, b"hello\n");
    received.extend(read_rest(client));
    assert!(received.ends_with(b"ab") && received.iter().filter(|&&byte| byte == b'a').count() >= 2_000_000);
}

#[test]
fn what_the_worker_has_written_itself_leaves_no_descriptor_open() {
    if !cfg!(target_os = "linux") {
        return println!("what is open is listed differently elsewhere");
    }
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    let much = publish(&apache);
    apache.publish("open.php", b"<?php echo count(scandir('/proc/self/fd'));");
    lingerd.freeze();
    let mut open = (0..3).map(|_| {
        assert!(read(ask(apache.address, &request("/much.php"))).body == much);
        read(ask(apache.address, &request("/open.php"))).body
    });
    let first = open.next().unwrap();
    assert!(open.all(|next| next == first), "one more each time");
}

/// Of files there is nothing to be kept.
#[test]
fn where_another_one_has_all_that_may_be_kept_a_file_keeps_no_worker() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).php().workers(2).with("LingerdSpoolMax 64000000 500000");
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    let page = "<?php $x = str_repeat('x', 300000); echo $x; touch(__DIR__ . '/kept'); echo $x; echo $x;";
    apache.publish("page.php", page.as_bytes());
    let documents = let_pages_write(&apache);
    let hoarder = ask(apache.address, &request("/page.php"));
    wait_until("it is kept", || documents.join("kept").exists());
    assert_spooled(&lingerd, apache.address, "/much", &much);
    assert_eq!(read(hoarder).body, [b'x'; 900_000]);
}
