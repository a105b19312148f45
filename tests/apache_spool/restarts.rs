// SPDX-License-Identifier: BSD-3-Clause

//! Children of Apache that come and go, and Apache itself, while responses are made or spooled.

use super::*;
use lingerd_platform::process;

/// A page that says that it has begun, by a file, and goes on when there is `go`.
const BEGIN: &str = "echo str_repeat('a', 2000000); file_put_contents(__DIR__ . '/begun', '');";

/// A client of such a page, which has begun.
fn ask_for_a_page(apache: &Apache, after: &str) -> TcpStream {
    let documents = let_pages_write(apache);
    apache.publish("page.php", paused(BEGIN, after).as_bytes());
    let client = ask(apache.address, &request("/page.php"));
    wait_until("it has begun", || documents.join("begun").exists());
    client
}

fn assert_is_the_page(client: TcpStream) {
    let body = read(client).body;
    assert!(body.len() == 2_000_001 && body.starts_with(&[b'a'; 2_000_000]) && body.ends_with(b"b"));
}

#[test]
fn a_child_that_serves_a_single_connection_spools_too() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).php().with("MaxConnectionsPerChild 1");
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    let clients = ["/much", "/much.php", "/much"].map(|path| ask(apache.address, &request(path)));
    lingerd.wait_for("spooling=3 senders=0");
    clients.into_iter().for_each(|client| assert!(read(client).body == much));
    lingerd.wait_for("closed=3 broken=0");
}

#[test]
fn a_graceful_restart_cuts_off_nothing() {
    let lingerd = lingerd(&[]);
    // The one that makes a page until it is let go on has the place of one of the next ones.
    let Some(apache) = setup(&lingerd.site.socket()).php().workers(2).start() else { return };
    let much = publish(&apache);
    let spooled = ask(apache.address, &request("/much.php"));
    lingerd.wait_for("spooling=1");
    let page = ask_for_a_page(&apache, "echo 'b';");
    apache.restart_gracefully();
    let of_new_child = ask(apache.address, &request("/much"));
    lingerd.wait_for("spooling=2");
    apache.publish("go", b"");
    lingerd.wait_for("spooling=3");
    assert!(read(spooled).body == much);
    assert!(read(of_new_child).body == much);
    assert_is_the_page(page);
}

#[test]
fn a_graceful_stop_waits_for_the_page_and_not_for_its_client() {
    let lingerd = lingerd(&[]);
    let Some(mut apache) = setup(&lingerd.site.socket()).php().start() else { return };
    publish(&apache);
    let page = ask_for_a_page(&apache, "echo 'b';");
    process::kill(apache.pid(), libc::SIGWINCH).unwrap();
    apache.publish("go", b"");
    apache.wait_for_end();
    lingerd.wait_for("spooling=1 senders=0");
    assert_is_the_page(page);
}

#[test]
fn a_child_that_is_ended_in_the_midst_of_a_page_cuts_it_off_visibly() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    let much = publish(&apache);
    let spooled = ask(apache.address, &request("/much.php"));
    lingerd.wait_for("spooling=1");
    let page = ask_for_a_page(&apache, "echo 'b';");
    apache.restart();
    assert_reset(page);
    assert!(read(spooled).body == much);
}

#[test]
fn a_child_that_is_killed_in_the_midst_of_a_page_cuts_it_off_visibly() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).php().start() else { return };
    let much = publish(&apache);
    let documents = let_pages_write(&apache);
    let begin = format!("file_put_contents(__DIR__ . '/pid', getmypid()); {BEGIN}");
    apache.publish("page.php", paused(&begin, "").as_bytes());
    let page = ask(apache.address, &request("/page.php"));
    wait_until("it has begun", || documents.join("begun").exists());
    let pid = fs::read_to_string(documents.join("pid")).unwrap().parse().unwrap();
    process::kill(pid, libc::SIGKILL).unwrap();
    assert_reset(page);
    assert!(read(ask(apache.address, &request("/much.php"))).body == much);
}

/// A thread of worker that has to write a response itself, to a client who reads nothing.
fn ask_a_thread(lingerd: &Daemon) -> Option<(Apache, TcpStream, Vec<u8>)> {
    let setup = Setup::new(Mpm::Worker).workers(2).lingerd(&lingerd.site.socket());
    let apache = setup.with("SendBufferSize 65536\nLogLevel lingerd:debug").start()?;
    let much = publish(&apache);
    lingerd.freeze();
    let client = ask(apache.address, &request("/much"));
    wait_until("a thread writes it", || !apache.errors_with("does not take a response now").is_empty());
    Some((apache, client, much))
}

#[test]
fn a_stop_and_a_restart_of_worker_cut_off_visibly_what_a_thread_writes() {
    let lingerd = lingerd(&[]);
    let Some((mut apache, client, _)) = ask_a_thread(&lingerd) else { return };
    apache.stop();
    assert_reset(client);
    lingerd.thaw();
    let Some((apache, client, much)) = ask_a_thread(&lingerd) else { return };
    apache.restart();
    assert_reset(client);
    lingerd.thaw();
    assert_spooled(&lingerd, apache.address, "/much", &much);
}

#[test]
fn a_graceful_restart_of_worker_lets_a_thread_write_to_the_end() {
    let lingerd = lingerd(&[]);
    let Some((apache, client, much)) = ask_a_thread(&lingerd) else { return };
    apache.restart_gracefully();
    assert!(read(client).body == much);
    let Some((mut apache, client, much)) = ask_a_thread(&lingerd) else { return };
    process::kill(apache.pid(), libc::SIGWINCH).unwrap();
    lingerd.thaw();
    lingerd.wait_for("spooling=1");
    apache.wait_for_end();
    assert!(read(client).body == much);
}
