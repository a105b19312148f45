// SPDX-License-Identifier: BSD-3-Clause

//! A program under test, as its clients and its system see it: what it is told, what it answers, which descriptors its
//! processes have. Must not know what a sender is to do, nor who is at the other end of its link.

use lingerd_platform::process;
use socket2::{Domain, Socket, Type};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use support::daemon::Site;
use support::{PATIENCE, apache, built, http, tcp};

/// Why a case ends before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The program says that it cannot do it, and why.
    Lacks(String),
    /// It cannot be tried here, and why.
    NotHere(String),
    /// The program does not serve as the suite asks, so that it cannot be said how it is as a sender.
    Unfit(String),
    /// The program does something else than a sender does.
    Failed(String),
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Stop::Failed(what)
    }
}

/// How to start one.
#[derive(Clone)]
pub struct Program {
    /// For sh(1).
    pub command: String,
    /// The case that it is started for.
    pub case: &'static str,
    /// How long anything may take.
    pub patience: Duration,
    /// Where its files, and lingerd's, are.
    pub site: Arc<Site>,
}

impl Program {
    /// Starts it with more in its environment, and waits until it answers a first request.
    pub fn start(&self, environment: &[(&str, &str)]) -> Result<Running, Stop> {
        self.spawn(&[], environment)?.when(|running| running.leave(1))
    }

    /// Starts it behind other words of a command line, and waits until `ready` succeeds.
    pub fn start_by(
        &self,
        wrapper: &[&str],
        environment: &[(&str, &str)],
        ready: impl Fn(&Running) -> Result<(), String>,
    ) -> Result<Running, Stop> {
        self.spawn(wrapper, environment)?.when(ready)
    }

    fn spawn(&self, wrapper: &[&str], environment: &[(&str, &str)]) -> Result<Running, Stop> {
        let directory = self.site.path("program");
        let _ = fs::create_dir(&directory); // the case may start several
        let file = |name| File::create(self.site.path(name)).unwrap();
        let address = free_address();
        let words = [wrapper, &["sh", "-c", &self.command]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(directory);
        for unset in ["PROCESSES", "THREADS", "TLS_CERT", "TLS_KEY", "LINGER_SECONDS", "SPOOL"] {
            command.env_remove(unset);
        }
        command.env("PROJECT", built::project()).env("BUILT", built::scratch().parent().unwrap());
        if self.command.contains("$MOD_LINGERD") {
            command.env("MOD_LINGERD", apache::mod_lingerd().map_err(Stop::NotHere)?);
        }
        command.env("LINGERD_SOCKET", self.site.socket()).env("PORT", address.port().to_string());
        command.env("CHECK", self.case).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        let child = command.process_group(0).spawn();
        let child = child.map_err(|e| Stop::NotHere(format!("{}: {e}", words[0])))?;
        let group = child.id() as i32;
        Ok(Running { child: Mutex::new(child), group, address, program: self.clone() })
    }

    /// Waits until `attempt` succeeds.
    pub fn eventually<T>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<T, String>,
    ) -> Result<T, String> {
        let start = Instant::now();
        loop {
            match attempt() {
                Err(why) if start.elapsed() > self.patience => {
                    return Err(format!("waited in vain until {what}: {why}"));
                }
                Err(_) => thread::sleep(LOOK_AGAIN),
                done => return done,
            }
        }
    }
}

const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Where nobody listens, and which Linux does not choose by itself for whoever else connects or listens.
fn free_address() -> SocketAddr {
    // A program that was given one may not have come to listen there when the next one is looked for.
    static GIVEN: Mutex<BTreeSet<SocketAddr>> = Mutex::new(BTreeSet::new());
    loop {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(10_000..32_000)));
        if !GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(address) {
            continue;
        }
        // Who does not listen is in nobody's way, should a program that is started in that moment have it for an instant.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        if socket.bind(&address.into()).is_ok() {
            return address;
        }
    }
}

/// One that runs. Dropping it kills it, and all processes that it has started.
pub struct Running {
    child: Mutex<Child>,
    /// The process group that it is in with all that it starts.
    group: i32,
    /// Where it serves.
    pub address: SocketAddr,
    program: Program,
}

impl Running {
    /// As soon as `ready` succeeds.
    fn when(self, ready: impl Fn(&Running) -> Result<(), String>) -> Result<Self, Stop> {
        let start = Instant::now();
        loop {
            let Err(why) = ready(&self) else { return Ok(self) };
            self.has_not_ended().map_err(|stop| match stop {
                Stop::Failed(why) => Stop::Unfit(why),
                other => other,
            })?;
            // However short patience is with what it does then.
            if start.elapsed() > PATIENCE {
                return Err(Stop::Unfit(format!("{why}\n{}", self.said("stderr"))));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// That nothing has ended it, and that it waits for whoever it has started.
    pub fn still_runs(&self) -> Result<(), Stop> {
        self.has_not_ended()?;
        let waited = self.program.eventually("no process is left that has ended", || {
            match self.processes().iter().find(|it| it.is_zombie) {
                Some(process) => Err(format!("nobody has waited for {}", process.number)),
                None => Ok(()),
            }
        });
        Ok(waited?)
    }

    fn has_not_ended(&self) -> Result<(), Stop> {
        let Some(status) = self.child.lock().unwrap().try_wait().unwrap() else { return Ok(()) };
        let said = self.said("stdout");
        let lacks = said.lines().find_map(|line| line.strip_prefix("lacks: "));
        Err(match lacks {
            Some(why) if status.success() => Stop::Lacks(why.trim().to_owned()),
            _ => Stop::Failed(format!("it has ended by itself ({status})\n{}", self.said("stderr"))),
        })
    }

    /// What it has said.
    fn said(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.program.site.path(name)).unwrap_or_default()).into_owned()
    }

    /// A client that says nothing yet.
    pub fn connect(&self) -> Result<TcpStream, String> {
        self.bounded(TcpStream::connect(self.address))
    }

    /// One that has room for little.
    pub fn connect_slow(&self) -> Result<TcpStream, String> {
        self.bounded(tcp::connect_with_window(self.address, WINDOW))
    }

    fn bounded(&self, socket: std::io::Result<TcpStream>) -> Result<TcpStream, String> {
        let socket = socket.map_err(|e| format!("nobody lets a client in: {e}"))?;
        socket.set_read_timeout(Some(self.program.patience)).unwrap();
        socket.set_write_timeout(Some(self.program.patience)).unwrap();
        Ok(socket)
    }

    /// A client that has had all of its response, and holds its socket.
    pub fn exchange(&self, size: usize, until: Until) -> Result<TcpStream, String> {
        let mut client = self.connect()?;
        ask(&mut client, size)?;
        read_response(&client, size, until, || ())?;
        Ok(client)
    }

    /// A client that has had all of it, says something that nobody asked for, and leaves: whoever lingers on it has
    /// something to read, and is done.
    pub fn leave(&self, size: usize) -> Result<(), String> {
        let mut client = self.exchange(size, Until::Whole)?;
        let _ = client.write_all(b"l"); // nobody may be there any more
        Ok(())
    }

    /// A client that has its response to the end, sends something then, and stays.
    pub fn stay(&self, size: usize) -> Result<TcpStream, String> {
        let client = self.exchange(size, Until::End)?;
        not_reset(&client).map(|()| client)
    }

    /// A client with little room that sends something after each piece that it has read.
    pub fn read_slowly(&self, size: usize, until: Until) -> Result<(), String> {
        let mut client = self.connect_slow()?;
        ask(&mut client, size)?;
        read_response(&client, size, until, || drop((&client).write(b"l")))
    }

    /// A client with little room that sends much more than its request at once, so many bytes in all.
    pub fn read_unread(&self, size: usize, sent: usize, until: Until) -> Result<(), String> {
        let client = self.connect_slow()?;
        let mut all = request(size).into_bytes();
        all.resize(sent, b'u');
        thread::scope(|scope| {
            let _writer = scope.spawn(|| drop((&client).write_all(&all)));
            let read = read_response(&client, size, until, || ());
            let _ = client.shutdown(std::net::Shutdown::Both); // who still writes is done
            read
        })
    }

    /// Its processes, with those that it has started.
    pub fn processes(&self) -> Vec<Process> {
        let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
        let numbers = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        numbers.filter_map(Process::look).filter(|it| it.group == self.group).collect()
    }

    /// How many descriptors all of its processes have.
    pub fn descriptors(&self) -> usize {
        self.processes().iter().map(|it| it.descriptors().len()).sum()
    }

    /// Of Unix sockets that its processes have: the inode, and whether a program that is executed loses it.
    pub fn unix_sockets(&self) -> BTreeSet<(u64, bool)> {
        let known = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let known: BTreeSet<u64> = known
            .lines()
            .filter_map(|line| line.split_whitespace().nth(6)?.parse().ok())
            .filter(|&inode| inode != 0)
            .collect();
        let all = self.processes().into_iter().flat_map(|it| it.descriptors());
        all.filter(|(inode, _)| known.contains(inode)).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = process::kill(-self.group, libc::SIGKILL);
        let _ = self.child.lock().unwrap().wait();
    }
}

/// A process in /proc, which Linux has.
pub struct Process {
    number: i32,
    group: i32,
    /// Whether it has ended, and its parent has not been told.
    pub is_zombie: bool,
}

impl Process {
    fn look(number: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        // After the name, which may be anything: proc_pid_stat(5).
        let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some(Process { number, group: fields[2].parse().ok()?, is_zombie: fields[0] == "Z" })
    }

    /// Of each descriptor: the inode if it is a socket, else 0, and whether it is close-on-exec.
    fn descriptors(&self) -> Vec<(u64, bool)> {
        let directory = format!("/proc/{}", self.number);
        let Ok(all) = fs::read_dir(format!("{directory}/fd")) else { return Vec::new() };
        let names = all.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names
            .filter_map(|name| {
                let target = fs::read_link(format!("{directory}/fd/{name}")).ok()?;
                let inode = target
                    .to_str()
                    .and_then(|it| it.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
                let facts = fs::read_to_string(format!("{directory}/fdinfo/{name}")).ok()?;
                let flags = facts.lines().find_map(|line| line.strip_prefix("flags:"))?.trim();
                let flags = i32::from_str_radix(flags, 8).ok()?;
                Some((inode.unwrap_or(0), flags & libc::O_CLOEXEC != 0))
            })
            .collect()
    }
}

/// How much a client with little room has room for.
const WINDOW: usize = 4096;

fn request(size: usize) -> String {
    format!("GET /{size} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

/// Asks for so many bytes.
pub fn ask(client: &mut TcpStream, size: usize) -> Result<(), String> {
    client.write_all(request(size).as_bytes()).map_err(|e| format!("it does not take a request: {e}"))
}

/// How far a response is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// To the end of the stream, which somebody has to see to: the sender, or lingerd.
    End,
    /// Until all of it is there. Where a sender leaves the half-close to lingerd, and that hangs, there is no end.
    Whole,
}

/// Reads a response; calls `each` after each piece.
pub fn read_response(
    mut client: impl Read,
    size: usize,
    until: Until,
    mut each: impl FnMut(),
) -> Result<(), String> {
    let mut all = Vec::new();
    let mut piece = [0; WINDOW];
    let is_there = |all: &[u8]| all.len() >= size && check_response(all, size).is_ok();
    while until == Until::End || !is_there(&all) {
        match tcp::read_some(&mut client, &mut piece) {
            Ok(0) => break,
            Ok(bytes) => all.extend(&piece[..bytes]),
            Err(e) => return Err(format!("after {} bytes of a response to GET /{size}: {e}", all.len())),
        }
        each();
    }
    check_response(&all, size)
}

/// That it is a whole response.
pub fn check_response(all: &[u8], size: usize) -> Result<(), String> {
    let end = all.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let end = end.ok_or_else(|| format!("no head of a response in {} bytes", all.len()))?;
    let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(format!("the response is '{status}'"));
    }
    let body = &all[end + 4..];
    if body.len() != size || body.iter().any(|&byte| byte != b'x') {
        return Err(format!("{} bytes came of a response of {size}, or others", body.len()));
    }
    let length = lines.find_map(|line| line.strip_prefix("content-length:"));
    match length.map(|length| length.trim().parse::<usize>()) {
        Some(Ok(length)) if length == size => Ok(()),
        _ => Err(format!("the head of a response has no Content-Length: {size}")),
    }
}

/// The same over TLS, from a client that holds its socket: what became of it, and the types of the records.
pub fn exchange_tls(server: SocketAddr, options: &[&str], size: usize) -> http::HeldTls {
    http::exchange_tls(server, options, request(size).as_bytes(), 0)
}

/// That what a client sends after its response is nobody's reason to reset the connection.
pub fn not_reset(mut client: &TcpStream) -> Result<(), String> {
    let error = client.write_all(b"l").err().or_else(|| client.take_error().ok().flatten());
    error.map_or(Ok(()), |why| Err(format!("to what a client sends after its response: {why}")))
}
