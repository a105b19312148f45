// SPDX-License-Identifier: BSD-3-Clause

//! What `make million` was told, read and held to what lingerd promises.
//!
//! Beside the bench and not in it, as a bench without a harness has no tests. Knows what the bench tells of a step; must not
//! know how that was measured.

use serde_json::Value;

/// Wake-ups while nothing happens: lingerd-tuning(7) says that there is none, however many linger.
const WAKEUPS: f64 = 0.0;

/// Seconds that `lingerd -S` may take, also while all end: who asks, a monitor for one, does not wait for all who linger. In
/// user-mode Linux it was 0.18 at most.
const ANSWER: f64 = 1.0;

/// Instructions of a linger at any step over those at the first: lingerd-tuning(7) says that each costs the same,
/// however many there are. The quarter is for what grows now and then, as tables do.
const INSTRUCTIONS: f64 = 1.25;

/// Bytes of its own memory for each connection: lingerd-tuning(7) says 40 on Linux; 8 are for what comes by whole pages.
const OWN_BYTES: f64 = 48.0;

/// The backend that this is said of: poll(2) wants a list of its own.
const OWN_BYTES_ON: &str = "epoll";

/// Backends that have no such limit here.
const OTHERS: [&str; 3] = ["poll", "kqueue", "event ports"];

/// From so many on their part in the memory of a whole process or system can be told.
const MANY: u64 = 10_000;

/// An upgrade of so many may be given up, as it takes too long, wherever it runs; in user-mode Linux, whose system calls are
/// slow, any: lingerd-tuning(7) says that the old one serves on then.
const MAY_BE_GIVEN_UP: u64 = 1_000_000;

/// How clients go.
pub const WAYS: [&str; 2] = ["gone", "lingering"];

/// Where a limit is not met, or what it is about was not told: a sentence for each. `end` is what was told of the moment in
/// which all went; `backend` is what `lingerd -V` says.
pub fn exceeded(steps: &[Value], counted: &[Value], end: &Value, backend: &str, is_uml: bool) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut hold = |step: &Value, what: &str, value: Option<f64>, limit: f64| {
        let number = &step["connections"];
        match value {
            Some(value) if value <= limit => {}
            Some(value) => {
                complaints.push(format!("{number} linger: {value} {what}, where {limit} is the limit"));
            }
            None => complaints.push(format!("{number} linger: nothing was told of {what}")),
        }
    };
    for step in steps {
        hold(step, "wake-ups while nothing happened", step["idle"]["wakeups"].as_f64(), WAKEUPS);
        let answer = numbers(&step["asked_s"]).into_iter().reduce(f64::max);
        hold(step, "seconds for lingerd -S", answer, ANSWER);
        if is_many(step) && backend == OWN_BYTES_ON {
            hold(step, "bytes of its own memory for each", step["own_bytes"].as_f64(), OWN_BYTES);
        }
    }
    if !end.is_null() {
        hold(end, "seconds for lingerd -S while they end", end["asked_meanwhile_s"].as_f64(), ANSWER);
    }
    if let Some((first, others)) = counted.split_first() {
        for (step, way) in others.iter().flat_map(|step| WAYS.map(|way| (step, way))) {
            let what = format!("times the instructions with {}, client {way}", first["connections"]);
            let ratio = median(&step[way]).zip(median(&first[way])).map(|(now, first)| now / first);
            hold(step, &what, ratio, INSTRUCTIONS);
        }
    }
    if backend != OWN_BYTES_ON && !OTHERS.contains(&backend) {
        complaints.push(format!("lingerd -V names no backend that is known here: '{backend}'"));
    }
    let may_be_given_up =
        |step: &Value| is_uml || step["connections"].as_u64().is_some_and(|many| many >= MAY_BE_GIVEN_UP);
    for step in steps.iter().filter(|step| !(was_given_up(step) && may_be_given_up(step))) {
        if let Some(said) = step["upgrade"]["failed"].as_str() {
            complaints.push(format!("{} linger: an upgrade failed: {said}", step["connections"]));
        }
    }
    complaints
}

/// Whether so many linger that their part in the memory of a whole process or system can be told.
pub fn is_many(step: &Value) -> bool {
    step["connections"].as_u64().is_some_and(|number| number >= MANY)
}

/// Whether its upgrade was given up, as it took too long: all is as it was.
pub fn was_given_up(step: &Value) -> bool {
    step["upgrade"]["failed"].as_str().is_some_and(|said| said.contains("takes too long"))
}

/// Those of an array.
pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// The median of an array.
pub fn median(value: &Value) -> Option<f64> {
    let all = numbers(value);
    (!all.is_empty()).then(|| crate::median(all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A step at which each limit is just met, and what was counted there.
    fn step(connections: u64) -> Value {
        json!({
            "connections": connections, "own_bytes": 48.0, "idle": { "wakeups": 0 }, "asked_s": [0.1, 1.0, 0.2],
            "upgrade": { "seconds": 0.5, "frozen_ms": 400.0 },
        })
    }

    fn counted(connections: u64, gone: f64, lingering: f64) -> Value {
        json!({ "connections": connections, "gone": [gone], "lingering": [lingering] })
    }

    /// What is said of steps where it runs on the machine itself.
    fn said(steps: &[Value]) -> Vec<String> {
        exceeded(steps, &[], &json!(null), "epoll", false)
    }

    #[test]
    fn what_is_just_met_is_met() {
        let counted = [counted(1_000, 400.0, 2_000.0), counted(10_000, 500.0, 2_500.0)];
        let none: [String; 0] = [];
        let end = json!({ "connections": 10_000, "asked_meanwhile_s": 1.0 });
        assert_eq!(exceeded(&[step(1_000), step(10_000)], &counted, &end, "epoll", false), none);
    }

    #[test]
    fn a_wake_up_while_idle_is_one_too_many_at_any_step() {
        for number in [1_000, 10_000] {
            let mut step = step(number);
            step["idle"]["wakeups"] = json!(1);
            let expected =
                format!("{number} linger: 1 wake-ups while nothing happened, where 0 is the limit");
            assert_eq!(said(&[step]), [expected]);
        }
    }

    #[test]
    fn the_longest_answer_counts_also_while_all_end() {
        let mut slow = step(1_000);
        slow["asked_s"] = json!([0.1, 1.5, 0.2]);
        assert_eq!(said(&[slow]), ["1000 linger: 1.5 seconds for lingerd -S, where 1 is the limit"]);
        let end = json!({ "connections": 1_000, "asked_meanwhile_s": 1.5 });
        assert_eq!(
            exceeded(&[], &[], &end, "epoll", true),
            ["1000 linger: 1.5 seconds for lingerd -S while they end, where 1 is the limit"]
        );
    }

    #[test]
    fn instructions_may_grow_by_a_quarter_from_the_first_step_to_any() {
        let first = counted(1_000, 400.0, 2_000.0);
        let last_is = |gone, lingering| {
            let steps =
                [first.clone(), counted(100_000, gone, lingering), counted(1_000_000, 400.0, 2_000.0)];
            exceeded(&[], &steps, &json!(null), "epoll", false)
        };
        assert_eq!(last_is(500.0, 2_500.0).len(), 0);
        assert_eq!(
            last_is(600.0, 2_500.0),
            ["100000 linger: 1.5 times the instructions with 1000, client gone, where 1.25 is the limit"]
        );
        assert_eq!(last_is(500.0, 2_501.0).len(), 1);
        assert_eq!(last_is(501.0, 2_501.0).len(), 2);
    }

    #[test]
    fn own_bytes_are_held_where_there_are_many_and_on_epoll() {
        let large = |connections| {
            let mut step = step(connections);
            step["own_bytes"] = json!(48.1);
            [step]
        };
        assert_eq!(said(&large(9_999)).len(), 0);
        assert_eq!(said(&large(10_000)).len(), 1);
        let on = |backend| exceeded(&large(10_000), &[], &json!(null), backend, false);
        assert_eq!([on("poll"), on("event ports")].concat().len(), 0);
        assert_eq!(on(""), ["lingerd -V names no backend that is known here: ''"]);
    }

    #[test]
    fn an_upgrade_of_a_million_may_be_given_up_but_not_fail() {
        let failed = |number, said: &str| {
            let mut step = step(number);
            step["upgrade"] = json!({ "failed": said });
            [step]
        };
        let given_up = |number| failed(number, "a successor wanted to take over, but it takes too long");
        assert_eq!(said(&given_up(1_000_000)).len(), 0);
        assert_eq!(said(&given_up(100_000)).len(), 1);
        assert_eq!(exceeded(&given_up(100_000), &[], &json!(null), "epoll", true).len(), 0);
        assert_eq!(said(&failed(1_000_000, "no room")), ["1000000 linger: an upgrade failed: no room"]);
    }

    #[test]
    fn what_was_not_told_is_not_met() {
        let steps = [json!({ "connections": 10_000, "idle": null })];
        let counted = [1_000, 10_000].map(|number| json!({ "connections": number }));
        let said = exceeded(&steps, &counted, &json!({ "connections": 10_000 }), "epoll", false);
        assert_eq!(said.len(), 6, "{said:#?}");
        assert!(said.iter().all(|it| it.contains("nothing was told of")), "{said:#?}");
    }
}
