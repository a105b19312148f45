// SPDX-License-Identifier: BSD-3-Clause
//! platform/rpm: the spec, built by a real rpmbuild from a tarball as 'make dist' makes it, but that what cargo
//! would build is there already.

use crate::root::{built_tree, have, must, read};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::built;
use support::daemon::Site;

/// A cargo that has nothing left to do.
const CARGO: &str = "#!/bin/sh\necho \"cargo $*\"\n";

/// Builds the packages, and returns where they are; `None` if the test is skipped.
fn packages(site: &Site) -> Option<Vec<PathBuf>> {
    if !have("rpmbuild") || !have("apxs") {
        return None;
    }
    let tree = built_tree(site);
    let version = env!("CARGO_PKG_VERSION");
    let top = site.path("rpm");
    let bin = site.path("bin");
    fs::create_dir_all(top.join("SOURCES")).unwrap();
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("cargo"), CARGO).unwrap();
    fs::set_permissions(bin.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    let name = format!("lingerd-{version}");
    fs::rename(&tree, site.path(&name)).unwrap();
    must(
        Command::new("tar")
            .current_dir(site.path(""))
            .arg("-chf")
            .arg(top.join(format!("SOURCES/{name}.tar.gz")))
            .arg(&name),
    );
    let crates = site.path("crates");
    fs::create_dir_all(crates.join(&name).join("vendor")).unwrap();
    let vendor = top.join(format!("SOURCES/{name}-vendor.tar.xz"));
    must(Command::new("tar").current_dir(&crates).arg("-cJf").arg(vendor).arg(&name));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    must(
        Command::new("rpmbuild")
            .args(["-bb", "--nodeps", "--define", &format!("_topdir {}", top.display())])
            .args(["--define", "_binary_payload w1.gzdio", "--define", "debug_package %{nil}"])
            .arg(built::project().join("platform/rpm/lingerd.spec"))
            .env("PATH", path)
            .env("HOME", site.path("")),
    );
    let list = must(Command::new("find").arg(top.join("RPMS")).args(["-name", "*.rpm"]));
    let mut packages: Vec<PathBuf> = list.lines().map(PathBuf::from).collect();
    packages.sort();
    Some(packages)
}

fn query(package: &Path, what: &str) -> Vec<String> {
    let said = must(Command::new("rpm").args(["-qp", what]).arg(package));
    said.lines().map(str::to_owned).collect()
}

#[test]
fn the_packages_have_all_that_they_should() {
    let site = Site::new();
    let Some(packages) = packages(&site) else { return };
    let [lingerd, module] = &packages[..] else { panic!("{packages:?}") };
    let files = query(lingerd, "-l");
    for file in [
        "/usr/sbin/lingerd",
        "/usr/bin/ablinger",
        "/usr/lib/systemd/system/lingerd.service",
        "/usr/lib/systemd/system/lingerd.socket",
        "/usr/lib/sysusers.d/lingerd.conf",
        "/usr/lib/tmpfiles.d/lingerd.conf",
        "/etc/sysconfig/lingerd",
    ] {
        assert!(files.iter().any(|is| is == file), "no {file} in {files:?}");
    }
    let manuals = ["man8/lingerd.8", "man7/lingerd-protocol.7", "man7/lingerd-tuning.7", "man1/ablinger.1"];
    for manual in manuals.map(|page| format!("/usr/share/man/{page}")) {
        assert!(files.iter().any(|is| is.starts_with(&manual)), "no {manual} in {files:?}");
    }
    assert!(!files.iter().any(|is| is.starts_with("/var/run") || is.starts_with("/run")), "{files:?}");
    assert_eq!(query(lingerd, "--configfiles"), ["/etc/sysconfig/lingerd"]);
    assert_eq!(query(module, "--configfiles"), ["/etc/httpd/conf.modules.d/10-lingerd.conf"]);
    assert!(query(module, "-l").iter().any(|is| is.ends_with("/modules/mod_lingerd.so")));
    assert!(query(module, "--requires").iter().any(|is| is.starts_with("httpd-mmn = ")));
    assert!(query(module, "--recommends").iter().any(|is| is.starts_with("lingerd = ")));

    if !have("rpmlint") {
        return;
    }
    let said = must(
        Command::new("rpmlint")
            .env("LC_ALL", "C.UTF-8")
            .env_remove("LANGUAGE")
            .args(["--strict", "--ignore-unused-rpmlintrc", "--rpmlintrc"])
            .arg(built::project().join("platform/rpm/lingerd.rpmlintrc"))
            .arg(built::project().join("platform/rpm/lingerd.spec"))
            .args(&packages),
    );
    assert!(said.contains("0 errors, 0 warnings"), "{said}");
}

/// The units are those of all Linux systems, but that Fedora's names of a file and of a group are put in.
#[test]
fn what_the_spec_changes_in_the_units_is_there() {
    let service = read("platform/systemd/lingerd.service");
    assert!(service.contains("EnvironmentFile=-/etc/default/lingerd\n"), "{service}");
    assert!(service.contains("$LINGERD_OPTIONS"), "{service}");
    assert!(read("platform/rpm/lingerd.sysconfig").contains("\nLINGERD_OPTIONS="));
    let socket = read("platform/systemd/lingerd.socket");
    assert!(socket.contains("\nSocketGroup="), "{socket}");
}

#[test]
fn the_version_is_that_of_cargo_toml() {
    let spec = read("platform/rpm/lingerd.spec");
    let version = spec.lines().find_map(|line| line.strip_prefix("Version:")).unwrap();
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
}
