// SPDX-License-Identifier: BSD-3-Clause

//! The command line: one argument a line. Whatever they are, they are accepted with a meaning that
//! makes sense, or refused in words.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lingerd::rules::time::Span;
use lingerd::service::options::{self, Command, Serve, Wait, Which};
use std::time::Duration;

fuzz_target!(|input: &str| {
    let arguments: Vec<String> = input.lines().map(str::to_owned).collect();
    // Without such a letter the option cannot be there.
    let may_have = |option: char| input.contains(option);
    match options::parse(&arguments) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(Command::Print(text)) => {
            assert!(text.ends_with('\n') && (may_have('h') || may_have('V')));
        }
        Ok(Command::Stop(Which::PidFile(path) | Which::Socket(path), wait)) => {
            assert!(path.is_absolute() && may_have('k'));
            assert!(wait == Wait::No || may_have('w'));
        }
        Ok(Command::Counters { socket, every, .. }) => {
            assert!(socket.is_absolute() && may_have('S'));
            assert!(every.is_none_or(|every| !every.is_zero() && may_have('i')));
        }
        Ok(Command::Serve(serve)) => check(&serve, may_have),
    }
});

fn check(serve: &Serve, may_have: impl Fn(char) -> bool) {
    assert!(serve.socket.is_absolute());
    match &serve.pid_file {
        Some(path) => assert!(path.is_absolute() && (!serve.foreground || may_have('p'))),
        None => assert!(serve.foreground),
    }
    assert!(serve.user_group.is_none() || serve.user.is_some());
    assert!(serve.mode.is_none_or(|mode| mode <= 0o777 && mode & 0o600 == 0o600));
    assert_ne!(serve.capacity, Some(0));
    let rules = &serve.rules;
    for span in [rules.idle, rules.max, rules.limit, serve.drain] {
        assert!((Span::at_least(Duration::from_millis(1))..=Span::LONGEST).contains(&span));
    }
    assert!(rules.max == rules.limit || may_have('T'));
    for (option, given) in [
        ('f', serve.foreground),
        ('u', serve.user.is_some()),
        ('g', serve.group.is_some()),
        ('n', serve.capacity.is_some()),
        ('r', serve.take_over),
    ] {
        assert!(!given || may_have(option), "-{option}");
    }
}
