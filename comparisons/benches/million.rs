// SPDX-License-Identifier: BSD-3-Clause

//! A million connections that linger in one daemon, and the way there: `make million`.
//!
//! Where the machine lets a process have so many descriptors it runs as it is; else it boots a kernel of its own, which is
//! an ordinary process (Debian's user-mode-linux), in which the limits are ours. That one has one processor, on which a
//! system call takes microseconds more: times from there are ratios, or say where they come from.
//!
//! At each step, from a thousand on, while so many linger:
//!
//! - memory: the daemon's own, and the kernel's, for both ends of a connection and for the clients' process;
//! - five seconds in which nothing happens: how often the daemon wakes up;
//! - `lingerd -S`, by the clock;
//! - CPU a linger, of some thousands more that come and go, beside a second daemon in which a thousand linger, the two in
//!   turns: what the machine does otherwise falls on both;
//! - `lingerd -r`: how long nobody is served, and that nobody is lost;
//! - on the way there, how long each message of 253 takes until the daemon has come to the last of them.
//!
//! Then all clients close at once. In a second way to a million valgrind (callgrind) counts the daemon's instructions
//! a linger. It fails where somebody is lost, and where what lingerd promises is not met: src/limits.rs.
//!
//!     cargo bench -p comparisons --bench million              all of it, in half an hour to an hour
//!     cargo bench -p comparisons --bench million -- 10000     no more than so many
//!     cargo bench -p comparisons --bench million -- uml 10000 in such a kernel, whatever the limits are
//!     cargo bench -p comparisons --bench million -- draw      draws again what was measured last
//!
//! It runs on Linux only. It must not know how the daemon is built inside.

use comparisons::crowd::{self, Crowd};
use comparisons::limits::{self, WAYS, is_many, median, numbers};
use comparisons::{machine, on_stop, picture, print_table, progress, row, spread, weigh, write_picture};
use lingerd_platform::{fdpass, process};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{env, thread};
use support::built;
use support::daemon::{Daemon, Site};

/// How many linger, step by step.
const STEPS: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// How many linger in the second daemon: as many as in the first at its first step.
const FEW: usize = STEPS[0];

/// Rounds in which both are measured.
const ROUNDS: usize = 5;

/// Connections that come and go in a round: whole messages, no more than wait for a stopped daemon.
const LINGERS: usize = 16 * MESSAGE;

/// Connections in a message.
const MESSAGE: usize = fdpass::MAX_DESCRIPTORS;

/// In what time a daemon says why an upgrade came to nothing.
const SAYS_WHY: Duration = Duration::from_secs(5);

/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(5);

/// No deadline is due in any run.
const NO_DEADLINE: [&str; 4] = ["-t", "40000", "-D", "80000"];

/// From so many on an upgrade is tried.
const UPGRADE_FROM: usize = 10_000;

/// Longer than an upgrade or the end of a million takes.
const LONG: Duration = Duration::from_secs(600);

/// After so long something hangs, in whatever kernel.
const LONGEST: Duration = Duration::from_secs(90 * 60);

/// What a line of the program inside begins with that is for the one outside.
const MARK: &str = "million: ";

const USAGE: &str = "usage: million [uml] [CONNECTIONS], or million draw";

/// The word that makes this program the one inside.
const INSIDE: &str = "inside";

/// Descriptors that a process needs beside those of the clients: of connections that come and go, both ends.
const BESIDE: u64 = 3 * LINGERS as u64;

/// Bytes of memory that a connection takes, with both ends and all.
const A_CONNECTION: u64 = 11_000;

/// Gigabytes of memory that a kernel of its own has besides.
const A_KERNEL: u64 = 2;

const REPORT: &str = "target/million.json";
const PICTURE: &str = "target/million.svg";

fn say(what: &str, value: &Value) {
    println!("{MARK}{}", json!({ what: value }));
}

/// The daemon, its clients, and what is known of both.
struct Scene {
    site: Arc<Site>,
    daemon: Daemon,
    crowd: Crowd,
    /// How many are to linger in it.
    most: usize,
    /// Connections that were handed over to it.
    handed_over: u64,
}

impl Scene {
    fn new(most: usize, daemon: Daemon, others: &[&Daemon]) -> io::Result<Scene> {
        let site = Arc::clone(&daemon.site);
        let sockets: Vec<_> = [&daemon].iter().chain(others).map(|daemon| daemon.site.socket()).collect();
        let crowd = Crowd::start(&sockets.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
        Ok(Scene { site, daemon, crowd, most, handed_over: 0 })
    }

    /// Has so many linger.
    fn fill(&mut self, number: usize) -> io::Result<Value> {
        let lingering = self.daemon.counters()["lingering"];
        let filled = self.crowd.tell(&format!("fill 0 {number}"))?;
        self.handed_over += number as u64 - lingering;
        self.check(number);
        Ok(filled)
    }

    /// That each connection is accounted for.
    fn check(&self, lingering: usize) {
        let lingering = lingering as u64;
        let expected = [lingering, self.handed_over, self.handed_over - lingering, 0];
        let counters = self.daemon.counters();
        let names = ["lingering", "handed_over", "closed", "rejected"];
        assert_eq!(names.map(|name| counters[name]), expected, "{names:?} in {counters:?}");
    }

    /// Has some more come and go, and tells how many nanoseconds of CPU that takes, each.
    fn pass(&mut self, way: &str, number: usize) -> io::Result<f64> {
        self.handed_over += number as u64;
        pass(&mut self.crowd, 0, self.daemon.pid, way, number)
    }

    /// How often it wakes up while nothing happens.
    fn idle(&self) -> Option<Value> {
        let spent = || Some((weigh::switches(self.daemon.pid)?, weigh::cpu_ns(self.daemon.pid)?));
        thread::sleep(IDLE / 5); // the last question is answered, and it is idle again
        let before = spent()?;
        thread::sleep(IDLE);
        let after = spent()?;
        Some(json!({ "wakeups": after.0 - before.0, "cpu_ms": (after.1 - before.1) as f64 / 1e6 }))
    }

    /// Seconds that `lingerd -S` takes.
    fn asked(&self) -> Vec<f64> {
        let ask = |_| {
            let start = Instant::now();
            self.daemon.counters();
            start.elapsed().as_secs_f64()
        };
        (0..ROUNDS).map(ask).collect()
    }

    /// Has another daemon take all over. What it says where it does not is returned, and nothing has changed then.
    fn upgrade(&mut self) -> io::Result<Value> {
        let mut command = self.site.lingerd();
        let log = File::options().append(true).open(self.site.path("log"))?;
        let before = self.site.log().len();
        let start = Instant::now();
        let mut child =
            command.args(["-f", "-r"]).args(options(self.most)).stderr(log).stdin(Stdio::null()).spawn()?;
        let took_over = loop {
            if child.try_wait()?.is_some() {
                break false;
            }
            if weigh::state(self.daemon.pid).is_none_or(|state| state == 'Z') {
                break true;
            }
            assert!(start.elapsed() < LONG, "an upgrade that does not end");
            thread::sleep(Duration::from_millis(10));
        };
        // It serves when it has registered all; the old one says why not by a thread of its own, if it was asked at all.
        let (line, patience) =
            if took_over { ("serving (", LONG) } else { ("this daemon serves on", SAYS_WHY) };
        let ended = Instant::now();
        while !self.site.log()[before..].contains(line) && ended.elapsed() < patience {
            thread::sleep(Duration::from_millis(10));
        }
        let seconds = start.elapsed().as_secs_f64();
        let log = self.site.log();
        let said = log[before..].trim();
        if !took_over {
            return Ok(json!({ "failed": said }));
        }
        // What the old one took to tell, and the new one to make its own.
        let ms = |after: &str| said.split(after).nth(1)?.split(' ').next()?.parse::<f64>().ok();
        let frozen = ms("nobody was served for ").zip(ms("; that took ")).map(|(told, made)| told + made);
        assert!(said.contains(line), "a successor that does not serve: {said}");
        let successor = Daemon::adopt(&self.site, child);
        assert_eq!(std::mem::replace(&mut self.daemon, successor).wait_for_end(), Some(0), "{said}");
        Ok(json!({ "seconds": seconds, "frozen_ms": frozen }))
    }

    /// All clients close at once. Every one is closed, and counted.
    fn end(mut self) -> io::Result<Value> {
        let there = self.daemon.counters()["lingering"];
        let closed = self.crowd.tell(&format!("drop 0 {}", self.daemon.pid))?;
        let start = Instant::now();
        let mut asked = 0.0f64;
        loop {
            let before = Instant::now();
            let counters = self.daemon.counters();
            asked = asked.max(before.elapsed().as_secs_f64());
            if counters["lingering"] == 0 {
                break;
            }
            assert!(start.elapsed() < LONG, "they do not end: {counters:?}");
            thread::sleep(Duration::from_millis(50));
        }
        let seconds = start.elapsed().as_secs_f64();
        self.check(0);
        let handed_over = self.handed_over;
        drop(self.crowd);
        self.daemon.finish(&format!("handed_over={handed_over} closed={handed_over}"));
        Ok(
            json!({ "connections": there, "closing_s": closed["seconds"], "seconds": seconds, "asked_meanwhile_s": asked,
            "handed_over": handed_over, "closed": handed_over }),
        )
    }
}

fn pass(crowd: &mut Crowd, part: usize, pid: i32, way: &str, number: usize) -> io::Result<f64> {
    let passed = crowd.tell(&format!("pass {part} {pid} {number} {way}"))?;
    Ok(passed["cpu_ns"].as_f64().unwrap_or(f64::NAN) / number as f64)
}

/// Daemons are told how many they are to hold: the table of descriptors then has room for them from the start.
fn options(most: usize) -> Vec<String> {
    let n = (most + 2 * LINGERS).to_string();
    NO_DEADLINE.iter().map(|word| (*word).to_owned()).chain(["-n".to_owned(), n]).collect()
}

/// The way to `most`, of a daemon as it is.
fn measure(most: usize) -> io::Result<()> {
    let start = |most| {
        let options = options(most);
        Site::new().start_as_it_is(&options.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (daemon, beside) = (start(most), start(FEW));
    let mut scene = Scene::new(most, daemon, &[&beside])?;
    scene.crowd.tell(&format!("fill 1 {FEW}"))?;
    // What is allocated once is allocated.
    for way in WAYS {
        scene.pass(way, MESSAGE)?;
        pass(&mut scene.crowd, 1, beside.pid, way, MESSAGE)?;
    }
    let memory = |scene: &Scene| {
        Some((weigh::anonymous(scene.daemon.pid)?, weigh::anonymous(scene.crowd.pid())?, weigh::kernel()?))
    };
    let before = memory(&scene).ok_or_else(|| io::Error::other("no memory is told"))?;
    for number in steps_to(most) {
        progress(&format!("{number} linger"));
        let filled = scene.fill(number)?;
        let now = memory(&scene).expect("it was told before");
        let each = |now: u64, before: u64| (now as f64 - before as f64) / number as f64;
        let own = each(now.0, before.0);
        let kernel = each(now.2, before.2);
        let (idle, asked) = (scene.idle(), scene.asked());
        let mut cpu = json!({});
        for way in WAYS {
            let (mut here, mut there) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                here.push(scene.pass(way, LINGERS)?);
                there.push(pass(&mut scene.crowd, 1, beside.pid, way, LINGERS)?);
            }
            cpu[way] = json!({ "ns": here, "few_ns": there });
        }
        scene.check(number);
        let upgrade = if number < UPGRADE_FROM { Value::Null } else { scene.upgrade()? };
        scene.check(number);
        say(
            "step",
            &json!({
                "connections": number, "own_bytes": own, "own_kb": now.0 / 1024, "kernel_bytes": kernel, "filled": filled,
                "idle": idle, "asked_s": asked, "cpu": cpu, "upgrade": upgrade,
                "files": fs::read_to_string("/proc/sys/fs/file-nr")?.trim(),
            }),
        );
    }
    say("end", &scene.end()?);
    Ok(())
}

/// callgrind at a daemon.
struct Counting {
    directory: PathBuf,
    pid: i32,
    dumps: u32,
}

impl Counting {
    /// Instructions since it was asked last.
    fn instructions(&mut self) -> io::Result<u64> {
        let prefix = format!("--vgdb-prefix={}", self.directory.join("vgdb").display());
        let said =
            Command::new("vgdb").arg(prefix).arg(format!("--pid={}", self.pid)).arg("dump").output()?;
        if !said.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&said.stderr).into_owned()));
        }
        self.dumps += 1;
        let text = fs::read_to_string(self.directory.join(format!("callgrind.{}", self.dumps)))?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
        total.ok_or_else(|| io::Error::other("callgrind has written no total"))
    }
}

/// The way to `most`, of a daemon whose instructions are counted.
fn count(most: usize) -> io::Result<()> {
    let site = Site::new();
    let directory = site.path("");
    let lingerd = site.lingerd();
    let mut command = Command::new("valgrind");
    command
        .args(["--quiet", "--tool=callgrind"])
        .arg(format!("--vgdb-prefix={}", directory.join("vgdb").display()))
        .arg(format!("--callgrind-out-file={}", directory.join("callgrind").display()))
        .arg(lingerd.get_program())
        .arg("-f")
        .args(lingerd.get_args())
        .args(options(most))
        .current_dir(&directory);
    let daemon = Daemon::spawn(&site, &mut command);
    let mut counting = Counting { directory, pid: daemon.pid, dumps: 0 };
    let mut scene = Scene::new(most, daemon, &[])?;
    for way in WAYS {
        scene.pass(way, MESSAGE)?;
    }
    for number in steps_to(most) {
        progress(&format!("{number} linger, and instructions are counted"));
        scene.fill(number)?;
        let mut counts = json!({ "connections": number });
        for way in WAYS {
            // What so many take once is taken.
            scene.pass(way, LINGERS)?;
            let mut each = Vec::new();
            for _ in 0..ROUNDS {
                counting.instructions()?;
                scene.pass(way, LINGERS)?;
                each.push(counting.instructions()? as f64 / LINGERS as f64);
            }
            counts[way] = json!(each);
        }
        scene.check(number);
        say("counted", &counts);
    }
    Ok(())
}

fn steps_to(most: usize) -> impl Iterator<Item = usize> {
    STEPS.into_iter().filter(move |&step| step < most).chain([most])
}

fn inside(most: usize) -> io::Result<()> {
    // For those that it starts, too.
    process::raise_descriptor_limit()?;
    say(
        "machine",
        &json!({
            "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
            "memory_kb": meminfo("MemTotal"),
        }),
    );
    measure(most)?;
    count(most)
}

fn meminfo(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
}

/// Why this machine does not let a process have so many as it is.
fn hindrance(most: usize) -> Option<String> {
    let most = most as u64;
    let limit = process::raise_descriptor_limit().unwrap_or(0);
    if limit < most + BESIDE {
        return Some(format!("a process can have {limit} descriptors here (ulimit -Hn)"));
    }
    let number = |path| fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    let all: u64 = number("/proc/sys/fs/file-max").unwrap_or(u64::MAX);
    (all < 2 * (most + BESIDE)).then(|| format!("all processes can have {all} files open here (fs.file-max)"))
}

/// Gigabytes of memory that a kernel of its own has for so many.
fn gigabytes(most: usize) -> u64 {
    ((most as u64 * A_CONNECTION) >> 30) + A_KERNEL
}

/// That there is memory for them, here or in a kernel of its own: more of it than there is does not help.
fn check_memory(most: usize, is_uml: bool) -> Result<(), String> {
    let (needed, beside) = match is_uml {
        true => (gigabytes(most) << 30, A_KERNEL << 30),
        false => (most as u64 * A_CONNECTION, 0),
    };
    let available = meminfo("MemAvailable").unwrap_or(0) * 1024;
    if available >= needed {
        return Ok(());
    }
    let fit = available.saturating_sub(beside) / A_CONNECTION / FEW as u64 * FEW as u64;
    let advice =
        if fit >= FEW as u64 { format!("; for so much: make million MOST={fit}") } else { String::new() };
    Err(format!(
        "it takes {} MB of memory, of which {} are available (MemAvailable){advice}",
        needed >> 20,
        available >> 20
    ))
}

/// The process group of what runs inside, or 0.
static GROUP: AtomicI32 = AtomicI32::new(0);

/// Why it was stopped.
static STOPPED: OnceLock<&str> = OnceLock::new();

/// Ends what runs inside, a whole kernel where it is one, which may hang. What it leaves behind is in a directory of ours.
fn stop(why: &'static str) {
    let _ = STOPPED.set(why);
    let group = GROUP.swap(0, Ordering::SeqCst);
    if group > 0 {
        let _ = process::kill(-group, libc::SIGKILL);
    }
}

/// Stops it on a signal, when who has started this process is gone, which not each one passes a signal on to (cargo does
/// not), and when it takes too long.
fn watch() {
    on_stop(|| stop("it was interrupted"));
    let (start, parent) = (Instant::now(), parent_id());
    thread::spawn(move || {
        while start.elapsed() < LONGEST && parent_id() == parent {
            thread::sleep(Duration::from_secs(1));
        }
        stop(if parent_id() == parent { "it takes too long" } else { "who has started it is gone" });
    });
}

/// This program inside, here or, where something hinders, in a kernel of its own. What it does not clear away it leaves in
/// `directory`.
fn start(most: usize, hindrance: Option<&str>, directory: &Path) -> Result<(Child, String), String> {
    let program = env::current_exe().map_err(|e| e.to_string())?;
    let (mut command, place) = match hindrance {
        None => {
            let mut command = Command::new(&program);
            command.env("TMPDIR", directory);
            (command, "this machine".to_owned())
        }
        Some(why) => {
            if !Command::new("linux").arg("--version").output().is_ok_and(|said| said.status.success()) {
                return Err(format!(
                    "{why}, and there is no user-mode Linux ('sh ci/packages million' installs it on Debian)"
                ));
            }
            let gigabytes = gigabytes(most);
            let mut command = Command::new("sh");
            command.arg(built::project().join("ci/uml")).arg(format!("mem={gigabytes}G"));
            command.arg(format!("uml_dir={}/", directory.display()));
            command.args("quiet rootfstype=hostfs root=/dev/root ro con0=null,fd:1".split(' '));
            // As a machine with so much memory has them, in which more than sockets lives.
            command.arg(format!("thash_entries={}", most.next_power_of_two()));
            command.arg(format!("init={}", built::project().join("comparisons/million.init").display()));
            if let Some(lingerd) = env::var_os("LINGERD") {
                command.arg(format!("LINGERD={}", Path::new(&lingerd).display()));
            }
            command.arg("--").arg(&program);
            (command, format!("user-mode Linux, {gigabytes} GB, as {why}"))
        }
    };
    command.arg(INSIDE).arg(most.to_string()).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
    GROUP.store(child.id() as i32, Ordering::SeqCst);
    if let Some(why) = STOPPED.get() {
        stop(why); // before it was started
    }
    Ok((child, place))
}

/// What was told from inside.
#[derive(Default)]
struct Told {
    machine: Value,
    steps: Vec<Value>,
    counted: Vec<Value>,
    end: Value,
    /// The exit status of the program inside, where a kernel's would say nothing of it.
    ended: Value,
}

impl Told {
    fn listen(child: &mut Child) -> Told {
        let mut told = Told::default();
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        for line in output.lines().map_while(Result::ok) {
            let Some(text) = line.trim_end().strip_prefix(MARK) else {
                eprintln!("{}", line.trim_end());
                continue;
            };
            let Ok(Value::Object(object)) = serde_json::from_str(text) else {
                eprintln!("{text}");
                continue;
            };
            for (what, value) in object {
                match what.as_str() {
                    "machine" => told.machine = value,
                    "step" => told.steps.push(value),
                    "counted" => told.counted.push(value),
                    "end" => told.end = value,
                    "ended" => told.ended = value,
                    other => eprintln!("{other}? {value}"),
                }
            }
        }
        told
    }

    /// What is missing of all the way to `most`.
    fn missing(&self, most: usize) -> Result<(), String> {
        let whole = |steps: &[Value]| {
            steps.iter().map(|step| step["connections"].as_u64()).eq(steps_to(most).map(|n| Some(n as u64)))
        };
        for (what, is_there) in [
            ("a step", whole(&self.steps)),
            ("its end", !self.end.is_null()),
            ("a step of the counted way", whole(&self.counted)),
        ] {
            if !is_there {
                return Err(format!("it did not come to {what}"));
            }
        }
        Ok(())
    }
}

fn text(value: &Value, digits: usize) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
}

impl Told {
    fn print(&self, is_uml: bool) {
        let head = row([
            "lingering",
            "own bytes each",
            "kernel's, both ends",
            "wake-ups in 5 s",
            "-S, longest",
            "-r: nobody served",
        ]);
        let line = |step: &Value| {
            let asked = numbers(&step["asked_s"]).into_iter().fold(0.0, f64::max);
            [
                step["connections"].to_string(),
                text(&step["own_bytes"], 1),
                if is_many(step) { text(&step["kernel_bytes"], 0) } else { "-".to_owned() },
                step["idle"]["wakeups"].to_string(),
                format!("{:.0} ms", asked * 1e3),
                match step["upgrade"]["failed"].as_str() {
                    None => text(&step["upgrade"]["frozen_ms"], 0) + " ms",
                    Some(_) if limits::was_given_up(step) => "gave up".to_owned(),
                    Some(_) => "failed".to_owned(),
                },
            ]
        };
        println!();
        print_table(&[vec![head], self.steps.iter().map(line).collect()].concat());
        println!("The kernel's memory is the system's, whoever has it: of few it says nothing.");
        if let Some(first) = self.counted.first() {
            println!(
                "\nInstructions of the daemon a linger (callgrind), and over those with {}. A client that has gone is \
                 found gone when its connection comes, and never enters the table of those that linger.\n",
                first["connections"]
            );
            let head = row(["lingering", "client gone", "ratio", "client lingers", "ratio"]);
            let line = |counted: &Value| {
                let count = |way: &str| {
                    let (now, then) = (median(&counted[way]), median(&first[way]));
                    let ratio = now.zip(then).map(|(now, then)| now / then);
                    [text(&json!(now), 1), text(&json!(ratio), 3)]
                };
                let ([gone, ratio_gone], [lingers, ratio_lingers]) = (count(WAYS[0]), count(WAYS[1]));
                [counted["connections"].to_string(), gone, ratio_gone, lingers, ratio_lingers]
            };
            print_table(&[vec![head], self.counted.iter().map(line).collect()].concat());
        }
        println!(
            "\nCPU a linger in microseconds, of {LINGERS} that come and go meanwhile, {ROUNDS} rounds; and over a daemon with {FEW}.{}\n",
            if is_uml {
                " This kernel tells CPU by its ticks, of 10 ms: where rounds differ go by the instructions."
            } else {
                ""
            }
        );
        let head = row(["lingering", "client gone", "ratio", "client lingers", "ratio"]);
        let line = |step: &Value| {
            let cpu = |way: &str| {
                let here = numbers(&step["cpu"][way]["ns"]);
                let ratios = here
                    .iter()
                    .zip(numbers(&step["cpu"][way]["few_ns"]))
                    .map(|(here, few)| here / few)
                    .collect();
                [spread(here.iter().map(|ns| ns / 1e3).collect(), 1), spread(ratios, 2)]
            };
            let ([gone, ratio_gone], [lingers, ratio_lingers]) = (cpu(WAYS[0]), cpu(WAYS[1]));
            [step["connections"].to_string(), gone, ratio_gone, lingers, ratio_lingers]
        };
        print_table(&[vec![head], self.steps.iter().map(line).collect()].concat());
        println!(
            "\nOn the way there: milliseconds from a message of 253 until the daemon has come to the last of them.\n"
        );
        let head = row(["until", "messages", "seconds", "median", "99 of 100", "longest, and at how many"]);
        let line = |step: &Value| {
            let filled = &step["filled"];
            let ms = |value: &Value| {
                value.as_f64().map_or_else(|| "-".to_owned(), |us| format!("{:.1}", us / 1e3))
            };
            let longest = filled["longest"].as_array().into_iter().flatten();
            let longest: Vec<_> = longest.map(|it| format!("{} ({})", ms(&it[0]), it[1])).collect();
            [
                step["connections"].to_string(),
                filled["messages"].to_string(),
                text(&filled["seconds"], 1),
                ms(&filled["median_us"]),
                ms(&filled["p99_us"]),
                longest.join(", "),
            ]
        };
        print_table(&[vec![head], self.steps.iter().map(line).collect()].concat());
        if !self.end.is_null() {
            let end = &self.end;
            println!(
                "\n{} clients closed at once (which took them {} s): all were closed and counted {} s later; \
                 meanwhile -S took {} ms at most.\n{} were handed over in all, {} closed, none lost.",
                end["connections"],
                text(&end["closing_s"], 1),
                text(&end["seconds"], 1),
                text(&json!(end["asked_meanwhile_s"].as_f64().map(|s| s * 1e3)), 0),
                end["handed_over"],
                end["closed"],
            );
        }
    }

    fn picture(&self) -> Result<String, String> {
        let series = |all: &[Value], of: &dyn Fn(&Value) -> Option<f64>| -> Vec<(f64, f64)> {
            all.iter().filter_map(|it| Some((it["connections"].as_f64()?, of(it)?))).collect()
        };
        let instructions = WAYS.map(|way| series(&self.counted, &|it| median(&it[way])));
        // As the table has it: what was there before the first is no part of it. Of few, by whole pages, it says little.
        let many: Vec<_> = self.steps.iter().filter(|step| is_many(step)).cloned().collect();
        let own = series(&many, &|it| it["own_bytes"].as_f64());
        let [gone, lingering] = instructions;
        let number = "connections that linger";
        picture::courses(
            "What a connection takes of lingerd, by how many linger: less is better",
            number,
            &[
                ("instructions a linger", &[("client gone", gone), ("client lingers", lingering)]),
                ("growth of its own memory, bytes a connection", &[("", own)]),
            ],
        )
    }

    fn write(&self, place: &str, machine: &Value) -> Result<(), String> {
        let report = json!({
            "place": place, "machine": machine, "inside": self.machine, "steps": self.steps, "counted": self.counted,
            "end": self.end,
        });
        let write = |path: &str, text: &str| {
            let path = built::project().join(path);
            let directory = path.parent().expect("it has one");
            fs::create_dir_all(directory)
                .and_then(|()| fs::write(&path, text))
                .map_err(|e| format!("{}: {e}", path.display()))
        };
        write(REPORT, &report.to_string())?;
        write(PICTURE, &self.picture()?)
    }
}

/// Draws what a report says.
fn draw(report: &Value) {
    let all = |what: &str| report[what].as_array().cloned().unwrap_or_default();
    let told = Told { steps: all("steps"), counted: all("counted"), ..Told::default() };
    write_picture(PICTURE, told.picture());
}

fn main() -> ExitCode {
    if !cfg!(target_os = "linux") {
        eprintln!("million: it reads the /proc of Linux");
        return ExitCode::FAILURE;
    }
    let words: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let done = match words.first().map(String::as_str) {
        Some(crowd::WORD) => crowd::serve(&words[1..]).map_err(|e| e.to_string()),
        Some(INSIDE) => inside(words.get(1).and_then(|word| word.parse().ok()).unwrap_or(STEPS[0]))
            .map_err(|e| e.to_string()),
        Some("draw") => return machine::draw_again(REPORT, draw),
        _ => outside(&words),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn outside(words: &[String]) -> Result<(), String> {
    let (uml, most): (Vec<_>, Vec<_>) = words.iter().partition(|word| *word == "uml");
    let most = match most[..] {
        [] => STEPS[STEPS.len() - 1],
        [word] => word.parse().ok().filter(|&most| most >= FEW).ok_or(USAGE)?,
        _ => return Err(USAGE.to_owned()),
    };
    built::program("lingerd")?;
    if !Command::new("valgrind").arg("--version").output().is_ok_and(|said| said.status.success()) {
        return Err(
            "there is no valgrind, which counts instructions ('sh ci/packages million' installs it on Debian)"
                .to_owned(),
        );
    }
    let hindrance = if uml.is_empty() { hindrance(most) } else { Some("asked to".to_owned()) };
    let is_uml = hindrance.is_some();
    check_memory(most, is_uml)?;
    let machine = machine::machine(&[("valgrind", machine::version(Path::new("valgrind"), "--version"))]);
    let site = Site::new();
    watch();
    let (mut child, place) = start(most, hindrance.as_deref(), &site.path(""))?;
    progress(&format!("up to {most} linger, on {place}"));
    let told = Told::listen(&mut child);
    let ended = child.wait().map_err(|e| e.to_string())?;
    GROUP.store(0, Ordering::SeqCst);
    if let Some(why) = STOPPED.get() {
        return Err(format!("million: {why}"));
    }
    println!("\nOn {place}: {}", told.machine);
    machine::print(&machine);
    told.print(is_uml);
    let written = told.write(&place, &machine);
    if written.is_ok() {
        println!("\n{REPORT}, {PICTURE}");
    }
    let whole = match told.ended.as_i64() {
        _ if !ended.success() => Err(format!("it has ended with {ended}")),
        Some(status) if status != 0 => Err(format!("the program inside has ended with {status}")),
        None if is_uml => Err("the kernel inside has ended before the program".to_owned()),
        _ => told.missing(most),
    };
    // Of the daemon that was measured, which need not be this build's: "lingerd 0.1.0 (epoll; ...".
    let backend = machine["lingerd"].as_str().and_then(|said| said.split(['(', ';', ')']).nth(1));
    let exceeded =
        limits::exceeded(&told.steps, &told.counted, &told.end, backend.unwrap_or_default(), is_uml);
    // All that is wrong, after all that was measured.
    let wrong: Vec<_> = [whole, written].into_iter().filter_map(Result::err).chain(exceeded).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}
