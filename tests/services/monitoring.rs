// SPDX-License-Identifier: BSD-3-Clause

//! What is given to Prometheus and Grafana: that it is about metrics that there are, and does what it is for.

use crate::root::must;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::process::Command;
use support::built::{project, promtool};
use support::daemon::{Daemon, Site, run};
use support::tcp;

const ALERTS: &str = "platform/prometheus/alerts.yml";
const DASHBOARD: &str = "platform/grafana/lingerd.json";

fn read(file: &str) -> String {
    fs::read_to_string(project().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The names of metrics in a text.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("lingerd_")).collect()
}

/// Each that Grafana asks for, with what it puts in for its variables.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let text = |target: &Value| target["expr"].as_str().expect("an expression").to_owned();
    let filled_in = |text: String| text.replace("$__rate_interval", "5m").replace("$instance", "a|b");
    targets.map(|target| filled_in(text(target))).collect()
}

#[test]
fn every_metric_that_is_asked_for_is_one_and_every_one_is_shown() {
    let daemon = Daemon::start(&[]);
    let answer = daemon.site.ask("prometheus").stdout;
    let samples: BTreeSet<_> = answer.lines().filter(|line| !line.starts_with('#')).collect();
    let names: BTreeSet<_> = samples.iter().flat_map(|sample| metrics(sample)).collect();
    let dashboard = read(DASHBOARD);
    let shown = expressions(&serde_json::from_str(&dashboard).unwrap()).join("\n");
    for (file, text) in [(ALERTS, read(ALERTS)), (DASHBOARD, shown.clone())] {
        let unknown: Vec<_> = metrics(&text).difference(&names).map(|name| (*name).to_owned()).collect();
        assert_eq!(unknown, [""; 0], "{file}");
        for label in text
            .split(['{', ',', '}'])
            .filter(|text| text.starts_with("state=") || text.starts_with("reason=\""))
        {
            assert!(samples.iter().any(|sample| sample.contains(label)), "{file}: {label}");
        }
    }
    let is_shown = |name: &&&str| !name.ends_with("_sum") && !name.ends_with("_count");
    let hidden: Vec<_> =
        names.iter().filter(is_shown).filter(|name| !metrics(&shown).contains(**name)).collect();
    assert_eq!(hidden, [&""; 0], "{DASHBOARD}");
    daemon.finish("");
}

#[test]
fn the_alerts_fire_when_they_should_and_not_else() {
    let Some(promtool) = promtool() else { return };
    let ask = |what: &str, file: &str| {
        must(Command::new(promtool.get_program()).current_dir(project()).args([what, "rules", file]));
    };
    ask("check", ALERTS);
    ask("test", "platform/prometheus/alerts-test.yml");
}

#[test]
fn what_the_dashboard_asks_for_prometheus_understands() {
    let Some(mut promtool) = promtool() else { return };
    let site = Site::new();
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    let expressions = expressions(&serde_json::from_str(&read(DASHBOARD)).unwrap());
    assert!(expressions.len() > 10, "{expressions:?}");
    for (n, expression) in expressions.iter().enumerate() {
        let text = serde_json::to_string(expression).unwrap(); // JSON's strings are YAML's
        writeln!(rules, "  - record: panel:{n}\n    expr: {text}").unwrap();
    }
    fs::write(site.path("rules.yml"), rules).unwrap();
    must(promtool.args(["check", "rules"]).arg(site.path("rules.yml")));
}

#[test]
fn the_textfile_collector_finds_the_counters_of_a_lingerd_that_is_there_and_of_no_other() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let (client, server) = tcp::connection();
    daemon.sender().hand_over(server);
    daemon.wait_for("lingering=1");
    let directory = site.path("node-exporter");
    fs::create_dir(&directory).unwrap();
    let path = format!("{}:/usr/bin:/bin", site.program_for_all().parent().unwrap().display());
    let write = || {
        let script = project().join("platform/prometheus/lingerd-textfile");
        run(Command::new("sh").arg(script).arg(&directory).arg(site.socket()).env("PATH", &path))
    };
    let files = || {
        let entries = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name());
        entries.map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
    };
    let written = write();
    assert_eq!((written.code, written.stderr), (Some(0), String::new()));
    assert_eq!(files(), ["lingerd.prom"]);
    let text = fs::read_to_string(directory.join("lingerd.prom")).unwrap();
    assert!(text.contains("lingerd_connections{state=\"lingering\"} 1\n"), "{text}");
    drop(client);
    daemon.finish("closed=1");
    write().assert_failed(3, "no lingerd is running");
    assert_eq!(files(), [""; 0], "what was counted once");
}
