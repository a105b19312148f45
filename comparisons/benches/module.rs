// SPDX-License-Identifier: BSD-3-Clause

//! What mod_lingerd adds to a request of Apache and takes from it, counted and not timed:
//! `cargo bench -p comparisons --bench module`.
//!
//! System calls (strace) and instructions in user space (callgrind) of the worker of a prefork with one, for a request:
//! of a stock Apache, and of ones with lingerd. Knows what clients do and how Apache is set up, and must not know how
//! the module is built inside. The close is counted apart, too: what Apache does from where it would linger on.
//! It runs on Linux only, as it reads /proc.
//!
//! What is counted is the difference of two runs of unequal length, so that start and stop cancel out. A client that
//! is done says so with its request, by half-closing: when a client that closes "at once" does it is else a matter
//! of luck. Whether the worker has to wait for it is what tells the courses apart.
//!
//!     cargo bench -p comparisons --bench module               all of it, in about ten minutes
//!     cargo bench -p comparisons --bench module -- calls      or instructions, or close
//!     cargo bench -p comparisons --bench module -- calls held one of the courses, by its first word
//!     PROFILES=/tmp/p cargo bench -p comparisons --bench module -- instructions
//!
//! The last keeps what callgrind has written, in a directory that is there, for callgrind_annotate(1).

use comparisons::counting::{CALLGRIND, STRACE, Tool};
use comparisons::weigh::{members, status};
use comparisons::{progress, run};
use lingerd_platform::process;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;
use support::apache::{Apache, Mpm, Setup};
use support::daemon::{Daemon, Site};
use support::{http, wait_until};

/// Requests of the two runs whose difference counts, by what counts.
const CALLS_OF: [usize; 2] = [100, 300];
const INSTRUCTIONS_OF: [usize; 2] = [50, 150];

/// For how long a client keeps its connection that the worker is to wait for: longer than a worker that is slowed
/// down takes to look at it.
const HOLD: Duration = Duration::from_millis(30);

/// How many requests come over a connection that is kept.
const KEPT: usize = 10;

/// Of a page that mod_php makes and of a file, as in the other comparisons.
const PAGE: &[u8] = b"<?php echo str_repeat('x', 20000);";
const LARGE_PAGE: &[u8] = b"<?php echo str_repeat('x', 300000);";
static FILE: [u8; 20_000] = [b'x'; 20_000];

/// A page is read once.
const OPCACHE: &str =
    "php_admin_value opcache.validate_timestamps 0\nphp_admin_value opcache.file_update_protection 0";

/// What clients do.
struct Course {
    name: &'static str,
    what: &'static str,
    path: &'static str,
    is_kept: bool,
    /// Makes so many requests, one after the other.
    play: fn(SocketAddr, &str, usize),
}

const COURSES: [Course; 7] = [
    Course {
        name: "gone",
        what: "a file, client is done before the close",
        path: "/file",
        is_kept: false,
        play: gone,
    },
    Course { name: "held", what: "a file, client holds", path: "/file", is_kept: false, play: held },
    Course {
        name: "large-file",
        what: "a file of 300 kB, client holds",
        path: "/large",
        is_kept: false,
        play: held,
    },
    Course {
        name: "page",
        what: "mod_php's 20 kB, client holds",
        path: "/page.php",
        is_kept: false,
        play: held,
    },
    Course {
        name: "large-page",
        what: "mod_php's 300 kB, client holds",
        path: "/large.php",
        is_kept: false,
        play: held,
    },
    Course {
        name: "stays",
        what: "kept, next request at once",
        path: "/file",
        is_kept: true,
        play: asks_at_once,
    },
    Course {
        name: "parks",
        what: "kept, next request after a pause",
        path: "/file",
        is_kept: true,
        play: pauses,
    },
];

fn gone(address: SocketAddr, path: &str, requests: usize) {
    for _ in 0..requests {
        let mut client = http::connect(address);
        client.write_all(http::request(path).as_bytes()).expect("room for a request");
        client.shutdown(Shutdown::Write).expect("it was open");
        drop(http::exchange(client, b""));
    }
}

fn held(address: SocketAddr, path: &str, requests: usize) {
    for _ in 0..requests {
        let client = http::get(address, path);
        thread::sleep(HOLD);
        drop(client);
    }
}

fn keep(address: SocketAddr, path: &str, requests: usize, pause: Duration) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for _ in 0..requests / KEPT {
        let mut client = http::connect(address);
        for n in 0..KEPT {
            if n > 0 && !pause.is_zero() {
                thread::sleep(pause);
            }
            client.write_all(request.as_bytes()).expect("room for a request");
            http::read_one(&mut client);
        }
    }
}

fn asks_at_once(address: SocketAddr, path: &str, requests: usize) {
    keep(address, path, requests, Duration::ZERO);
}

fn pauses(address: SocketAddr, path: &str, requests: usize) {
    keep(address, path, requests, HOLD);
}

/// How Apache is set up: the first is the one that others are compared with.
const SET_UPS: [(&str, Option<&str>); 5] = [
    ("stock", None),
    ("lingerd away", Some("")),
    ("LingerdSpool Off", Some("LingerdSpool Off")),
    ("as it comes", Some("")),
    ("LingerdPark On", Some("LingerdPark On")),
];

/// A set-up that runs, with its one worker.
struct Rig {
    worker: i32,
    // In the order in which they are stopped.
    apache: Apache,
    _lingerd: Option<Daemon>,
}

impl Rig {
    fn start(set_up: usize, course: &Course, under: &[OsString]) -> Result<Rig, String> {
        let (name, lines) = SET_UPS[set_up];
        let mut setup = Setup::new(Mpm::Prefork).workers(1).under(under);
        if course.path.ends_with(".php") {
            // Whether a page has changed is not asked, nor is a new one read for two seconds.
            setup = setup.php().with(OPCACHE);
        }
        if course.is_kept {
            setup = setup.with("KeepAlive On");
        }
        let mut lingerd = None;
        if let Some(lines) = lines {
            let site = Site::new();
            setup = setup.lingerd(&site.socket()).with(lines);
            if name != "lingerd away" {
                lingerd = Some(site.start_as_it_is(&["-m", "0666"]));
            }
        }
        let apache = setup.try_start()?;
        apache.publish("page.php", PAGE);
        apache.publish("large.php", LARGE_PAGE);
        apache.publish("file", &FILE);
        apache.publish("large", &FILE.repeat(15));
        // What is done but once: links, the first memory.
        (course.play)(apache.address, course.path, 2 * KEPT);
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let is_worker = |pid: &i32| *pid != apache.pid() && name(*pid) == name(apache.pid());
        let worker = members(apache.pid()).into_iter().find(is_worker).ok_or("Apache has no worker")?;
        Ok(Rig { worker, apache, _lingerd: lingerd })
    }
}

/// What a run takes, by name.
type Counts = BTreeMap<String, u64>;

/// What a request takes, by name.
type Figures = BTreeMap<String, f64>;

/// Waits until a tool has written what can be read, and reads it.
fn read(tool: &Tool, file: &Path) -> Counts {
    let mut counts = None;
    wait_until("the counts are written", || {
        counts = fs::read_to_string(file).ok().and_then(|text| (tool.read)(&text));
        counts.is_some()
    });
    counts.unwrap_or_default() // some, or there would be a panic above
}

/// What so many requests to a running Apache take of its worker.
fn calls_of(rig: &Rig, course: &Course, requests: usize, site: &Site) -> Counts {
    let output = site.path("calls");
    let _ = fs::remove_file(&output);
    let mut strace = Command::new("strace")
        .args(["-q", "-c", "-p", &rig.worker.to_string(), "-o"])
        .arg(&output)
        .stdin(Stdio::null())
        .spawn()
        .expect("strace, which is there");
    wait_until("strace looks", || status(rig.worker, "TracerPid") == Some(u64::from(strace.id())));
    (course.play)(rig.apache.address, course.path, requests);
    settle(rig.worker);
    process::kill(strace.id() as i32, libc::SIGINT).expect("a signal to our child");
    strace.wait().expect("it is our child");
    read(&STRACE, &output)
}

/// Waits until the worker waits for the next connection, and has so for a while.
fn settle(worker: i32) {
    let switches = || status(worker, "voluntary_ctxt_switches");
    let mut before = None;
    wait_until("the worker is idle", || {
        thread::sleep(HOLD);
        let now = switches();
        let idle = now == before;
        before = now;
        idle
    });
}

fn each(less: &Counts, more: &Counts, requests: [usize; 2]) -> Figures {
    let lookup = |counts: &Counts, name: &String| counts.get(name).map_or(0.0, |count| *count as f64);
    let names: BTreeSet<_> = less.keys().chain(more.keys()).collect();
    let difference = |name: &String| lookup(more, name) - lookup(less, name);
    let of_one = |name: &String| (name.clone(), difference(name) / (requests[1] - requests[0]) as f64);
    names.into_iter().map(of_one).collect()
}

fn calls(course: &Course, set_up: usize) -> Result<Figures, String> {
    let site = Site::new();
    let rig = Rig::start(set_up, course, &[])?;
    let [less, more] = CALLS_OF.map(|requests| calls_of(&rig, course, requests, &site));
    Ok(each(&less, &more, CALLS_OF))
}

/// The same for instructions.
fn instructions(course: &Course, set_up: usize) -> Result<Figures, String> {
    instructions_within(course, set_up, None)
}

/// Of these, those of the lingering close, or of what is there in its place.
fn close(course: &Course, set_up: usize) -> Result<Figures, String> {
    instructions_within(course, set_up, Some("ap_lingering_close"))
}

/// Of a function, or all. Apache is started anew each time.
fn instructions_within(course: &Course, set_up: usize, function: Option<&str>) -> Result<Figures, String> {
    let mut counts = Vec::new();
    for requests in INSTRUCTIONS_OF {
        let site = Site::new();
        // The worker is somebody else by the time it writes.
        fs::set_permissions(site.path(""), Permissions::from_mode(0o777)).expect("our own directory");
        let mut tool: Vec<_> = CALLGRIND.arguments.iter().map(OsString::from).collect();
        tool.last_mut().expect("the option that names the file").push(site.path("%p"));
        tool.extend(function.map(|function| format!("--toggle-collect={function}").into()));
        let rig = Rig::start(set_up, course, &tool)?;
        (course.play)(rig.apache.address, course.path, requests);
        settle(rig.worker);
        let output = site.path(&rig.worker.to_string());
        drop(rig);
        counts.push(read(&CALLGRIND, &output));
        let what = if function.is_some() { "close" } else { "all" };
        keep_profile(&output, &format!("callgrind.{what}.{}.{set_up}", course.name));
    }
    Ok(each(&counts[0], &counts[1], INSTRUCTIONS_OF))
}

fn keep_profile(output: &Path, name: &str) {
    if let Some(directory) = std::env::var_os("PROFILES") {
        let keep = PathBuf::from(directory).join(name);
        fs::copy(output, &keep).unwrap_or_else(|e| panic!("{}: {e}", keep.display()));
    }
}

/// Prints what each set-up takes, and what that is more or less than stock does.
fn compare(
    course: &Course,
    what: &str,
    digits: usize,
    count: fn(&Course, usize) -> Result<Figures, String>,
) -> Result<(), String> {
    println!("\n{}, {what}", course.what);
    let mut stock = Figures::new();
    for (n, (name, _)) in SET_UPS.iter().enumerate() {
        progress(&format!("{}, {what}: {name}", course.what));
        let counts = count(course, n)?;
        let all: f64 = counts.values().sum();
        if n == 0 {
            let names = named(counts.iter().map(|(name, count)| (name, *count)), "");
            println!("    {name:<18} {all:>9.digits$}             {names}");
            stock = counts;
            continue;
        }
        let of_stock: f64 = stock.values().sum();
        let names: BTreeSet<_> = stock.keys().chain(counts.keys()).collect();
        let of = |counts: &Figures, name: &String| counts.get(name).copied().unwrap_or(0.0);
        let changes = names.iter().map(|name| (*name, of(&counts, name) - of(&stock, name)));
        println!("    {name:<18} {all:>9.digits$} {:>+10.digits$}  {}", all - of_stock, named(changes, "+"));
    }
    Ok(())
}

/// System calls by name, those that are none of every request left out.
fn named<'a>(counts: impl Iterator<Item = (&'a String, f64)>, sign: &str) -> String {
    let counts = counts.filter(|(name, count)| name.as_str() != "instructions" && count.abs() >= 0.02);
    let signed = |(name, count): (&String, f64)| match sign {
        "+" => format!("{name} {count:+.2}"),
        _ => format!("{name} {count:.2}"),
    };
    counts.map(signed).collect::<Vec<_>>().join(", ")
}

fn main() -> ExitCode {
    if !cfg!(target_os = "linux") {
        eprintln!("module: it reads the /proc of Linux");
        return ExitCode::FAILURE;
    }
    let wanted: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let is_tool = |word: &String| ["calls", "instructions", "close"].contains(&word.as_str());
    let counts = |tool: &str| !wanted.iter().any(is_tool) || wanted.iter().any(|word| word == tool);
    let plays = |name: &str| wanted.iter().all(is_tool) || wanted.iter().any(|word| word == name);
    let all = || {
        println!("of a worker of Apache prefork, for a request; and more (+) or less (-) than stock");
        for course in COURSES.iter().filter(|course| plays(course.name)) {
            if counts("calls") {
                if !STRACE.is_there() {
                    return Err(STRACE.missing.to_owned());
                }
                compare(course, "system calls", 2, calls)?;
            }
            if (counts("instructions") || counts("close")) && !CALLGRIND.is_there() {
                return Err(CALLGRIND.missing.to_owned());
            }
            if counts("instructions") {
                compare(course, "instructions", 0, instructions)?;
            }
            if counts("close") && !course.is_kept {
                compare(course, "instructions of the close", 0, close)?;
            }
        }
        Ok(())
    };
    run(all, "it takes Apache 2.4 with apxs and mod_php, strace and valgrind")
}
