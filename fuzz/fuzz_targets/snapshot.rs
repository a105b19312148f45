// SPDX-License-Identifier: BSD-3-Clause

//! The counters as `lingerd -S` gets them, from whoever answers at the control socket's path.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lingerd::stats::Snapshot;
use lingerd::stats::forms::Format;

fuzz_target!(|text: &str| {
    let snapshot: Snapshot = match text.parse() {
        Ok(snapshot) => snapshot,
        Err(why) => {
            // It goes to a terminal, perhaps root's.
            assert!(!why.is_empty() && !why.chars().any(char::is_control), "{why:?}");
            return;
        }
    };
    let shown = snapshot.told();
    assert_eq!(shown.parse(), Ok(snapshot), "read back");
    let newer = format!("{shown}from_the_future 1\n");
    assert_eq!(newer.parse(), Ok(snapshot), "a newer daemon's");
    // What has grown of late, and how long what took, is not asked for by name.
    let figures =
        || shown.lines().filter(|line| !line.split(' ').next().is_some_and(|key| key.contains('.')));
    for line in figures() {
        let (key, value) = line.split_once(' ').expect("a key and a number");
        assert_eq!(snapshot.get(key), value.parse().ok());
        // It was told, or it is none.
        assert!(value == "0" || text.lines().any(|told| told.starts_with(&format!("{key} "))), "{line}");
    }
    let json = snapshot.render(Format::Json);
    assert!(json.starts_with('{') && json.ends_with("}\n") && json.lines().count() == 1);
    let metrics = snapshot.render(Format::Prometheus);
    assert!(metrics.lines().filter(|line| !line.starts_with('#')).count() > figures().count());
    assert!(!snapshot.render(Format::Text).chars().any(|shown| shown.is_control() && shown != '\n'));
    assert_eq!(snapshot.to_string().split(' ').count(), figures().count());
});
