// SPDX-License-Identifier: BSD-3-Clause

//! The kernel's world as a [`Stage`].

use super::{Caller, Desk, Peer, Stage, Stranger};
use crate::back::Ways;
use crate::backend::System;
use crate::clock::Monotonic;
use crate::closing::Closers;
use crate::content::Regular;
use crate::fdpass::{self, Link};
use crate::reader::Threads;
use crate::signals::{Handler, Signals};
use crate::world::World;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The kernel's.
pub struct Kernels;

impl World for Kernels {
    type Back = Ways;
    type Backend = System;
    type Received = OwnedFd;
    type Socket = TcpStream;
    type Content = Regular;
    type Reader = Threads;
    type Link = UnixStream;
    type Door = UnixListener;
    type Signal = Handler;
    type Clock = Monotonic;
    type SlowClose = Closers;
}

/// See the module's head.
pub struct Real;

impl Stage for Real {
    type World = Kernels;
    type Peer = Client;
    type Caller = Sender;
    type Address = Path;
    type Desk = Listener;

    fn backend(&mut self) -> System {
        System::new().unwrap()
    }

    fn connection(&mut self) -> (Client, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        let copy = server.try_clone().unwrap();
        let address = client.local_addr().unwrap();
        (Client { client: Some(client), copy: Some(copy), address }, server.into())
    }

    fn file(&mut self, length: usize) -> OwnedFd {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lingerd-file-{}-{number}", std::process::id()));
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(&(0..length as u64).map(super::pattern).collect::<Vec<_>>()).unwrap();
        file.into()
    }

    fn reader(&mut self) -> Threads {
        Threads::new().unwrap()
    }

    fn stranger(&mut self, what: Stranger) -> OwnedFd {
        match what {
            Stranger::Listener => TcpListener::bind("127.0.0.1:0").unwrap().into(),
            Stranger::Unconnected => Socket::new(Domain::IPV4, Type::STREAM, None).unwrap().into(),
            Stranger::Udp => UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            Stranger::Unix => UnixStream::pair().unwrap().0.into(),
            Stranger::File => File::open("/dev/null").unwrap().into(),
        }
    }

    fn door(&mut self) -> (UnixListener, Path) {
        let path = Path::new();
        let door = UnixListener::bind(&path.0).unwrap();
        door.set_nonblocking(true).unwrap();
        (door, path)
    }

    fn call(&mut self, address: &Path) -> io::Result<Sender> {
        UnixStream::connect(&address.0).map(|stream| Sender(Some(stream)))
    }

    fn way_back(&mut self, name: &str, backlog: usize) -> (Ways, Listener) {
        let beside = Path::new();
        let path = Path(format!("{}.back.{name}", beside.0.display()).into());
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path.0).unwrap()).unwrap();
        listener.listen(backlog as i32).unwrap();
        listener.set_nonblocking(true).unwrap();
        (
            Ways::beside(&beside.0).unwrap(),
            Listener { listener: Some(OwnedFd::from(listener).into()), _path: path },
        )
    }

    fn uid(&self) -> u32 {
        crate::process::effective_uid()
    }

    fn gid(&self) -> u32 {
        crate::process::effective_gid()
    }

    fn clock(&mut self) -> Monotonic {
        Monotonic::start()
    }

    fn slow_close(&mut self) -> Closers {
        Closers::default()
    }

    /// A test process has each signal once: only one test may ask for one.
    fn signal(&mut self) -> Handler {
        Signals::install().unwrap().report
    }

    fn raise(&mut self) {
        signal_hook::low_level::raise(signal_hook::consts::SIGUSR1).unwrap();
    }

    /// How often a test looks whether it is so; and if a reset takes longer, nothing fails.
    fn pass(&mut self) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A path that is gone with its user.
pub struct Path(PathBuf);

impl Path {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lingerd-contract-{}-{number}", std::process::id());
        Path(std::env::temp_dir().join(name))
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub struct Listener {
    listener: Option<UnixListener>,
    _path: Path,
}

impl Desk<Sender> for Listener {
    fn accept(&mut self) -> Option<Sender> {
        let (stream, _) = self.listener.as_ref()?.accept().ok()?;
        stream.set_nonblocking(false).unwrap(); // some systems hand that on
        Some(Sender(Some(stream)))
    }

    fn close(&mut self) {
        self.listener = None;
    }
}

pub struct Client {
    /// Until it has reset.
    client: Option<TcpStream>,
    /// The server's own, until it lets go.
    copy: Option<TcpStream>,
    address: SocketAddr,
}

impl Client {
    fn client(&self) -> &TcpStream {
        self.client.as_ref().unwrap()
    }

    fn copy(&self) -> &TcpStream {
        self.copy.as_ref().unwrap()
    }
}

impl Peer for Client {
    fn send(&mut self, bytes: usize) {
        self.client().write_all(&vec![0; bytes]).unwrap();
    }

    fn say(&mut self, bytes: &[u8]) {
        self.client().write_all(bytes).unwrap();
    }

    fn half_close(&mut self) {
        self.client().shutdown(Shutdown::Write).unwrap();
    }

    fn reset(&mut self) {
        let client = self.client.take().unwrap();
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    }

    fn reads_pattern(&mut self, offset: u64, bytes: usize) -> io::Result<bool> {
        let mut read = vec![0; bytes];
        self.client().read_exact(&mut read)?;
        Ok((offset..).zip(read).all(|(offset, byte)| byte == super::pattern(offset)))
    }

    fn drain(&mut self, bytes: usize) {
        self.client().set_nonblocking(true).unwrap();
        let _ = self.client().read(&mut vec![0; bytes]);
        self.client().set_nonblocking(false).unwrap();
    }

    fn read_to_end(&mut self) -> io::Result<usize> {
        let patience = Some(Duration::from_secs(60));
        self.client().set_read_timeout(patience).unwrap();
        self.client().read_to_end(&mut Vec::new())
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    /// The flag is the copy's too, and is as it was when this returns.
    fn fill(&mut self) -> usize {
        let mut written = 0;
        self.copy().set_nonblocking(true).unwrap();
        while let Ok(count) = self.copy().write(&[0; 65536]) {
            written += count;
        }
        self.copy().set_nonblocking(false).unwrap();
        written
    }

    fn abort_on_close(&mut self) {
        SockRef::from(self.copy()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    fn wait_on_close(&mut self, time: Duration) {
        SockRef::from(self.copy()).set_linger(Some(time)).unwrap();
    }

    #[cfg(not(target_os = "linux"))]
    fn notify(&mut self) -> bool {
        false
    }

    #[cfg(target_os = "linux")]
    fn notify(&mut self) -> bool {
        use std::os::fd::AsRawFd;
        let stamps = libc::SOF_TIMESTAMPING_TX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE;
        // SAFETY: setsockopt(2) reads the one int, which outlives the call.
        let set = unsafe {
            libc::setsockopt(
                self.copy().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_TIMESTAMPING,
                (&raw const stamps).cast(),
                size_of_val(&stamps) as libc::socklen_t,
            )
        };
        assert_eq!(set, 0);
        self.copy().write_all(b"x").unwrap();
        true
    }

    fn let_go(&mut self) {
        self.copy = None;
    }
}

pub struct Sender(Option<UnixStream>);

impl Caller<Client> for Sender {
    fn send(&mut self, bytes: &[u8], peer: &Client, copies: usize) -> io::Result<()> {
        let descriptors = vec![peer.copy().as_fd(); copies];
        fdpass::send(self.0.as_ref().unwrap(), bytes, &descriptors).map(drop)
    }

    fn close(&mut self) {
        self.0 = None;
    }

    fn hear(&mut self) -> (Vec<u8>, usize) {
        let (mut told, mut descriptors) = (vec![0; 1 << 20], Vec::new());
        let count = self.0.as_ref().unwrap().hear(&mut told, &mut descriptors).unwrap();
        told.truncate(count);
        (told, descriptors.len())
    }

    fn read_to_end(&mut self) -> Vec<u8> {
        let mut told = Vec::new();
        self.0.as_ref().unwrap().read_to_end(&mut told).unwrap();
        told
    }
}
