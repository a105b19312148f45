// SPDX-License-Identifier: BSD-3-Clause

//! The rc.d(8) scripts of the ports of FreeBSD, NetBSD and OpenBSD, on the rc.subr(8) of the system where it
//! is that one, and else on a stand-in for it, under the shell that is closest to the system's.

use crate::service::{Service, find, stand_in};
use lingerd_platform::process;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use support::daemon::{Daemon, Ended, mode, ps};
use support::{is_root, skip, tcp, wait_until};

#[derive(Clone, Copy, PartialEq, Eq)]
enum System {
    Freebsd,
    Netbsd,
    Openbsd,
}
use System::{Freebsd, Netbsd, Openbsd};

/// A user that no system has.
const NOBODY: u32 = 64_007;

/// A script, and what its system is like.
struct Rc {
    system: System,
    name: String,
    service: Service,
}

impl Rc {
    /// The script of `system`, enabled, with options by which the daemon ends nothing by time, and runs as
    /// a user of its own. `None` where the test is to be skipped.
    fn install(system: System) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let (os, source, shells, subr, substitute): (_, _, &[&str], _, &str) = match system {
            Freebsd => {
                ("freebsd", "platform/freebsd/files/lingerd.in", &["dash", "sh"], "/etc/rc.subr", "rc.subr")
            }
            Netbsd => {
                ("netbsd", "platform/netbsd/files/lingerd.sh", &["dash", "sh"], "/etc/rc.subr", "rc.subr")
            }
            Openbsd => {
                let shells = &["oksh", "loksh", "mksh"];
                ("openbsd", "platform/openbsd/pkg/lingerd.rc", shells, "/etc/rc.d/rc.subr", "openbsd-rc.subr")
            }
        };
        let is_real = std::env::consts::OS == os && Path::new(subr).exists();
        let shell: OsString = match (is_real, system) {
            (true, Openbsd) => "/bin/ksh".into(),
            (true, _) => "/bin/sh".into(),
            (false, _) => match find(shells) {
                Some(shell) => shell.into(),
                None => {
                    skip(&format!("there is none of the shells {}", shells.join(", ")));
                    return None;
                }
            },
        };
        // OpenBSD keeps by the script's name what runs, for the whole system.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = match system {
            Openbsd => format!("lingerd_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)),
            _ => "lingerd".to_owned(),
        };
        let service = Service::install(source, &name, &shell, |script, prefix| {
            let substituted = [
                ("%%PREFIX%%", prefix),
                ("%%USERS%%", "lingerd"),
                ("@RCD_SCRIPTS_SHELL@", "/bin/sh"),
                ("@PREFIX@", prefix),
                ("@LINGERD_USER@", "lingerd"),
                ("@APACHE_GROUP@", "www"),
                ("${TRUEPREFIX}", prefix),
            ];
            let script = substituted.iter().fold(script, |script, (name, value)| script.replace(name, value));
            assert!(
                !script.contains("%%") && !script.contains("@LINGERD"),
                "what is left to substitute: {script}"
            );
            assert_eq!(script.matches(subr).count(), if system == Netbsd { 2 } else { 1 });
            if is_real { script } else { script.replace(subr, stand_in(substitute).to_str().unwrap()) }
        });
        let mut rc = Rc { system, name, service };
        rc.service.set("RC_SYSTEM", os);
        rc.service.set("RC_SHELL", shell.to_str().unwrap());
        match system {
            Freebsd => rc.service.set("lingerd_enable", "YES"),
            Netbsd => rc.service.set("lingerd", "YES"),
            Openbsd => {}
        }
        if system != Openbsd {
            rc.service.set("lingerd_pidfile", rc.service.site.pidfile().to_str().unwrap());
        }
        rc.set_flags("-W 1000");
        Some(rc)
    }

    /// Sets the daemon's options: these, and what each test needs.
    fn set_flags(&mut self, more: &str) {
        let site = &self.service.site;
        let mut flags =
            format!("-s {} -u {NOBODY}:{NOBODY} -t 1000 -T 2000 -D 4000 {more}", site.socket().display());
        if self.system == Openbsd {
            flags = format!("{flags} -p {}", site.pidfile().display());
        }
        self.service.set(&format!("{}_flags", self.name), flags);
    }

    fn run(&self, action: &str) -> Ended {
        self.service.run(&[action])
    }

    fn start(&self) -> Daemon {
        self.service.must(&["start"]);
        self.daemon()
    }

    /// The daemon that runs. It is killed when this is dropped.
    fn daemon(&self) -> Daemon {
        self.service.site.in_background()
    }

    /// What the pid file says.
    fn pid(&self) -> i32 {
        let says = fs::read_to_string(self.service.site.pidfile()).unwrap();
        says.lines().next().expect("the pid file is empty").parse().unwrap()
    }

    /// That the script says whether it runs: as that process, or not at all.
    #[track_caller]
    fn assert_runs(&self, pid: Option<i32>) {
        let ended = self.run(if self.system == Openbsd { "check" } else { "status" });
        let said = match (self.system, pid) {
            (Openbsd, Some(_)) => format!("{}(ok)\n", self.name),
            (Openbsd, None) => format!("{}(failed)\n", self.name),
            (_, Some(pid)) => format!("lingerd is running as pid {pid}.\n"),
            (_, None) => "lingerd is not running.\n".to_owned(),
        };
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(pid.is_none().into()), said.as_str()),
            "{ended:?}"
        );
    }

    /// That nobody serves.
    #[track_caller]
    fn assert_nobody_serves(&self) {
        assert_eq!(self.service.site.ask("json").code, Some(3));
    }
}

impl Drop for Rc {
    fn drop(&mut self) {
        // One that a test has failed to take charge of; the second time at once.
        let _ = (self.service.site.stop(), self.service.site.stop());
        // What OpenBSD keeps of a daemon that was not stopped by its script.
        if self.system == Openbsd {
            let _ = fs::remove_file(Path::new("/var/run/rc.d").join(&self.name));
        }
    }
}

/// That it has failed and said why.
#[track_caller]
fn assert_failed(ended: &Ended, part: &str) {
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    assert!(ended.stdout.contains(part) || ended.stderr.contains(part), "nothing of '{part}' in {ended:?}");
}

fn it_is_started_asked_and_stopped(system: System) {
    let Some(rc) = Rc::install(system) else { return };
    rc.assert_runs(None);
    let mut daemon = rc.start();
    rc.assert_runs(Some(daemon.pid));
    // It has made the directory of its socket itself.
    let directory = rc.service.site.path("run");
    assert_eq!((directory.metadata().unwrap().uid(), mode(&directory)), (NOBODY, 0o755));
    assert_eq!(ps(daemon.pid, "uid"), NOBODY.to_string());
    let (client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    drop(client);
    daemon.wait_for("lingering=0 closed=1");
    rc.service.must(&["stop"]);
    // It has waited for that.
    rc.assert_nobody_serves();
    daemon.wait_for_end();
    rc.assert_runs(None);
}

fn it_is_started_once(system: System) {
    let Some(rc) = Rc::install(system) else { return };
    let daemon = rc.start();
    let again = rc.run("start");
    match system {
        Openbsd => assert_eq!(again.code, Some(0), "as rc.d(8) has it: {again:?}"),
        _ => {
            assert_failed(&again, "lingerd already running?");
            assert_failed(&again, &format!("pid={}", daemon.pid));
        }
    }
    assert_eq!(rc.pid(), daemon.pid);
    rc.assert_runs(Some(daemon.pid));
}

fn where_none_runs_there_is_none_to_stop_or_to_reload(system: System) {
    let Some(rc) = Rc::install(system) else { return };
    let stop = rc.run("stop");
    match system {
        Openbsd => assert_eq!(stop.code, Some(0), "as rc.d(8) has it: {stop:?}"),
        _ => assert_failed(&stop, "lingerd not running?"),
    }
    let reload = rc.run("reload");
    assert_failed(&reload, if system == Openbsd { "(failed)" } else { "lingerd not running?" });
    rc.assert_nobody_serves();
    // What a daemon has left that was killed is none.
    let daemon = rc.start();
    let pid = daemon.pid;
    daemon.kill();
    wait_until("the system has done with it", || process::kill(pid, 0).is_err());
    rc.assert_runs(None);
    assert_failed(&rc.run("reload"), if system == Openbsd { "(failed)" } else { "lingerd not running?" });
    let daemon = rc.start();
    rc.assert_runs(Some(daemon.pid));
}

fn wrong_flags_are_an_error_that_says_which(system: System) {
    let Some(mut rc) = Rc::install(system) else { return };
    for (flags, part) in [("-W soon", "lingerd: -W 'soon'"), ("-g no-such-name", "no such group")] {
        rc.set_flags(flags);
        let ended = match system {
            // It shows what is said on request.
            Openbsd => {
                assert_failed(&rc.run("start"), &format!("{}(failed)", rc.name));
                rc.service.run(&["-d", "start"])
            }
            _ => rc.run("start"),
        };
        assert_failed(&ended, part);
        rc.assert_nobody_serves();
    }
}

fn it_is_not_started_unless_it_is_enabled(system: System) {
    let Some(mut rc) = Rc::install(system) else { return };
    let (variable, how) = match system {
        Freebsd => ("lingerd_enable".to_owned(), "Set lingerd_enable to YES"),
        Netbsd => ("lingerd".to_owned(), "onestart"),
        Openbsd => (format!("{}_flags", rc.name), "need -f"),
    };
    rc.service.set(&variable, "NO");
    let ended = rc.run("start");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains(how), "{ended:?}");
    rc.assert_nobody_serves();
}

fn a_reload_has_another_one_take_everything_over(system: System) {
    let Some(mut rc) = Rc::install(system) else { return };
    // How it is started holds for one that takes over, too.
    let nice = |pid| ps(pid, "nice").parse::<i32>().unwrap();
    let nicer = nice(std::process::id() as i32) + 1;
    rc.service.set("lingerd_nice", "1");
    let old = rc.start();
    let sender = old.sender();
    let (mut clients, servers) = tcp::connections(4);
    let mut servers = servers.into_iter();
    servers.by_ref().take(2).for_each(|server| sender.hand_over(server));
    old.wait_for("lingering=2 senders=1");
    // What is set since comes into force, but on OpenBSD, where a daemon keeps its flags until it is stopped.
    if system != Openbsd {
        rc.set_flags("-W 1000 -m 0606");
    }
    let mut last = old;
    for round in 1..=2 {
        rc.service.must(&["reload"]);
        let new = rc.daemon();
        assert_ne!(new.pid, last.pid, "another one serves");
        last.wait_for_end();
        rc.assert_runs(Some(new.pid));
        sender.hand_over(servers.next().unwrap());
        new.wait_for(&format!("lingering={0} handed_over={0} senders=1 stopped=0", 2 + round));
        last = new;
    }
    if system != Openbsd {
        assert_eq!(mode(&rc.service.site.socket()), 0o606);
        assert_eq!(nice(last.pid), nicer);
    }
    clients[0].shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(tcp::read_to_end(&mut clients[0]), b"", "it was half-closed, and is not reset");
    drop(clients);
    last.wait_for("lingering=0 closed=4");
    rc.service.must(&["stop"]);
    last.wait_for_end();
    rc.assert_runs(None);
}

fn a_reload_that_fails_leaves_the_one_that_serves(system: System) {
    let Some(mut rc) = Rc::install(system) else { return };
    let daemon = rc.start();
    let sender = daemon.sender();
    let (clients, servers) = tcp::connections(2);
    let mut servers = servers.into_iter();
    sender.hand_over(servers.next().unwrap());
    daemon.wait_for("lingering=1");
    // An upgrade that went wrong.
    let program = fs::read_link(&rc.service.program).unwrap();
    rc.service.link_program(&find(&["false"]).expect("there is no false(1)"));
    assert!(rc.run("reload").code.is_some_and(|code| code != 0));
    rc.service.link_program(&program);
    // OpenBSD's does not read what is set now.
    if system != Openbsd {
        for (flags, part) in [("-W soon", "lingerd: -W 'soon'"), ("-n 0", "lingerd: -n '0'")] {
            rc.set_flags(flags);
            assert_failed(&rc.run("reload"), part);
        }
    }
    assert_eq!(rc.pid(), daemon.pid);
    rc.assert_runs(Some(daemon.pid));
    sender.hand_over(servers.next().unwrap());
    daemon.wait_for("lingering=2 senders=1");
    drop(clients);
    daemon.wait_for("lingering=0 closed=2");
}

fn a_restart_gives_what_lingers_its_time_and_ends(system: System) {
    let Some(mut rc) = Rc::install(system) else { return };
    rc.set_flags("-W 0.2");
    let mut old = rc.start();
    let sender = old.sender();
    let (mut client, server) = tcp::connection();
    sender.hand_over(server);
    old.wait_for("lingering=1");
    rc.service.must(&["restart"]);
    old.wait_for_end();
    let new = rc.daemon();
    assert_ne!(new.pid, old.pid);
    rc.assert_runs(Some(new.pid));
    sender.wait_until_hung_up();
    tcp::write_until_gone(&mut client);
    // Senders come back, and the counters begin anew.
    let (_client, server) = tcp::connection();
    new.sender().hand_over(server);
    new.wait_for("lingering=1 handed_over=1");
}

macro_rules! on_each_system {
    ($($behaviour:ident)*) => {
        mod freebsd { $(#[test] fn $behaviour() { super::$behaviour(super::Freebsd) })* }
        mod netbsd { $(#[test] fn $behaviour() { super::$behaviour(super::Netbsd) })* }
        mod openbsd { $(#[test] fn $behaviour() { super::$behaviour(super::Openbsd) })* }
    };
}

on_each_system! {
    it_is_started_asked_and_stopped
    it_is_started_once
    where_none_runs_there_is_none_to_stop_or_to_reload
    wrong_flags_are_an_error_that_says_which
    it_is_not_started_unless_it_is_enabled
    a_reload_has_another_one_take_everything_over
    a_reload_that_fails_leaves_the_one_that_serves
    a_restart_gives_what_lingers_its_time_and_ends
}
