// SPDX-License-Identifier: BSD-3-Clause

//! That the suite can fail: each mistake that it is there for is made in a server that it finds nothing wrong with, and
//! the case that is to see it does.

use crate::cases::{CASES, Case};
use crate::program::Stop;
use crate::{Sender, has_failed, run, run_all};
use std::fs;
use std::thread;
use std::time::Duration;
use support::built::{self, python};
use support::daemon::Site;
use support::skip;

/// What is changed in reference.py, in place of what, and which case sees it.
struct Fault {
    what: &'static str,
    case: &'static str,
    old: &'static str,
    new: &'static str,
}

const FAULTS: [Fault; 32] = [
    Fault {
        what: "waits for its client after the hand-off",
        case: "copy",
        old: "            if not give(conn):\n                linger(conn)\n",
        new: "            give(conn)\n            linger(conn)\n",
    },
    Fault { what: "hands nothing over", case: "there", old: "if not give(conn):", new: "if True:" },
    Fault {
        what: "writes what the socket takes and no more",
        case: "late",
        old: "    conn.sendall(response)\n",
        new: "    conn.send(response[:100000], socket.MSG_DONTWAIT)\n",
    },
    Fault {
        what: "closes what has something unread",
        case: "unread",
        old: "            if not give(conn):\n",
        new: "            if not select.select([conn], [], [], 0)[0] and not give(conn):\n",
    },
    Fault {
        what: "says more than a byte",
        case: "message",
        old: "first.send(b\"L\", [conn.fileno()])",
        new: "first.send(b\"LL\", [conn.fileno()])",
    },
    Fault {
        what: "opens a link for each connection",
        case: "message",
        old: "        if self.pid != os.getpid():\n",
        new: "        if True:\n",
    },
    Fault {
        what: "keeps its copy",
        case: "copy",
        old: "    conn.close()\n",
        new: "    kept.append(conn)\n\n\nkept = []\n",
    },
    Fault {
        what: "leaks a descriptor",
        case: "many",
        old: "    conn.close()\n",
        new: "    conn.close()\n    os.dup(0)\n",
    },
    Fault {
        what: "leaves processes unwaited for",
        case: "many",
        old: "    conn.close()\n",
        new: "    conn.close()\n    os.fork() or os._exit(0)\n",
    },
    Fault {
        what: "shuts down what it has handed over",
        case: "copy",
        old: "                linger(conn)\n",
        new: "                linger(conn)\n            conn.shutdown(socket.SHUT_RDWR)\n",
    },
    Fault {
        what: "leaves its link to what it executes",
        case: "exec",
        old: "            self.sock = sock\n",
        new: "            self.sock = sock\n            sock.set_inheritable(True)\n",
    },
    Fault {
        what: "ends with a client that has gone",
        case: "gone",
        old: "    except (OSError, IndexError):\n        pass  # the client has gone\n",
        new: "    except ZeroDivisionError:\n        pass\n",
    },
    Fault {
        what: "closes without lingerd",
        case: "away",
        old: "                linger(conn)\n",
        new: "                pass\n",
    },
    Fault {
        what: "half-closes nothing",
        case: "away",
        old: "        socket.socket.shutdown(conn, socket.SHUT_WR)\n",
        new: "        pass\n",
    },
    Fault {
        what: "looks for lingerd once",
        case: "away",
        old: "time.monotonic() - self.tried < 1:",
        new: "self.tried:",
    },
    Fault { what: "waits to be let in", case: "door", old: "            sock.setblocking(False)\n", new: "" },
    Fault {
        what: "waits for room in the link",
        case: "hung",
        old: "            self.sock = sock\n",
        new: "            self.sock = sock\n            sock.setblocking(True)\n",
    },
    Fault {
        what: "takes a full link for a dead one",
        case: "hung",
        old: "                    if error.errno in NOT_NOW:\n                        return False\n",
        new: "",
    },
    Fault {
        what: "takes what was not sent for handed over",
        case: "hung",
        old: "                    if error.errno in NOT_NOW:\n                        return False\n",
        new: "                    if error.errno in NOT_NOW:\n                        return True\n",
    },
    Fault {
        what: "waits for a lingerd that stands still",
        case: "frozen",
        old: "            self.sock = sock\n",
        new: "            self.sock = sock\n            sock.setblocking(True)\n",
    },
    Fault {
        what: "looks for lingerd once, and never again",
        case: "restarted",
        old: "time.monotonic() - self.tried < 1:",
        new: "self.tried:",
    },
    Fault {
        what: "hands over more than what is left",
        case: "spool",
        old: "        if response and spool(conn, response):\n",
        new: "        if response and spool(conn, b'x' + response):\n",
    },
    Fault { what: "does not know ETOOMANYREFS", case: "descriptors", old: "errno.ETOOMANYREFS, ", new: "" },
    Fault {
        what: "dies of SIGPIPE",
        case: "hangs-up",
        old: "first, second = ",
        new: "import signal\nsignal.signal(signal.SIGPIPE, signal.SIG_DFL)\nfirst, second = ",
    },
    Fault {
        what: "connects as often as it likes",
        case: "reconnects",
        old: "time.monotonic() - self.tried < 1:",
        new: "False:",
    },
    Fault {
        what: "keeps to a link that is dead",
        case: "killed",
        old: "                    self.sock.close()\n                    self.sock = None\n            return False\n",
        new: "                    return False\n            return False\n",
    },
    Fault {
        what: "has no link in a child",
        case: "fork",
        old: "            self.forget()\n        if self.sock is None:\n",
        new: "            return False\n        if self.sock is None:\n",
    },
    Fault {
        what: "has one connection in mind for all threads",
        case: "threads",
        old: "        with self.lock:\n",
        new: "        self.descriptors = descriptors\n        time.sleep(0.001)\n        descriptors = self.descriptors\n        with self.lock:\n",
    },
    Fault {
        what: "says the end of TLS after the hand-off",
        case: "tls",
        old: "            goodbye(conn)\n            half_close(conn)\n            if not give(conn):\n                linger(conn)\n",
        new: "            given = give(conn)\n            goodbye(conn)\n            if not given:\n                linger(conn)\n",
    },
    Fault { what: "sets no time", case: "seconds", old: "    if seconds:\n", new: "    if False:\n" },
    Fault {
        what: "does not wait for a G",
        case: "spool-silent",
        old: "        if not second.go_ahead():\n            return False\n",
        new: "        second.connected()\n",
    },
    Fault {
        what: "ends a response that is cut off",
        case: "spool-killed",
        old: "        set_linger(conn, True, 0)\n",
        new: "",
    },
];

/// With the link, and what was said on it, of its parent. It asks for the next G as soon as one is used.
const SHARES: [(&str, &str); 2] = [
    ("        if self.pid != os.getpid():\n            self.forget()\n", ""),
    (
        "            second.may_spool = False\n",
        "            second.may_spool = False\n            second.go_ahead()\n",
    ),
];

fn reference() -> String {
    fs::read_to_string(built::project().join("tests/conformance/reference.py")).unwrap()
}

fn changed(source: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(source.to_owned(), |source, (old, new)| {
        assert_eq!(source.matches(old).count(), 1, "reference.py has not one {old:?}");
        source.replace(old, new)
    })
}

/// Nobody who does what is right is as slow, and whoever is wrong may as well be.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn each_mistake_is_seen_by_the_case_that_is_there_for_it() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let mut all: Vec<_> = FAULTS.iter().map(|it| (it.what, it.case, vec![(it.old, it.new)])).collect();
    all.push(("shares its parent's link", "spool-fork", SHARES.to_vec()));
    let ended: Vec<_> = thread::scope(|scope| {
        let each = |n: usize, what: &'static str, case: &str, changes: &[(&str, &str)]| {
            let program = site.path(&format!("{n}.py"));
            fs::write(&program, changed(&reference(), changes)).unwrap();
            let command = format!("exec '{python}' '{}'", program.display());
            let case = CASES.iter().find(|it| it.name == case).unwrap();
            (what, case.name, run(&command, case, PATIENCE))
        };
        let threads: Vec<_> = all
            .iter()
            .enumerate()
            .map(|(n, (what, case, changes))| scope.spawn(move || each(n, what, case, changes)))
            .collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let mut missed = String::new();
    for (what, case, ended) in ended {
        println!("{what}: {case}: {ended:?}");
        if let Err(Stop::NotHere(why)) = ended {
            skip(&format!("{what}, {case}: {why}"));
        } else if !matches!(ended, Err(Stop::Failed(_))) {
            missed += &format!("a sender that {what} passes '{case}': {ended:?}\n");
        }
    }
    assert!(missed.is_empty(), "{missed}");
}

#[test]
fn each_case_has_a_mistake_that_it_sees() {
    let seen = |case: &Case| FAULTS.iter().any(|it| it.case == case.name) || case.name == "spool-fork";
    let without: Vec<_> = CASES.iter().filter(|case| !seen(case)).map(|case| case.name).collect();
    assert!(without.is_empty(), "{without:?}");
}

#[test]
fn who_makes_no_mistake_passes() {
    let Some(python) = python() else { return };
    let program = built::project().join("tests/conformance/reference.py");
    let command = format!("exec '{python}' '{}'", program.display());
    let columns = run_all(&[Sender { name: "reference".to_owned(), command }]);
    assert!(!has_failed(&columns), "{}", crate::report::table(&columns));
}
