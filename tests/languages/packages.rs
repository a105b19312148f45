// SPDX-License-Identifier: BSD-3-Clause

//! The packages themselves: their own tests, how they are installed, and the servers in their READMEs.

use crate::server::{sender, without};
use lingerd_platform::process;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use support::daemon::{Site, run};
use support::{built, http, skip, tcp, wait_until};

/// Whether it is there; else the test is skipped.
fn have(program: &str, arguments: &[&str]) -> bool {
    let missing = without(program, arguments);
    if missing.is_some() {
        skip(&format!(
            "there is no {program} that runs {arguments:?} ('sh ci/packages check' gets it on Debian)"
        ));
    }
    missing.is_none()
}

fn have_ruby() -> bool {
    have("ruby", &["-e", "exit RUBY_VERSION >= '3.1'"])
}

fn have_perl() -> bool {
    have("perl", &["-MSocket::MsgHdr", "-MExtUtils::MakeMaker", "-e1"])
}

fn have_php() -> bool {
    have(
        "php",
        &[
            "-r",
            "exit((int) !(PHP_VERSION_ID >= 80200 && extension_loaded('sockets') && extension_loaded('pcntl')));",
        ],
    )
}

/// A copy of a package, beside which what builds it may write.
fn copy_of(site: &Site, name: &str) -> std::path::PathBuf {
    let copied = run(Command::new("cp").arg("-R").arg(sender(name)).arg(site.path("source")));
    assert_eq!(copied.code, Some(0), "{copied:?}");
    site.path("source")
}

#[test]
fn the_gem_s_own_tests_pass() {
    if !have_ruby() {
        return;
    }
    let tests = run(Command::new("ruby").arg("-w").arg(sender("ruby/test/test_sender.rb")));
    assert_eq!((tests.code, tests.stderr.as_str()), (Some(0), ""), "{}", tests.stdout);
    assert!(tests.stdout.contains(" 0 failures, 0 errors, 0 skips"), "{}", tests.stdout);
}

#[test]
fn the_gem_is_built_and_installed_and_needs_nothing() {
    if !have_ruby() {
        return;
    }
    let site = Site::new();
    let source = copy_of(&site, "ruby");
    let version = env!("CARGO_PKG_VERSION");
    let gem = || {
        let mut command = Command::new("gem");
        command.current_dir(&source).env("HOME", site.path("")).env("GEM_HOME", site.path("gems"));
        command
    };
    let built = run(gem().args(["build", "lingerd.gemspec"]));
    assert!(source.join(format!("lingerd-{version}.gem")).exists(), "{built:?}");
    assert_eq!(built.stderr, "");
    let installed =
        run(gem().args(["install", "--local", "--no-document", &format!("lingerd-{version}.gem")]));
    assert_eq!(installed.code, Some(0), "{installed:?}");
    let check = "gem 'lingerd'; require 'lingerd'
        spec = Gem.loaded_specs['lingerd']
        print [spec.version, spec.dependencies.size, spec.license, Lingerd::Sender.new.path].join(' ')";
    let said = run(Command::new("ruby")
        .current_dir(site.path(""))
        .env("GEM_HOME", site.path("gems"))
        .args(["-e", check]));
    assert_eq!(said.stdout, format!("{version} 0 BSD-3-Clause /var/run/lingerd/lingerd.sock"), "{said:?}");
}

#[test]
fn what_is_for_perl_is_made_and_tested_and_installed_as_what_cpan_has() {
    if !have_perl() || !have("make", &["--version"]) {
        return;
    }
    let site = Site::new();
    let source = copy_of(&site, "perl");
    let prefix = format!("INSTALL_BASE={}", site.path("installed").display());
    let made = run(Command::new("perl").current_dir(&source).args(["Makefile.PL", &prefix]));
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""), "{made:?}");
    for target in ["all", "test", "install"] {
        let made = run(Command::new("make").current_dir(&source).env_remove("MAKEFLAGS").arg(target));
        assert_eq!(made.code, Some(0), "{made:?}");
        assert!(target != "test" || made.stdout.contains("Result: PASS"), "{made:?}");
    }
    let check = "use Lingerd::Sender; print $Lingerd::Sender::VERSION, ' ', Lingerd::Sender->new->path";
    let said = run(Command::new("perl")
        .current_dir(site.path(""))
        .env("PERL5LIB", site.path("installed/lib/perl5"))
        .args(["-e", check]));
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(said.stdout, format!("{version} /var/run/lingerd/lingerd.sock"), "{said:?}");
    // All that is there, and nothing that is not.
    let modules = run(Command::new("find").current_dir(source.join("lib")).args([".", "-name", "*.pm"]));
    for module in modules.stdout.lines() {
        assert!(site.path("installed/lib/perl5").join(module).exists(), "{module}");
        let text = fs::read_to_string(source.join("lib").join(module)).unwrap();
        assert!(
            text.contains(&format!("our $VERSION = '{version}';"))
                || text.contains(&format!("= '{version}';"))
        );
    }
}

#[test]
fn the_tests_of_what_is_for_php_pass() {
    if !have_php() {
        return;
    }
    let tests = run(Command::new("php")
        .args(["-d", "error_reporting=-1", "-d", "display_errors=1"])
        .arg(sender("php/tests/sender.php")));
    assert_eq!(tests.code, Some(0), "{tests:?}");
    assert!(tests.stdout.lines().all(|line| line.starts_with("ok - ")), "{}", tests.stdout);
}

/// A server that prints its port, and may start others.
struct Printed {
    process: Child,
    address: SocketAddr,
}

impl Printed {
    fn start(command: &mut Command) -> Self {
        let command = command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse::<u16>().unwrap_or_else(|_| panic!("no port: '{line}'"));
        Printed { process, address: (Ipv4Addr::LOCALHOST, port).into() }
    }

    fn exchange(&self) -> TcpStream {
        let mut client = http::connect(self.address);
        client.write_all(b"hello?\n").unwrap();
        assert_eq!(tcp::read_to_end(&mut client), b"hello\n");
        client
    }
}

impl Drop for Printed {
    fn drop(&mut self) {
        let _ = process::kill(-(self.process.id() as i32), libc::SIGKILL);
        let _ = self.process.wait();
    }
}

/// That the first program in a README lingers with lingerd and without.
fn readme_serves(language: &str, interpreter: &str, arguments: &[&str], library: (&str, &Path)) {
    let readme = fs::read_to_string(sender(language).join("README.md")).unwrap();
    let program = readme.split(&format!("```{language}\n")).nth(1).unwrap().split("```").next().unwrap();
    let site = Site::new();
    let file = site.path("program");
    fs::write(&file, program).unwrap();
    let server = Printed::start(
        Command::new(interpreter)
            .current_dir(built::project())
            .env(library.0, library.1)
            .args(arguments)
            .arg(file)
            .arg(site.socket()),
    );
    server.exchange().shutdown(Shutdown::Write).unwrap();
    let lingerd = site.start(&[]);
    wait_until("the daemon is found", || {
        server.exchange().shutdown(Shutdown::Write).unwrap();
        lingerd.counters()["handed_over"] > 0
    });
    // Of several processes each has to find it.
    let mut held = Vec::new();
    wait_until("lingerd has ten", || {
        held.push(server.exchange());
        lingerd.counters()["lingering"] >= 10
    });
    lingerd.wait_for("rejected=0 protocol_errors=0");
}

#[test]
fn the_server_in_the_readme_for_ruby_lingers_with_lingerd_and_without() {
    if have_ruby() {
        readme_serves("ruby", "ruby", &["-w"], ("RUBYLIB", &sender("ruby/lib")));
    }
}

#[test]
fn the_server_in_the_readme_for_perl_lingers_with_lingerd_and_without() {
    if have_perl() {
        readme_serves("perl", "perl", &["-w"], ("PERL5LIB", &sender("perl/lib")));
    }
}

#[test]
fn the_server_in_the_readme_for_php_lingers_with_lingerd_and_without() {
    if have_php() {
        // In the place of what Composer makes of composer.json.
        let loader =
            format!("auto_prepend_file={}", built::project().join("tests/languages/autoload.php").display());
        readme_serves("php", "php", &["-d", &loader], ("NOTHING", Path::new("")));
    }
}
