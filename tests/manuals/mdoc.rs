// SPDX-License-Identifier: BSD-3-Clause

//! As much of mdoc(7) as it takes to find something in a manual. Must not know what is looked for.

use std::fs;
use support::built::project;

/// A manual's source.
pub struct Manual(String);

impl Manual {
    /// The one with this name: `lingerd.8`.
    pub fn read(name: &str) -> Self {
        let path = project().join("man").join(name);
        Manual(fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// The lines of a section, or of a subsection.
    pub fn section(&self, title: &str) -> Vec<&str> {
        let is_head = |line: &&str| line.starts_with(".Sh ") || line.starts_with(".Ss ");
        let begins = |line: &&str| is_head(line) && line[4..] == *title;
        let lines: Vec<_> = self.0.lines().skip_while(|line| !begins(line)).collect();
        assert!(!lines.is_empty(), "there is no section {title}");
        lines.into_iter().skip(1).take_while(|line| !is_head(line)).collect()
    }

    /// What is in the literal display of a section, as a reader finds it there.
    pub fn display(&self, title: &str) -> String {
        let lines = self.section(title).into_iter();
        let mut lines = lines.skip_while(|line| !line.starts_with(".Bd -literal")).skip(1);
        let display: Vec<_> = lines.by_ref().take_while(|line| *line != ".Ed").map(text).collect();
        assert!(!display.is_empty(), "there is no display in {title}");
        display.join("\n") + "\n"
    }

    /// What the items of lists in a section begin with: `words(".It Fl s Ar socket")`.
    pub fn items(&self, title: &str) -> Vec<Vec<&str>> {
        let section = self.section(title);
        section.into_iter().filter_map(|line| line.strip_prefix(".It ")).map(words).collect()
    }
}

/// The words of a macro's line.
pub fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// A line of text without its escapes.
fn text(line: &str) -> String {
    assert!(!line.starts_with(['.', '\'']), "a macro in a display: {line}");
    let plain = line.replace("\\(dq", "\"").replace("\\-", "-").replace("\\&", "").replace("\\e", "\0");
    assert!(!plain.contains('\\'), "an escape that is not known here: {line}");
    plain.replace('\0', "\\")
}
