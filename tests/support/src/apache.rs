// SPDX-License-Identifier: BSD-3-Clause

//! A real Apache in a directory of its own: found where it is installed, with mod_lingerd built for
//! it and a configuration written for the test.
//!
//! Whoever starts one is told what is missing; whether that is a reason to skip is theirs to say.

use crate::built::{project, scratch};
use crate::daemon::{Ended, Site, run};
use crate::{skip, wait_until};
use lingerd_platform::process;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write, stderr};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;

/// What Apache logs when it has started, and each time when it has restarted.
const READY: &str = "resuming normal operations";

/// Where servers are on systems that keep them out of PATH: Debian, FreeBSD and OpenBSD, NetBSD,
/// OpenIndiana, OmniOS.
const SERVER_DIRECTORIES: [&str; 6] = [
    "/usr/sbin",
    "/usr/local/sbin",
    "/usr/pkg/sbin",
    "/usr/pkg/bin",
    "/usr/apache2/2.4/bin",
    "/opt/ooce/apache-2.4/bin",
];

/// Runs a command, here a server, which must not outlive us, however we end: once standard input is
/// closed it is told to stop. Apache stops by a signal to its whole process group, so that it has
/// to have one of its own, and Ctrl-C does not reach it.
const GUARDED: &str =
    "exec 3<&0 </dev/null; { read -r _ <&3; kill -TERM -$$; } & exec 3<&-; exec \"$0\" \"$@\"";

/// `program` as a command that ends when we do, and says what goes wrong in `site`'s stderr.
pub fn guarded(program: &Path, site: &Site) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", GUARDED]).arg(program).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(File::create(site.path("stderr")).unwrap());
    command
}

/// Whom an Apache started by root may become, by system.
pub const USERS: [&str; 7] = ["www-data", "www", "apache", "webservd", "_www", "daemon", "nobody"];

/// The one of these that there is.
///
/// # Errors
/// There is none.
pub fn user() -> Result<process::User, String> {
    let user = USERS.iter().find_map(|name| process::user(name).ok().flatten());
    user.ok_or_else(|| "there is no user for Apache to run as".to_owned())
}

/// What is installed on this system.
struct Installation {
    httpd: PathBuf,
    apxs: PathBuf,
    /// Where its modules are.
    modules: PathBuf,
    /// The names of those that are compiled in.
    compiled_in: String,
}

impl Installation {
    /// Looks for it, once; the error says what is missing.
    fn find() -> Result<&'static Self, String> {
        static FOUND: OnceLock<Result<Installation, String>> = OnceLock::new();
        FOUND.get_or_init(Self::look).as_ref().map_err(String::clone)
    }

    fn look() -> Result<Self, String> {
        let apxs = program("APXS", &["apxs", "apxs2"])?;
        let query = |what| run(Command::new(&apxs).args(["-q", what])).stdout.trim().to_owned();
        // It is apxs that knows which one is Apache: OpenBSD has a httpd of its own.
        let httpd = program("HTTPD", &[&format!("{}/{}", query("sbindir"), query("progname"))])?;
        let modules = query("LIBEXECDIR").into();
        let compiled_in = run(Command::new(&httpd).arg("-l")).stdout;
        Ok(Installation { httpd, apxs, modules, compiled_in })
    }

    /// The configuration line that loads a module, if it needs one.
    fn load(&self, module: &str) -> Result<String, String> {
        if self.compiled_in.lines().any(|line| line.trim() == format!("mod_{module}.c")) {
            return Ok(String::new());
        }
        let names = [format!("mod_{module}.so"), format!("{module}.so")]; // mpm_itk has no mod_
        let file = names.map(|name| self.modules.join(name)).into_iter().find(|file| file.exists());
        let file = file.ok_or_else(|| format!("Apache has no mod_{module} here"))?;
        Ok(format!("LoadModule {module}_module \"{}\"\n", file.display()))
    }

    /// The same for mod_php, whose file and module are called by its version.
    fn load_php(&self) -> Result<String, String> {
        let files = fs::read_dir(&self.modules).map_err(|e| format!("{}: {e}", self.modules.display()))?;
        let file = files
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find(|name| name.starts_with("libphp") && name.ends_with(".so"))
            .ok_or("there is no mod_php")?;
        let module = if file.starts_with("libphp7") { "php7_module" } else { "php_module" };
        Ok(format!("LoadModule {module} \"{}\"\n", self.modules.join(file).display()))
    }

    /// mod_lingerd, built once with every warning an error.
    fn mod_lingerd(&self) -> &'static Path {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        BUILT.get_or_init(|| {
            let target = scratch();
            let directory = target.join(format!("mod_lingerd-{}", std::process::id()));
            let sources = project();
            for source in [
                "apache-2.4/mod_lingerd.c",
                "apache-2.4/spool.c",
                "apache-2.4/park.c",
                "apache-2.4/status.c",
                "apache-1.3/ap_lingerd.c",
                "apache-1.3/ap_lingerd.h",
            ] {
                let copy = directory.join(source);
                fs::create_dir_all(copy.parent().unwrap()).unwrap();
                fs::copy(sources.join(source), copy).unwrap();
            }
            let built = run(Command::new(&self.apxs)
                .current_dir(directory.join("apache-2.4"))
                .args(["-c", "-Wc,-Wall", "-Wc,-Wextra", "-Wc,-Wdeclaration-after-statement", "-Wc,-Werror"])
                .args(["-I../apache-1.3", "mod_lingerd.c", "../apache-1.3/ap_lingerd.c"]));
            assert_eq!(built.code, Some(0), "mod_lingerd does not build: {}{}", built.stdout, built.stderr);
            // Moved at once to where another run may have its own, just as good.
            let module = target.join("mod_lingerd.so");
            fs::rename(directory.join("apache-2.4/.libs/mod_lingerd.so"), &module).unwrap();
            let _ = fs::remove_dir_all(directory);
            module
        })
    }
}

/// The program that the environment variable names, or else the first one there is of `names`.
pub fn program(variable: &str, names: &[&str]) -> Result<PathBuf, String> {
    let given = std::env::var(variable).ok();
    let names = given.as_deref().map_or(names.to_vec(), |name| vec![name]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<_> =
        std::env::split_paths(&path).chain(SERVER_DIRECTORIES.map(PathBuf::from)).collect();
    // An absolute path replaces the directory that it is joined to.
    let mut candidates =
        names.iter().flat_map(|name| directories.iter().map(move |directory| directory.join(name)));
    candidates.find(|file| file.is_file()).ok_or_else(|| format!("there is no {}", names.join(" or ")))
}

/// The Apache that is installed.
///
/// # Errors
/// What is missing on this system.
pub fn httpd() -> Result<&'static Path, String> {
    Installation::find().map(|installation| &*installation.httpd)
}

/// mod_lingerd, built for the Apache that is installed.
///
/// # Errors
/// What is missing on this system.
pub fn mod_lingerd() -> Result<&'static Path, String> {
    Installation::find().map(Installation::mod_lingerd)
}

/// Builds a module of one file for the Apache that is installed; `None` when the test is to be skipped.
pub fn build_module(site: &Site, name: &str, source: &str) -> Option<PathBuf> {
    let installation = Installation::find().map_err(|missing| skip(&missing)).ok()?;
    let directory = site.path(name);
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join(format!("{name}.c")), source).unwrap();
    let mut apxs = Command::new(&installation.apxs);
    let built =
        run(apxs.current_dir(&directory).args(["-c", "-Wc,-Wall", "-Wc,-Werror", &format!("{name}.c")]));
    assert_eq!(built.code, Some(0), "{name} does not build: {}{}", built.stdout, built.stderr);
    Some(directory.join(format!(".libs/{name}.so")))
}

/// How Apache serves its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mpm {
    /// A process for each.
    Prefork,
    /// A thread for each.
    Worker,
    /// A thread for each that has something to do.
    Event,
}

/// An Apache to be.
pub struct Setup {
    mpm: Mpm,
    children: usize,
    workers: usize,
    ip: IpAddr,
    also_v6: bool,
    modules: Vec<&'static str>,
    lingerd: Option<PathBuf>,
    php: bool,
    cgi: bool,
    tls: bool,
    first_lines: String,
    lines: String,
    other: String,
    environment: Vec<(&'static str, PathBuf)>,
    user: Option<u32>,
    process_1: bool,
    under: Vec<OsString>,
}

impl Setup {
    /// Two workers, no keep-alive, no module beyond what it takes to serve a file.
    pub fn new(mpm: Mpm) -> Self {
        Setup {
            mpm,
            children: 1,
            workers: 2,
            ip: Ipv4Addr::LOCALHOST.into(),
            also_v6: false,
            modules: Vec::new(),
            lingerd: None,
            php: false,
            cgi: false,
            tls: false,
            first_lines: String::new(),
            lines: String::new(),
            other: String::new(),
            environment: Vec::new(),
            user: None,
            process_1: false,
            under: Vec::new(),
        }
    }

    /// Two prefork workers that hand over to the lingerd at `socket`.
    pub fn prefork(socket: &Path) -> Self {
        Setup::new(Mpm::Prefork).lingerd(socket)
    }

    /// With mod_lingerd.
    pub fn lingerd(mut self, socket: &Path) -> Self {
        self.lingerd = Some(socket.to_owned());
        self
    }

    /// Workers: processes of prefork, threads of a child else.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Child processes, other than with prefork, where they are the workers.
    pub fn children(mut self, children: usize) -> Self {
        self.children = children;
        self
    }

    /// On another address than 127.0.0.1.
    pub fn listen(mut self, ip: IpAddr) -> Self {
        self.ip = ip;
        self
    }

    /// Also on ::1, with the same port as elsewhere; only where the system has IPv6.
    pub fn also_v6(mut self) -> Self {
        self.also_v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
        self
    }

    /// With more of Apache's own modules.
    pub fn modules(mut self, names: &[&'static str]) -> Self {
        self.modules.extend(names);
        self
    }

    /// With mod_php for files that end in .php.
    pub fn php(mut self) -> Self {
        self.php = true;
        self
    }

    /// With mod_cgi or mod_cgid for files that end in .cgi.
    pub fn cgi(mut self) -> Self {
        self.cgi = true;
        self
    }

    /// With TLS on the other port.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// With a shared library that is loaded before any module is.
    pub fn load_file_first(mut self, file: &Path) -> Self {
        self.first_lines += &format!("LoadFile \"{}\"\n", file.display());
        self
    }

    /// With a path in its environment.
    pub fn environment(mut self, variable: &'static str, path: &Path) -> Self {
        self.environment.push((variable, path.to_owned()));
        self
    }

    /// Started as this user, and with the group of the same number, in place of root.
    pub fn user(mut self, id: u32) -> Self {
        self.user = Some(id);
        self
    }

    /// As process 1 of its container, as an engine starts it: the leader of a session. Linux only.
    pub fn process_1(mut self) -> Self {
        self.process_1 = true;
        self
    }

    /// Run by a program that looks at it, with that one's arguments; Apache's command line follows.
    pub fn under(mut self, program: &[OsString]) -> Self {
        self.under = program.to_vec();
        self
    }

    /// With more lines of configuration; later ones win.
    pub fn with(mut self, lines: &str) -> Self {
        self.lines += lines;
        self.lines += "\n";
        self
    }

    /// With these lines in the virtual host on the other port.
    pub fn with_other(mut self, lines: &str) -> Self {
        self.other += lines;
        self.other += "\n";
        self
    }

    /// Starts it and waits until it serves; `None` when the test is to be skipped.
    pub fn start(&self) -> Option<Apache> {
        self.try_start().map_err(|missing| skip(&missing)).ok()
    }

    /// What `httpd -t` says of the configuration; `None` when the test is to be skipped.
    pub fn check(&self) -> Option<Ended> {
        self.ask("-t")
    }

    /// What `httpd` with this option, such as -L, says; `None` when the test is to be skipped.
    pub fn ask(&self, option: &str) -> Option<Ended> {
        let site = Site::new();
        let written = self.write(&site, [1, 2]);
        let installation = written.map_err(|missing| skip(&missing)).ok()?;
        Some(run(Command::new(&installation.httpd).arg(option).arg("-f").arg(site.path("httpd.conf"))))
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// What is missing on this system.
    pub fn try_start(&self) -> Result<Apache, String> {
        // Apache cannot choose a port by itself, so that another process may take it first.
        for _ in 0..10 {
            let site = Site::new();
            let addresses = free_addresses(self.ip);
            let installation = self.write(&site, addresses.map(|address| address.port()))?;
            let unshare = Path::new("unshare");
            let program = self.under.first().map_or(installation.httpd.as_path(), Path::new);
            let mut command = guarded(if self.process_1 { unshare } else { program }, &site);
            if self.process_1 {
                command
                    .args(["--pid", "--mount-proc", "--fork", "--kill-child", "setsid"])
                    .arg(&installation.httpd);
            }
            if let Some((_, arguments)) = self.under.split_first() {
                command.args(arguments).arg(&installation.httpd);
            }
            command.arg("-DFOREGROUND").arg("-f").arg(site.path("httpd.conf"));
            command.envs(self.environment.iter().map(|(variable, path)| (variable, path)));
            if let Some(id) = self.user {
                chown(site.path(""), Some(id), Some(id)).unwrap();
                command.uid(id).gid(id).current_dir("/");
            }
            let child = command.spawn().map_err(|e| format!("sh: {e}"))?;
            let [address, other] = addresses;
            let v6 = self.also_v6.then(|| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()));
            let pid = child.id() as i32;
            let mut apache = Apache { site, child, pid, address, v6, other };
            wait_until("Apache serves", || apache.error_log().contains(READY) || apache.has_ended());
            if !apache.has_ended() {
                if self.process_1 {
                    // The other child is the shell that guards it.
                    let children = ["-o", "pid=,comm=", "--ppid", &pid.to_string()];
                    let children = run(Command::new("ps").args(children)).stdout;
                    let inside = children.lines().find_map(|line| {
                        let (pid, name) = line.trim().split_once(' ')?;
                        (name.trim() != "sh").then(|| pid.parse().unwrap())
                    });
                    apache.pid = inside.expect("a process 1");
                }
                return Ok(apache);
            }
            let said = fs::read_to_string(apache.site.path("stderr")).unwrap() + &apache.error_log();
            assert!(said.contains("could not bind to address"), "Apache does not start:\n{said}");
        }
        panic!("there is no free port for Apache");
    }

    /// Writes the configuration and what it needs into `site`.
    fn write(&self, site: &Site, ports: [u16; 2]) -> Result<&'static Installation, String> {
        let installation = Installation::find()?;
        let directory = site.path("");
        let directory = directory.to_str().ok_or("the temporary directory has no UTF-8 name")?;
        let documents = site.path("htdocs");
        fs::create_dir(&documents).unwrap();
        // Root's Apache serves as somebody else, whatever our umask is.
        for path in [site.path(""), documents] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }

        let mut conf = format!(
            "ServerRoot \"{directory}\"\nServerName localhost\nDefaultRuntimeDir \"{directory}\"\n\
             PidFile httpd.pid\nErrorLog error_log\nDocumentRoot htdocs\nKeepAlive Off\nListenBacklog 4096\n\
             <Directory />\nAllowOverride None\n</Directory>\nListen {}\n",
            SocketAddr::new(self.ip, ports[0])
        );
        if self.also_v6 {
            conf += &format!("Listen {}\n", SocketAddr::new(Ipv6Addr::LOCALHOST.into(), ports[0]));
        }
        if cfg!(not(target_os = "linux")) {
            // FreeBSD has its filters in kernel modules, and Apache warns where they are missing.
            conf += "AcceptFilter http none\nAcceptFilter https none\n";
        }
        conf += &self.first_lines;
        conf += &self.mpm_lines(installation)?;
        conf += &installation.load("authz_core")?;
        conf += &installation.load("log_config")?;
        for module in &self.modules {
            conf += &installation.load(module)?;
        }
        conf += "LogFormat \"%X %>s %B %P %U\" lingerd\nCustomLog access_log lingerd\n";
        if process::effective_uid() == 0 && self.user.is_none() {
            let user = user()?;
            conf += &installation.load("unixd")?;
            conf += &format!("User {}\nGroup #{}\n", user.name, user.gid);
        }
        if self.php {
            conf += &installation.load_php()?;
            conf += "<FilesMatch \\.php$>\nSetHandler application/x-httpd-php\n</FilesMatch>\n";
        }
        if self.cgi {
            conf += &match self.mpm {
                Mpm::Prefork => installation.load("cgi")?,
                _ => installation.load("cgid")? + "ScriptSock cgi.sock\n",
            };
            conf += "<Directory />\nOptions ExecCGI\n</Directory>\n\
                     <FilesMatch \\.cgi$>\nSetHandler cgi-script\n</FilesMatch>\n";
        }
        let mut other = self.other.clone();
        if self.tls {
            make_certificate(site)?;
            conf += &installation.load("socache_shmcb")?;
            conf += &installation.load("ssl")?;
            conf += "SSLSessionCache shmcb:tls_sessions(65536)\n";
            other += "SSLEngine on\nSSLCertificateFile cert.pem\nSSLCertificateKeyFile key.pem\n";
        }
        if let Some(socket) = &self.lingerd {
            let mut module = installation.mod_lingerd().to_owned();
            if self.user.is_some() {
                let copy = site.path("mod_lingerd.so"); // the build directory may be closed to that one
                fs::copy(&module, &copy).unwrap();
                module = copy;
            }
            conf += &format!("LoadModule lingerd_module \"{}\"\n", module.display());
            conf += &format!("LingerdSocket \"{}\"\n", socket.display());
        }
        conf += &self.lines;
        if !other.is_empty() {
            // A single listener is cheaper, so that there is a second one only for these.
            let address = SocketAddr::new(self.ip, ports[1]);
            conf += &format!("Listen {address}\n<VirtualHost {address}>\n{other}</VirtualHost>\n");
        }
        fs::write(site.path("httpd.conf"), conf).unwrap();
        Ok(installation)
    }

    /// The MPM, with exactly as many workers as were asked for.
    fn mpm_lines(&self, installation: &Installation) -> Result<String, String> {
        let (children, workers) = (self.children, self.workers);
        let all = children * workers;
        let module = match self.mpm {
            Mpm::Prefork => "mpm_prefork",
            Mpm::Worker => "mpm_worker",
            Mpm::Event => "mpm_event",
        };
        let lines = match self.mpm {
            Mpm::Prefork => format!(
                "ServerLimit {workers}\nMaxRequestWorkers {workers}\nStartServers {workers}\n\
                 MinSpareServers {workers}\nMaxSpareServers {workers}\n"
            ),
            Mpm::Worker | Mpm::Event => format!(
                "ServerLimit {children}\nThreadLimit {workers}\nThreadsPerChild {workers}\n\
                 MaxRequestWorkers {all}\nStartServers {children}\n\
                 MinSpareThreads {all}\nMaxSpareThreads {all}\n"
            ),
        };
        Ok(installation.load(module)? + &lines)
    }
}

/// Addresses on which nobody listens right now.
pub fn free_addresses<const N: usize>(ip: IpAddr) -> [SocketAddr; N] {
    let listeners = [(); N].map(|()| TcpListener::bind((ip, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

/// Puts a file where a server finds it, whatever our umask is.
pub fn put_up(file: &Path, content: &[u8], mode: u32) {
    fs::write(file, content).unwrap();
    fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
}

/// A self-signed certificate for localhost, and its key.
pub fn make_certificate(site: &Site) -> Result<(), String> {
    let openssl = program("OPENSSL", &["openssl"])?;
    let made = run(Command::new(openssl)
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .arg("-keyout")
        .arg(site.path("key.pem"))
        .arg("-out")
        .arg(site.path("cert.pem")));
    assert_eq!(made.code, Some(0), "{made:?}");
    Ok(())
}

/// A running Apache. Dropping it stops it, and shows its log if the test has failed.
pub struct Apache {
    /// Where it keeps its files.
    pub site: Arc<Site>,
    child: Child,
    pid: i32,
    /// Where it serves.
    pub address: SocketAddr,
    /// Where it also serves, if it was to and can.
    pub v6: Option<SocketAddr>,
    /// Its other port, with TLS if it has that.
    pub other: SocketAddr,
}

impl Apache {
    /// The parent process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Puts a file up.
    pub fn publish(&self, name: &str, content: &[u8]) {
        self.publish_with_mode(name, content, 0o644);
    }

    /// Puts a program up.
    pub fn publish_program(&self, name: &str, content: &str) {
        self.publish_with_mode(name, content.as_bytes(), 0o755);
    }

    fn publish_with_mode(&self, name: &str, content: &[u8], mode: u32) {
        put_up(&self.site.path("htdocs").join(name), content, mode);
    }

    /// What it has logged but requests.
    pub fn error_log(&self) -> String {
        self.log("error_log")
    }

    /// The lines of the error log with `part` in them.
    pub fn errors_with(&self, part: &str) -> Vec<String> {
        self.error_log().lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
    }

    /// The requests it has logged: `%X %>s %B %P %U`.
    pub fn access_log(&self) -> Vec<String> {
        self.log("access_log").lines().map(str::to_owned).collect()
    }

    fn log(&self, name: &str) -> String {
        match fs::read(self.site.path(name)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => panic!("{name}: {e}"),
        }
    }

    /// `apachectl graceful`; comes back when the new configuration is in force.
    pub fn restart_gracefully(&self) {
        self.restart_by(libc::SIGUSR1);
    }

    /// `apachectl restart`, which ends the workers; comes back when the new configuration is in force.
    pub fn restart(&self) {
        self.restart_by(libc::SIGHUP);
    }

    fn restart_by(&self, signal: i32) {
        let before = self.errors_with(READY).len();
        process::kill(self.pid(), signal).unwrap();
        wait_until("Apache has restarted", || self.errors_with(READY).len() > before);
    }

    /// Stops it, workers in mid-linger too.
    pub fn stop(&mut self) {
        process::kill(self.pid(), libc::SIGTERM).unwrap();
        self.wait_for_end();
    }

    /// Waits until it has ended.
    pub fn wait_for_end(&mut self) {
        wait_until("Apache ends", || self.has_ended());
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        if thread::panicking() {
            // Not eprintln!, which panics where nobody listens any more.
            let _ = writeln!(stderr(), "Apache's log:\n{}", self.error_log());
            let _ = process::kill(-(self.child.id() as i32), libc::SIGKILL); // the whole group
            let _ = self.child.wait();
        } else if !self.has_ended() {
            self.stop();
        }
    }
}
