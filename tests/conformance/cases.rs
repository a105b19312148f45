// SPDX-License-Identifier: BSD-3-Clause

//! What a sender is put through. Each case says what a sender does wrong that fails it, and which section of
//! lingerd-protocol(7) has the rule; it waits for what must come, in the order of events, and measures no time: only
//! how often something may be done in a second is held against a clock, which a slow machine can but make milder.

use crate::fake::{Fake, full_door};
use crate::program::{
    Program, Running, Stop, Until, ask, check_response, exchange_tls, not_reset, read_response,
};
use lingerd_platform::process;
use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::panic::{self, AssertUnwindSafe};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::apache::make_certificate;
use support::daemon::{Counters, Daemon};
use support::http::record;
use support::tcp;

/// One of them.
pub struct Case {
    /// Its name, a row of the table.
    pub name: &'static str,
    /// What is done, and what has to come of it.
    pub what: &'static str,
    /// What a sender that fails does wrong.
    pub wrong: &'static str,
    /// The section of lingerd-protocol(7) that has the rule.
    pub section: &'static str,
    run: fn(&Program) -> Result<(), Stop>,
}

/// All of them, in the order of the table.
pub const CASES: [Case; 25] = [
    Case {
        name: "there",
        what: "20 clients hold their socket, and linger in lingerd at once",
        wrong: "it hands nothing over, or waits for its client itself although lingerd is there",
        section: "WHAT A SENDER DOES",
        run: there,
    },
    Case {
        name: "late",
        what: "who reads slowly and goes on sending has all",
        wrong: "it closes a connection that it has not handed over, or resets it after that",
        section: "WHAT A SENDER DOES",
        run: late,
    },
    Case {
        name: "unread",
        what: "so has who has sent 300 kB that nobody reads",
        wrong: "it closes with something unread, which resets the connection",
        section: "WHAT A SENDER DOES",
        run: unread,
    },
    Case {
        name: "message",
        what: "one L with one descriptor, the client's; one link for all",
        wrong: "what it sends is not the message, or it opens a link for each connection",
        section: "THE MESSAGE",
        run: message,
    },
    Case {
        name: "copy",
        what: "its own copy is closed, and nothing is shut down by that",
        wrong: "it leaves its copy open, so that the connection never ends, or uses shutdown(2) after the hand-off",
        section: "THE MESSAGE",
        run: copy,
    },
    Case {
        name: "exec",
        what: "no program that it executes has the link",
        wrong: "the link is not close-on-exec",
        section: "WHAT A SENDER DOES",
        run: exec,
    },
    Case {
        name: "gone",
        what: "clients that close or reset at any time do no harm",
        wrong: "a client that has gone ends it, or has it hand over what is none",
        section: "WHAT A SENDER DOES",
        run: gone,
    },
    Case {
        name: "many",
        what: "after 1,000 hand-offs it has no more descriptors than before",
        wrong: "it leaks a descriptor, or leaves a process that has ended unwaited for",
        section: "THE MESSAGE",
        run: many,
    },
    Case {
        name: "away",
        what: "without lingerd each response is whole; one that comes is found",
        wrong: "without lingerd it closes, or half-closes nothing, or never looks for lingerd again",
        section: "WHAT A SENDER DOES",
        run: away,
    },
    Case {
        name: "door",
        what: "so it is where connect(2) would wait",
        wrong: "it waits in connect(2)",
        section: "WHAT A SENDER DOES",
        run: door,
    },
    Case {
        name: "hung",
        what: "so it is where nobody reads the link; that stays the same one",
        wrong: "it waits in sendmsg(2), or closes a link that is merely full",
        section: "WHAT A SENDER DOES",
        run: hung,
    },
    Case {
        name: "frozen",
        what: "what a stopped lingerd has queued is not lost when it goes on",
        wrong: "it gives up on a lingerd that was only slow, or loses what was queued",
        section: "WHAT A SENDER DOES",
        run: frozen,
    },
    Case {
        name: "hangs-up",
        what: "a lingerd that hangs up at once harms nobody",
        wrong: "it dies of SIGPIPE, or takes for handed over what was not",
        section: "WHAT A SENDER DOES",
        run: hangs_up,
    },
    Case {
        name: "reconnects",
        what: "it connects once a second at most",
        wrong: "it connects for each connection while lingerd is of no use",
        section: "WHAT A SENDER DOES",
        run: reconnects,
    },
    Case {
        name: "killed",
        what: "lingerd is killed under load, and another one is found",
        wrong: "it loses a response with lingerd, or keeps to a link that is dead",
        section: "WHAT A SENDER DOES",
        run: killed,
    },
    Case {
        name: "restarted",
        what: "lingerd -r is not noticed; one that is started anew is found",
        wrong: "it does not find a lingerd that was started anew",
        section: "WHEN LINGERD ENDS",
        run: restarted,
    },
    Case {
        name: "descriptors",
        what: "where too many are on their way it lingers, and keeps the link",
        wrong: "it takes ETOOMANYREFS for the end of its link, or for success",
        section: "WHAT A SENDER DOES",
        run: descriptors,
    },
    Case {
        name: "fork",
        what: "two processes hand over, and find a lingerd that is started anew",
        wrong: "a child does not hand over, or what it does to a link of its parent's harms others",
        section: "THE SOCKET",
        run: fork,
    },
    Case {
        name: "threads",
        what: "so do two threads, whatever the other one does",
        wrong: "threads mix up what they share, or one waits for the other",
        section: "THE SOCKET",
        run: threads,
    },
    Case {
        name: "tls",
        what: "TLS: the closing alert comes before the hand-off",
        wrong: "it says the end of TLS after the hand-off, or not at all: a response without it may have been cut off",
        section: "WHAT A SENDER DOES",
        run: tls,
    },
    Case {
        name: "seconds",
        what: "a shorter time arrives with the socket",
        wrong: "SO_LINGER is not on with the number of seconds",
        section: "Less time",
        run: seconds,
    },
    Case {
        name: "spool",
        what: "10 clients that do not read: lingerd writes for all at once",
        wrong: "it writes itself what lingerd would, or what is handed over is not what was left",
        section: "A RESPONSE THAT IS STILL TO BE WRITTEN",
        run: spool,
    },
    Case {
        name: "spool-silent",
        what: "without a G it writes itself",
        wrong: "it waits for a G for ever, or sends what nobody has allowed",
        section: "A RESPONSE THAT IS STILL TO BE WRITTEN",
        run: spool_silent,
    },
    Case {
        name: "spool-killed",
        what: "what a lingerd that is killed has not written looks cut off",
        wrong: "SO_LINGER is not on with 0 seconds, so that the client takes for the end what is none",
        section: "A RESPONSE THAT IS STILL TO BE WRITTEN",
        run: spool_killed,
    },
    Case {
        name: "spool-fork",
        what: "two processes do not share a link to the second socket",
        wrong: "a child uses its parent's link, or a G that was its parent's",
        section: "A RESPONSE THAT IS STILL TO BE WRITTEN",
        run: spool_fork,
    },
];

impl Case {
    /// What becomes of a program in it.
    pub fn run(&self, program: &Program) -> Result<(), Stop> {
        (self.run)(program)
    }
}

/// More messages than are on their way on one link, on any system.
const MORE_THAN_A_LINK_HOLDS: usize = 300;

/// How often to look whether something has happened.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Enough for two workers to have shared them out.
const ROUNDS: usize = 10;

/// A lingerd, to which everybody may hand over.
fn lingerd(program: &Program) -> Daemon {
    program.site.start(&["-m", "0666"])
}

/// One that takes over from the one before.
fn successor(program: &Program) -> Daemon {
    program.site.start(&["-m", "0666", "-r"])
}

fn wait_for(program: &Program, daemon: &Daemon, expected: &str) -> Result<(), String> {
    let expected = Counters::from_words(expected);
    let look = || match daemon.counters() {
        all if expected.names().all(|name| all[name] == expected[name]) => Ok(()),
        all => Err(format!("it counts {all:?}")),
    };
    program.eventually(&format!("lingerd has what is expected ({})", words(&expected)), look)
}

fn words(counters: &Counters) -> String {
    let words: Vec<_> = counters.names().map(|name| format!("{name}={}", counters[name])).collect();
    words.join(" ")
}

/// Waits until a lingerd that has just come has been found, which takes a second.
fn found(program: &Program, running: &Running, daemon: &Daemon) -> Result<(), String> {
    let before = daemon.counters()["handed_over"];
    program.eventually("lingerd is found", || {
        let _held = running.exchange(1, Until::End)?;
        let now = daemon.counters()["handed_over"];
        if now > before { Ok(()) } else { Err("nothing is handed over".to_owned()) }
    })?;
    wait_for(program, daemon, "lingering=0")
}

/// That nothing came to lingerd that does not belong.
fn only_what_belongs(program: &Program, daemon: &Daemon) -> Result<(), String> {
    wait_for(program, daemon, "lingering=0 spooling=0 rejected=0 protocol_errors=0 broken=0")
}

/// That it serves whoever comes, and has not ended.
fn serves_by_itself(running: &Running, until: Until) -> Result<(), Stop> {
    running.leave(20_000)?;
    running.read_slowly(200_000, until)?;
    // More than one recv(2) of most servers, and not more than gunicorn drains.
    running.read_unread(200_000, 70_000, until)?;
    running.still_runs()
}

fn there(program: &Program) -> Result<(), Stop> {
    let daemon = lingerd(program);
    let running = program.start(&[])?;
    found(program, &running, &daemon)?;
    let held: Vec<_> = (0..20).map(|_| running.exchange(20_000, Until::End)).collect::<Result<_, _>>()?;
    wait_for(program, &daemon, "lingering=20")?;
    drop(held);
    only_what_belongs(program, &daemon)?;
    running.still_runs()
}

fn late(program: &Program) -> Result<(), Stop> {
    let daemon = lingerd(program);
    let running = program.start(&[])?;
    found(program, &running, &daemon)?;
    (0..3).try_for_each(|_| running.read_slowly(200_000, Until::End))?;
    only_what_belongs(program, &daemon)?;
    running.still_runs()
}

fn unread(program: &Program) -> Result<(), Stop> {
    let daemon = lingerd(program);
    let running = program.start(&[])?;
    found(program, &running, &daemon)?;
    (0..3).try_for_each(|_| running.read_unread(200_000, 300_000, Until::End))?;
    only_what_belongs(program, &daemon)?;
    running.still_runs()
}

fn message(program: &Program) -> Result<(), Stop> {
    let fake = Fake::at_first(&program.site);
    let running = program.start(&[])?;
    let link = fake.wait_for(program)?;
    let mut held = Vec::new();
    for _ in 0..20 {
        let client = running.exchange(20_000, Until::Whole)?;
        let handed_over = link.wait_for(client.local_addr().unwrap(), program)?;
        if let Some(time) = SockRef::from(&handed_over).linger().map_err(|e| e.to_string())? {
            return Err(format!("SO_LINGER is on, with {time:?}, which nobody has asked for").into());
        }
        held.push((client, handed_over));
    }
    if fake.next().is_some() {
        return Err("there is a second link of one process".to_owned().into());
    }
    running.still_runs()
}

fn copy(program: &Program) -> Result<(), Stop> {
    let fake = Fake::at_first(&program.site);
    let running = program.start(&[])?;
    let link = fake.wait_for(program)?;
    let mut client = running.exchange(20_000, Until::Whole)?;
    let handed_over = link.wait_for(client.local_addr().unwrap(), program)?;
    client.write_all(b"l").map_err(|e| format!("who holds its socket cannot send: {e}"))?;
    running.leave(1)?; // whoever serves one after the other has done with the first
    handed_over.set_nonblocking(true).unwrap();
    let read = |what: &str| match (&handed_over).read(&mut [0]) {
        Ok(1) if what == "a byte" => Ok(()),
        Err(e) if what == "nothing" && e.kind() == ErrorKind::WouldBlock => Ok(()),
        Ok(0) => Err("the connection was shut down for reading".to_owned()),
        other => Err(format!("{other:?}, where the client has sent {what}: the sender still reads it")),
    };
    read("a byte")?;
    read("nothing")?;
    drop(handed_over);
    program.eventually("the connection is closed by all who had it", || match client.write(b"l") {
        Ok(_) => Err("somebody still has it".to_owned()),
        Err(_) => Ok(()),
    })?;
    running.still_runs()
}

fn exec(program: &Program) -> Result<(), Stop> {
    needs_proc()?;
    let running = program.start(&[])?;
    let before = running.unix_sockets();
    let daemon = lingerd(program);
    found(program, &running, &daemon)?;
    let link: Vec<_> = running.unix_sockets().difference(&before).copied().collect();
    if link.is_empty() {
        return Err("no process has a link".to_owned().into());
    }
    if link.iter().any(|&(_, is_lost_by_exec)| !is_lost_by_exec) {
        return Err("the link is not close-on-exec".to_owned().into());
    }
    running.still_runs()
}

fn needs_proc() -> Result<(), Stop> {
    let there = cfg!(target_os = "linux") && std::path::Path::new("/proc/self/fdinfo").exists();
    if there { Ok(()) } else { Err(Stop::NotHere("it takes Linux' /proc to see it".to_owned())) }
}

fn gone(program: &Program) -> Result<(), Stop> {
    let daemon = lingerd(program);
    let running = program.start(&[])?;
    found(program, &running, &daemon)?;
    for _ in 0..20 {
        drop(running.connect()?);
        tcp::reset(running.connect()?);
        let mut resets = running.connect()?;
        ask(&mut resets, 20_000)?;
        tcp::reset(resets);
        let mut leaves = running.connect_slow()?;
        ask(&mut leaves, 200_000)?;
        let _ = leaves.read(&mut [0; 1000]);
        drop(leaves);
        // Who has nothing more to say, and reads to the end.
        let mut silent = running.connect()?;
        ask(&mut silent, 20_000)?;
        silent.shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
        read_response(&silent, 20_000, Until::End, || ())?;
    }
    let held = running.exchange(20_000, Until::End)?;
    wait_for(program, &daemon, "lingering=1")?;
    drop(held);
    only_what_belongs(program, &daemon)?;
    running.still_runs()
}

fn many(program: &Program) -> Result<(), Stop> {
    needs_proc()?;
    let daemon = lingerd(program);
    let running = program.start(&[])?;
    found(program, &running, &daemon)?;
    (0..50).try_for_each(|_| running.leave(1))?;
    let before = running.descriptors();
    (0..1_000).try_for_each(|_| running.leave(1))?;
    // What a language closes when it gets round to it, and what a server keeps in stock.
    let slack = 10;
    program.eventually("it has no more descriptors than before", || match running.descriptors() {
        now if now <= before + slack => Ok(()),
        now => Err(format!("{now} are open, {before} were")),
    })?;
    only_what_belongs(program, &daemon)?;
    running.still_runs()
}

fn away(program: &Program) -> Result<(), Stop> {
    let running = program.start(&[])?;
    serves_by_itself(&running, Until::End)?;
    half_closes(&running)?;
    let daemon = lingerd(program);
    found(program, &running, &daemon)?;
    let held = running.exchange(20_000, Until::End)?;
    wait_for(program, &daemon, "lingering=1")?;
    drop(held);
    only_what_belongs(program, &daemon)?;
    running.still_runs()
}

/// That the end of a response is a half-close: after a close what the client sends is answered with a reset. Whoever
/// gives up on a client that is silent may do so if this one is slow, but not each time.
fn half_closes(running: &Running) -> Result<(), String> {
    let goes_on = |mut client: TcpStream| (0..5).all(|_| client.write_all(b"l").is_ok());
    for _ in 0..5 {
        if goes_on(running.exchange(20_000, Until::End)?) {
            return Ok(());
        }
    }
    Err("the end that a client sees is a close(2), and no half-close".to_owned())
}

fn door(program: &Program) -> Result<(), Stop> {
    let door = full_door(&program.site);
    let running = program.start(&[])?;
    serves_by_itself(&running, Until::End)?;
    drop(door);
    let daemon = lingerd(program);
    found(program, &running, &daemon)?;
    running.still_runs()
}

fn hung(program: &Program) -> Result<(), Stop> {
    let fake = Fake::at_first(&program.site);
    let running = program.start(&[])?;
    keeps_a_full_link(program, &running, &fake, MORE_THAN_A_LINK_HOLDS)?;
    running.still_runs()
}

/// That it serves while nobody reads its link, on which there is no room for so many, and uses it when there is. Returns
/// how many there were.
fn keeps_a_full_link(
    program: &Program,
    running: &Running,
    fake: &Fake,
    too_many: usize,
) -> Result<usize, Stop> {
    let link = fake.wait_for(program)?;
    (0..too_many).try_for_each(|_| running.leave(1))?;
    serves_by_itself(running, Until::Whole)?;
    // Who thinks that the link is of no use has connected anew by then.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1_500) {
        running.leave(1)?;
    }
    let queued = link.read_all()?;
    if queued < too_many / 10 {
        return Err(format!("{queued} were handed over before there was no room").into());
    }
    let client = running.exchange(1, Until::Whole)?;
    link.wait_for(client.local_addr().unwrap(), program)?;
    if fake.next().is_some() {
        return Err("it has connected anew, although its link was only full".to_owned().into());
    }
    Ok(queued)
}

fn frozen(program: &Program) -> Result<(), Stop> {
    let daemon = lingerd(program);
    let running = program.start(&[])?;
    found(program, &running, &daemon)?;
    let before = daemon.counters();
    daemon.freeze();
    let served = (0..MORE_THAN_A_LINK_HOLDS).try_for_each(|_| running.leave(1));
    daemon.thaw();
    served?;
    found(program, &running, &daemon)?;
    let after = daemon.counters();
    if after["handed_over"] < before["handed_over"] + MORE_THAN_A_LINK_HOLDS as u64 / 10 {
        return Err("hardly anything was queued for it".to_owned().into());
    }
    if after["senders"] != before["senders"] {
        return Err(format!("there are {} links, and were {}", after["senders"], before["senders"]).into());
    }
    only_what_belongs(program, &daemon)?;
    running.still_runs()
}

fn hangs_up(program: &Program) -> Result<(), Stop> {
    let fake = Fake::at_first(&program.site);
    fake.hanging_up(|_| {
        let running = program.start(&[])?;
        for _ in 0..3 {
            (0..10).try_for_each(|_| running.leave(1))?;
            serves_by_itself(&running, Until::End)?;
        }
        Ok::<_, Stop>(())
    })?;
    drop(fake);
    // And one that has taken a message first.
    let fake = Fake::at_first(&program.site);
    let running = program.start(&[])?;
    for _ in 0..2 {
        let link = program.eventually("it connects to lingerd", || {
            running.leave(1)?;
            fake.next().ok_or_else(|| "it does not".to_owned())
        })?;
        let client = running.exchange(1, Until::Whole)?;
        link.wait_for(client.local_addr().unwrap(), program)?;
        drop((client, link));
        (0..3).try_for_each(|_| running.read_slowly(200_000, Until::Whole))?;
    }
    running.still_runs()
}

fn reconnects(program: &Program) -> Result<(), Stop> {
    let fake = Fake::at_first(&program.site);
    fake.hanging_up(|links| {
        let running = program.start(&[])?;
        links.store(0, Ordering::Relaxed);
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(2_500) {
            running.leave(1)?;
        }
        // Whole seconds by the clock on the wall are as good as any.
        let allowed = start.elapsed().as_secs() as usize + 2;
        let links = links.load(Ordering::Relaxed);
        if links > allowed {
            return Err(format!("{links} times in {:.1} s", start.elapsed().as_secs_f32()).into());
        }
        if links == 0 {
            return Err("it never tries".to_owned().into());
        }
        running.still_runs()
    })
}

fn killed(program: &Program) -> Result<(), Stop> {
    let daemon = lingerd(program);
    let running = program.start(&[])?;
    found(program, &running, &daemon)?;
    let done = AtomicBool::new(false);
    let client = || {
        while !done.load(Ordering::Relaxed) {
            // Who reads slowly and sends late is cut off by a lingerd that is killed, whatever the sender is.
            running.leave(20_000)?;
        }
        Ok::<_, String>(())
    };
    let reigns = |mut daemon: Daemon| {
        for _ in 0..3 {
            let before = daemon.counters()["handed_over"];
            program.eventually("what the load is about is handed over", || {
                match daemon.counters()["handed_over"] - before {
                    more if more > 20 => Ok(()),
                    more => Err(format!("{more} were")),
                }
            })?;
            daemon.kill();
            daemon = lingerd(program);
        }
        Ok(daemon)
    };
    let daemon = thread::scope(|scope| {
        let clients: Vec<_> = (0..3).map(|_| scope.spawn(client)).collect();
        let last = reigns(daemon);
        done.store(true, Ordering::Relaxed);
        clients.into_iter().try_for_each(|client| client.join().unwrap())?;
        last
    });
    let daemon = daemon.map_err(|why: String| Stop::from(why))?;
    found(program, &running, &daemon)?;
    only_what_belongs(program, &daemon)?;
    running.still_runs()
}

fn restarted(program: &Program) -> Result<(), Stop> {
    let mut old = lingerd(program);
    let running = program.start(&[])?;
    found(program, &running, &old)?;
    let before = running.exchange(20_000, Until::End)?;
    wait_for(program, &old, "lingering=1")?;
    let new = successor(program);
    old.wait_for_end();
    let after = running.exchange(20_000, Until::End)?;
    wait_for(program, &new, "lingering=2")?;
    drop((before, after));
    only_what_belongs(program, &new)?;
    new.signal(libc::SIGTERM);
    new.wait_for_good_end();
    serves_by_itself(&running, Until::End)?;
    let anew = lingerd(program);
    found(program, &running, &anew)?;
    running.still_runs()
}

/// Programs that this user could not start have no more in flight than this.
const FEW_DESCRIPTORS: usize = 100;

fn descriptors(program: &Program) -> Result<(), Stop> {
    if cfg!(not(target_os = "linux")) {
        return Err(Stop::NotHere("the system has no such limit".to_owned()));
    }
    let limit = format!("ulimit -n {FEW_DESCRIPTORS}; exec \"$0\" \"$@\"");
    // Root may have as many as it likes, and what others have on their way counts, too: as a user whom nobody else is,
    // and to whom all files are open as they are to root.
    let user = format!("--reuid={}", fastrand::u32(61_000..65_000));
    let setpriv = ["setpriv", &user, "--inh-caps=-all,+dac_override", "--ambient-caps=+dac_override"];
    let privileged = process::effective_uid() == 0;
    let works = |command: &[&str]| {
        Command::new(command[0]).args(&command[1..]).arg("true").status().is_ok_and(|it| it.success())
    };
    if privileged && !works(&setpriv) {
        return Err(Stop::NotHere("there is no setpriv(1) that can take privileges from root".to_owned()));
    }
    let without: &[&str] = if privileged { &setpriv } else { &[] };
    let wrapper = [&["sh", "-c", &limit], without].concat();
    let fake = Fake::at_first(&program.site);
    let running = program.start_by(&wrapper, &[], |running| running.leave(1))?;
    if keeps_a_full_link(program, &running, &fake, 2 * FEW_DESCRIPTORS)? >= 2 * FEW_DESCRIPTORS {
        return Err(Stop::NotHere("the system lets more descriptors be on their way".to_owned()));
    }
    running.still_runs()
}

/// Two clients that are served by two workers: while the first says nothing, somebody serves the second.
fn both_serve(running: &Running, size: usize) -> Result<(TcpStream, TcpStream), String> {
    let mut first = running.connect()?;
    let second = running
        .exchange(size, Until::End)
        .map_err(|why| format!("while one worker waits for a request: {why}"))?;
    ask(&mut first, size)?;
    read_response(&first, size, Until::End, || ())?;
    Ok((first, second))
}

/// That two workers hand over, and find a lingerd that is started anew.
fn two_workers(program: &Program, running: &Running, daemon: Daemon) -> Result<(), Stop> {
    let both_find = |daemon: &Daemon| {
        program.eventually("both workers hand over", || {
            let before = daemon.counters()["handed_over"];
            let _held = both_serve(running, 1)?;
            let look = || match daemon.counters()["handed_over"] - before {
                2.. => Ok(()), // more, if some from before have just come
                more => Err(format!("{more} of 2 came")),
            };
            // What was handed over is there in a moment.
            look().or_else(|_| {
                thread::sleep(Duration::from_millis(100));
                look()
            })
        })?;
        wait_for(program, daemon, "lingering=0")
    };
    both_find(&daemon)?;
    let held: Vec<_> = (0..ROUNDS).map(|_| both_serve(running, 20_000)).collect::<Result<_, _>>()?;
    wait_for(program, &daemon, &format!("lingering={}", 2 * ROUNDS))?;
    drop(held);
    only_what_belongs(program, &daemon)?;
    daemon.kill();
    serves_by_itself(running, Until::End)?;
    let daemon = lingerd(program);
    both_find(&daemon)?;
    // And both at once.
    thread::scope(|scope| {
        let stay = || (0..50).map(|_| running.stay(20_000)).collect::<Result<Vec<_>, _>>();
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(stay)).collect();
        // What was closed in the place of another one is reset by now.
        clients.into_iter().try_for_each(|client| client.join().unwrap()?.iter().try_for_each(not_reset))
    })?;
    only_what_belongs(program, &daemon)?;
    running.still_runs()
}

fn fork(program: &Program) -> Result<(), Stop> {
    let daemon = lingerd(program);
    let running = program.start(&[("PROCESSES", "2")])?;
    two_workers(program, &running, daemon)
}

fn threads(program: &Program) -> Result<(), Stop> {
    let daemon = lingerd(program);
    let running = program.start(&[("THREADS", "2")])?;
    two_workers(program, &running, daemon)
}

/// Has a sender that has sent a message stand still for a moment, so that what it does too late is too late.
const AFTER_EACH_MESSAGE: [&str; 9] = [
    "strace",
    "-f",
    "-qq",
    "-o",
    "/dev/null",
    "-e",
    "trace=sendmsg",
    "-e",
    "inject=sendmsg:delay_exit=50000",
];

fn tls(program: &Program) -> Result<(), Stop> {
    make_certificate(&program.site).map_err(Stop::NotHere)?;
    let [certificate, key] =
        ["cert.pem", "key.pem"].map(|name| program.site.path(name).display().to_string());
    let strace = &AFTER_EACH_MESSAGE;
    let can_delay =
        Command::new(strace[0]).args(&strace[1..]).arg("true").status().is_ok_and(|it| it.success());
    let daemon = lingerd(program);
    let environment = [("TLS_CERT", &certificate[..]), ("TLS_KEY", &key)];
    let wrapper: &[&str] = if can_delay { strace } else { &[] };
    let running = program.start_by(wrapper, &environment, |running| running.connect().map(drop))?;
    let exchange = |options: &[&str]| {
        let tls = panic::catch_unwind(AssertUnwindSafe(|| exchange_tls(running.address, options, 20_000)));
        let tls = tls.map_err(|_| "a response over TLS was cut short".to_owned())?;
        check_response(&[tls.held.head.as_bytes(), b"\r\n\r\n", &tls.held.body].concat(), 20_000)?;
        Ok::<_, String>(tls)
    };
    program.eventually("lingerd is found", || {
        let _held = exchange(&["-tls1_2"])?;
        if daemon.counters()["handed_over"] > 0 { Ok(()) } else { Err("nothing is handed over".to_owned()) }
    })?;
    wait_for(program, &daemon, "lingering=0")?;
    let mut held = Vec::new();
    for _ in 0..3 {
        let tls = exchange(&["-tls1_2"])?;
        if tls.records.last() != Some(&record::ALERT) {
            return Err("the response ends without close_notify".to_owned().into());
        }
        held.push(tls);
    }
    held.push(exchange(&[])?);
    wait_for(program, &daemon, "lingering=4")?;
    drop(held);
    only_what_belongs(program, &daemon)?;
    running.still_runs()
}

fn seconds(program: &Program) -> Result<(), Stop> {
    let fake = Fake::at_first(&program.site);
    let running = program.start(&[("LINGER_SECONDS", "2")])?;
    let link = fake.wait_for(program)?;
    let client = running.exchange(20_000, Until::Whole)?;
    let handed_over = link.wait_for(client.local_addr().unwrap(), program)?;
    let time = SockRef::from(&handed_over).linger().map_err(|e| e.to_string())?;
    if time != Some(Duration::from_secs(2)) {
        return Err(format!("SO_LINGER has {time:?}, and not 2 s").into());
    }
    drop((fake, link, client, handed_over));
    serves_by_itself(&running, Until::End)
}

/// The largest response, which no kernel takes as a whole for a client with little room.
const BIG: usize = 5_000_000;

/// A client that has asked for it, and reads nothing yet.
fn does_not_read(running: &Running) -> Result<TcpStream, String> {
    let mut client = running.connect_slow()?;
    ask(&mut client, BIG)?;
    Ok(client)
}

fn spool(program: &Program) -> Result<(), Stop> {
    let daemon = lingerd(program);
    let running = program.start(&[("SPOOL", "1")])?;
    let clients: Vec<_> = (0..10).map(|_| does_not_read(&running)).collect::<Result<_, _>>()?;
    wait_for(program, &daemon, "spooling=10")?;
    running.leave(20_000)?;
    clients.iter().try_for_each(|client| read_response(client, BIG, Until::End, || ()))?;
    wait_for(program, &daemon, "spooling=0 lingering=10 spooled=10")?;
    drop(clients);
    only_what_belongs(program, &daemon)?;
    running.still_runs()
}

fn spool_silent(program: &Program) -> Result<(), Stop> {
    let _first = Fake::at_first(&program.site);
    let _second = Fake::at_second(&program.site);
    let running = program.start(&[("SPOOL", "1")])?;
    (0..3).try_for_each(|_| {
        let client = does_not_read(&running)?;
        read_response(&client, BIG, Until::End, || ())
    })?;
    serves_by_itself(&running, Until::End)
}

/// That a client which has not read yet sees a reset, and no end.
fn is_cut_off(mut client: TcpStream) -> Result<(), String> {
    let mut all = Vec::new();
    match client.read_to_end(&mut all) {
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => Err(format!("after {} bytes: {other:?}, and no reset", all.len())),
    }
}

fn spool_killed(program: &Program) -> Result<(), Stop> {
    let daemon = lingerd(program);
    let running = program.start(&[("SPOOL", "1")])?;
    let client = does_not_read(&running)?;
    wait_for(program, &daemon, "spooling=1")?;
    daemon.kill();
    is_cut_off(client)?;
    running.leave(20_000)?;
    let daemon = lingerd(program);
    program.eventually("lingerd is found", || {
        let client = does_not_read(&running)?;
        read_response(&client, BIG, Until::End, || ())?;
        if daemon.counters()["spooled"] > 0 { Ok(()) } else { Err("nothing is spooled".to_owned()) }
    })?;
    only_what_belongs(program, &daemon)?;
    running.still_runs()?;
    drop(running);
    daemon.kill();
    what_was_queued_is_cut_off(program)
}

/// That so is what was in the queue of a lingerd that is killed, which it has not seen.
fn what_was_queued_is_cut_off(program: &Program) -> Result<(), Stop> {
    let (_first, second) = (Fake::at_first(&program.site), Fake::at_second(&program.site));
    let running = program.start(&[("SPOOL", "1")])?;
    let mut links = Vec::new();
    program.eventually("what is left is handed over", || {
        let client = does_not_read(&running)?;
        thread::scope(|scope| {
            let read = scope.spawn(|| is_cut_off(client));
            while !read.is_finished() {
                if let Some(link) = second.next() {
                    link.allow();
                    links.push(link);
                }
                if links.iter().any(|link| link.has_something(LOOK_AGAIN)) {
                    links.clear(); // and with it the message
                    return Ok(read.join().unwrap());
                }
                thread::sleep(LOOK_AGAIN);
            }
            Err("the sender writes it itself".to_owned())
        })
    })??;
    running.still_runs()
}

fn spool_fork(program: &Program) -> Result<(), Stop> {
    nobody_uses_a_g_twice(program)?;
    let daemon = lingerd(program);
    let read_big = |running: &Running| read_response(&does_not_read(running)?, BIG, Until::End, || ());
    let running = program.start_by(&[], &[("SPOOL", "1"), ("PROCESSES", "2")], read_big)?;
    for _ in 0..ROUNDS {
        both_read_big(&running)?.into_iter().collect::<Result<(), _>>()?;
    }
    program.eventually("most of it was lingerd's to write", || match daemon.counters()["spooled"] {
        spooled if spooled > ROUNDS as u64 => Ok(()),
        spooled => Err(format!("{spooled} of {} were", 2 * ROUNDS)),
    })?;
    only_what_belongs(program, &daemon)?;
    running.still_runs()
}

/// What two clients of two workers have of the largest response.
fn both_read_big(running: &Running) -> Result<[Result<(), String>; 2], String> {
    let mut first = running.connect_slow()?;
    let second = does_not_read(running)?;
    second.peek(&mut [0]).map_err(|e| format!("nobody serves it: {e}"))?;
    ask(&mut first, BIG)?;
    Ok(thread::scope(|scope| {
        let first = scope.spawn(|| read_response(&first, BIG, Until::Whole, || ()));
        let second = read_response(&second, BIG, Until::Whole, || ());
        [first.join().unwrap(), second]
    }))
}

/// That of two processes with a parent which has handed over a response, and may hand over another one, not both do.
fn nobody_uses_a_g_twice(program: &Program) -> Result<(), Stop> {
    let _first = Fake::at_first(&program.site);
    let fake = Fake::at_second(&program.site);
    let links = Mutex::new(Vec::new());
    let hand_over = |running: &Running| {
        let _client = does_not_read(running)?;
        let link = fake.wait_for(program)?;
        link.allow();
        let taken = program.eventually("a response is handed over", || link.take_spooled());
        link.allow();
        links.lock().unwrap().push(link);
        taken
    };
    let running = program.start_by(&[], &[("SPOOL", "1"), ("PROCESSES", "2")], hand_over)?;
    let links = links.into_inner().unwrap();
    let done = AtomicBool::new(false);
    let mut taken = 0;
    let both = thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let both = both_read_big(&running);
            done.store(true, Ordering::Relaxed);
            both
        });
        while !done.load(Ordering::Relaxed) {
            // Whose response is taken is let go, which resets it.
            taken += links.iter().filter(|link| link.take_spooled().is_ok()).count();
            thread::sleep(Duration::from_millis(5));
        }
        clients.join().unwrap()
    })?;
    let cut_off = both.iter().filter(|it| it.is_err()).count();
    if cut_off > taken {
        return Err(format!("{cut_off} responses were cut off, and {taken} were handed over").into());
    }
    if taken > links.len() {
        return Err(format!("{taken} responses were handed over on {} G", links.len()).into());
    }
    running.still_runs()
}
