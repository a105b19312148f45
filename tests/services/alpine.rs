// SPDX-License-Identifier: BSD-3-Clause
//! platform/alpine: the APKBUILD, run as abuild(1) does it, by a stand-in that keeps to APKBUILD(5), with the
//! project's real Makefile. What cargo would build is there already.

use crate::root::{built_tree, have, must, read};
use std::fs;
use std::process::Command;
use support::built;
use support::daemon::Site;

/// What abuild does with an APKBUILD once the source is unpacked: it is read, each function is run in
/// $builddir with -e, and each subpackage has a folder of its own, into which amove moves.
const ABUILD: &str = r#"
srcdir=$1 startdir=$2 apks=$3
cargo() { echo "cargo $*"; }
make() { PATH=$apks/bin:$PATH command make "$@"; }
amove() { # path...
    for each in "$@"; do
        [ -e "$pkgdir/$each" ] || { echo "amove: no $each" >&2; return 1; }
        mkdir -p "$subpkgdir/$(dirname "$each")"
        mv "$pkgdir/$each" "$subpkgdir/$each"
    done
}
. "$startdir/APKBUILD"
for each in pkgname pkgver pkgrel pkgdesc url arch license source; do
    eval "[ -n \"\$$each\" ]" || { echo "APKBUILD: no $each" >&2; exit 1; }
done
for each in $install; do
    [ -f "$startdir/$each" ] || { echo "install: no $each" >&2; exit 1; }
done
: "${builddir:=$srcdir/$pkgname-$pkgver}"
pkgdir=$apks/$pkgname
mkdir -p "$pkgdir"
for step in build check package; do (cd "$builddir" && set -e && $step); done
for each in $subpackages; do
    subpkgname=${each%%:*} subpkgdir=$apks/${each%%:*}
    mkdir -p "$subpkgdir"
    case $each in
    *-doc) (cd "$builddir"; amove usr/share/man usr/share/licenses) ;;
    *-bash-completion) (cd "$builddir"; amove usr/share/bash-completion/completions) ;;
    *-zsh-completion) (cd "$builddir"; amove usr/share/zsh/site-functions) ;;
    *-fish-completion) (cd "$builddir"; amove usr/share/fish/vendor_completions.d) ;;
    *-openrc) (cd "$builddir"; amove etc/conf.d etc/init.d) ;;
    *:*) (cd "$builddir" && set -e && "${each#*:}") ;;
    *) echo "no stand-in for $each" >&2; exit 1 ;;
    esac
done
find "$pkgdir" -depth -type d -empty -exec rmdir {} \;
cd "$apks" && find . -path ./bin -prune -o -type f -print | sort
"#;

#[test]
fn the_packages_have_all_that_they_should() {
    if !have("apxs") {
        return;
    }
    let site = Site::new();
    let tree = built_tree(&site);
    let version = env!("CARGO_PKG_VERSION");
    let source = site.path("src");
    fs::create_dir(&source).unwrap();
    fs::rename(tree, source.join(format!("lingerd-{version}"))).unwrap();
    let apks = site.path("apks");
    fs::create_dir_all(apks.join("bin")).unwrap();
    fs::write(apks.join("bin/cargo"), "#!/bin/sh\necho \"cargo $*\"\n").unwrap();
    must(Command::new("chmod").arg("755").arg(apks.join("bin/cargo")));
    let said = must(Command::new("sh").args(["-euc", ABUILD, "abuild"]).args([
        &source,
        &built::project().join("platform/alpine"),
        &apks,
    ]));
    assert!(said.contains("cargo test --release --locked"), "{said}");
    let modules = must(Command::new("apxs").args(["-q", "LIBEXECDIR"]));
    let files: Vec<&str> = said.lines().filter(|line| line.starts_with("./")).collect();
    let module = format!("./apache2-mod-lingerd{}/mod_lingerd.so", modules.trim());
    let mut expected = vec![
        module.as_str(),
        "./apache2-mod-lingerd/etc/apache2/conf.d/lingerd.conf",
        "./lingerd/usr/sbin/lingerd",
        "./lingerd/usr/bin/ablinger",
        "./lingerd-doc/usr/share/man/man1/ablinger.1",
        "./lingerd-doc/usr/share/man/man7/lingerd-protocol.7",
        "./lingerd-doc/usr/share/man/man7/lingerd-tuning.7",
        "./lingerd-doc/usr/share/man/man8/lingerd.8",
        "./lingerd-doc/usr/share/man/man8/mod_lingerd.8",
        "./lingerd-bash-completion/usr/share/bash-completion/completions/ablinger",
        "./lingerd-bash-completion/usr/share/bash-completion/completions/lingerd",
        "./lingerd-zsh-completion/usr/share/zsh/site-functions/_ablinger",
        "./lingerd-zsh-completion/usr/share/zsh/site-functions/_lingerd",
        "./lingerd-fish-completion/usr/share/fish/vendor_completions.d/ablinger.fish",
        "./lingerd-fish-completion/usr/share/fish/vendor_completions.d/lingerd.fish",
        "./lingerd-doc/usr/share/licenses/lingerd/LICENSE",
        "./lingerd-openrc/etc/conf.d/lingerd",
        "./lingerd-openrc/etc/init.d/lingerd",
    ];
    expected.sort_unstable();
    assert_eq!(files, expected);
}

#[test]
fn the_version_is_that_of_cargo_toml() {
    let recipe = read("platform/alpine/APKBUILD");
    let version = recipe.lines().find_map(|line| line.strip_prefix("pkgver=")).unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
}
