//! What long work tells while it runs. Nothing below `cli` prints; it reports here.

/// One thing that happened.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// Something that takes time began; `total` is in bytes.
    Started {
        /// What.
        what: &'a str,
        /// How much, where that is known.
        total: Option<u64>,
    },
    /// It went on.
    Advanced {
        /// What.
        what: &'a str,
        /// By how much.
        bytes: u64,
    },
    /// It ended, well or not.
    Ended {
        /// What.
        what: &'a str,
    },
    /// A rule printed whole lines.
    Output {
        /// Its label.
        what: &'a str,
        /// As they came.
        text: &'a str,
    },
    /// A result: one line.
    Done {
        /// `built`, `cached`, `image`, …
        verb: &'a str,
        /// A label, mostly.
        what: &'a str,
        /// More, or empty.
        detail: &'a str,
    },
    /// Something the user should know.
    Note {
        /// In sentences.
        text: &'a str,
    },
}

/// Who listens.
pub trait Report: Sync {
    /// Takes one event.
    fn event(&self, event: Event<'_>);
}

/// Nobody listens.
pub struct Silent;

impl Report for Silent {
    fn event(&self, _: Event<'_>) {}
}

/// `1 package`, `2 packages`.
pub fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
