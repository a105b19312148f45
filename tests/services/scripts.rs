// SPDX-License-Identifier: BSD-3-Clause
//! What shellcheck(1) says of the scripts that run on machines where nobody of us looks.

use crate::root::{have, must};
use std::process::Command;
use support::built;

const SCRIPTS: [&str; 16] = [
    "ci/smf",
    "platform/alpine/APKBUILD",
    "platform/alpine/lingerd.pre-install",
    "platform/illumos/ips",
    "platform/illumos/svc-lingerd",
    "platform/openrc/lingerd.confd",
    "platform/openrc/lingerd.initd",
    "platform/prometheus/lingerd-textfile",
    "platform/runit/conf",
    "platform/runit/control/h",
    "platform/runit/finish",
    "platform/runit/log/run",
    "platform/runit/run",
    "platform/s6/finish",
    "platform/s6/log/run",
    "platform/s6/run",
];

#[test]
fn shellcheck_has_nothing_to_say() {
    if have("shellcheck") {
        must(Command::new("shellcheck").current_dir(built::project()).args(SCRIPTS));
    }
}
