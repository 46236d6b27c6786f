//! What the steps of a rule print: through a pipe into a file. Given the file itself, a rule could
//! read its path in `/proc/self/fd`. A secret in it is an error: what follows is thrown away, and so is
//! the file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::{Error, Result};
use crate::execute::secrets::Search;
use crate::report::{Event, Report};
use crate::sandbox::{self, Outcome, Spec, Turn};

/// A log is cut here: a rule that prints without end must not fill the disk.
const LONGEST: u64 = 256 << 20;

/// Runs the sandbox with its output going to `path`, and to `live` while it runs; an error when one of these secrets is
/// printed.
pub fn run(spec: &Spec, path: &Path, secrets: &Search, live: Option<Live<'_>>, turn: Turn<'_>) -> Result<Outcome> {
    let mut file = File::create_new(path).map_err(|e| Error::io("create", path, e))?;
    let (mut reader, writer) = io::pipe().map_err(|e| Error::io("pipe", path, e))?;
    std::thread::scope(|scope| {
        let kept = scope.spawn(move || keep(&mut reader, &mut file, secrets, live));
        // It owns our end of the pipe: when it returns, the last writer is gone.
        let outcome = sandbox::run_in_turn(spec, File::from(OwnedFd::from(writer)), turn);
        let kept = kept.join().unwrap_or_else(|_| Err(io::Error::other("the thread that keeps it ended")));
        let outcome = outcome?;
        match kept.map_err(|e| Error::io("write", path, e))? {
            None => Ok(outcome),
            Some(name) => {
                // Its beginning may be there.
                std::fs::remove_file(path).map_err(|e| Error::io("unlink", path, e))?;
                Err(Error::failed(format!("it printed the secret {name}"))
                    .why("its log was thrown away")
                    .next("keep its commands from printing it: no set -x, no --verbose"))
            }
        }
    })
}

/// Which secret was printed, if any. It reads to the end, whatever happens: the steps must not wait
/// for a reader, nor be killed for want of one.
fn keep<'a>(
    reader: &mut impl Read,
    file: &mut impl Write,
    secrets: &'a Search,
    live: Option<Live<'_>>,
) -> io::Result<Option<&'a str>> {
    let mut live = live;
    // The beginning of a secret would be out before its end is seen, so what may be one is held back.
    let (mut held, hold) = (vec![], secrets.longest().saturating_sub(1));
    let mut stream = secrets.stream();
    let mut left = LONGEST;
    let (mut found, mut written) = (None, Ok(()));
    let mut buffer = vec![0; 64 << 10];
    loop {
        let piece = match reader.read(&mut buffer) {
            Ok(0) => {
                live.iter_mut().for_each(|live| live.feed(&held));
                live.iter_mut().for_each(Live::end);
                return written.map(|()| found);
            }
            Ok(n) => &buffer[..n],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        found = found.or_else(|| stream.feed(piece));
        live = live.filter(|_| found.is_none());
        if let Some(live) = &mut live {
            held.extend_from_slice(piece);
            let rest = held.split_off(held.len().saturating_sub(hold));
            live.feed(&std::mem::replace(&mut held, rest));
        }
        if found.is_some() || written.is_err() || left == 0 {
            continue;
        }
        let kept = &piece[..piece.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        left -= kept.len() as u64;
        written = file.write_all(kept);
        if left == 0 && written.is_ok() {
            let _ = file.write_all(b"\n(the log is cut here)\n");
        }
    }
}

/// So much of a rule's output is shown while it runs, and each line counts as some bytes more.
const SHOWN: usize = 1 << 20;
const LINE: usize = 64;
/// What is printed without an end of line is shown in pieces of this length.
const LONGEST_LINE: usize = 4 << 10;

/// Tells somebody what a rule prints, in whole lines, as it comes.
pub struct Live<'a> {
    report: &'a dyn Report,
    label: &'a str,
    rest: Vec<u8>,
    left: usize,
}

impl<'a> Live<'a> {
    /// What the rule of this label prints.
    pub fn new(report: &'a dyn Report, label: &'a str) -> Self {
        Self { report, label, rest: vec![], left: SHOWN }
    }

    fn feed(&mut self, piece: &[u8]) {
        if self.left == 0 {
            return;
        }
        self.rest.extend_from_slice(piece);
        let whole = match self.rest.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => at + 1,
            None if self.rest.len() >= LONGEST_LINE => self.rest.len(),
            None => return,
        };
        let mut rest = self.rest.split_off(whole);
        std::mem::swap(&mut rest, &mut self.rest);
        self.tell(&rest);
    }

    fn end(&mut self) {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() && self.left > 0 {
            self.tell(&rest);
        }
    }

    fn tell(&mut self, lines: &[u8]) {
        let mut shown = 0;
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            match self.left.checked_sub(line.len() + LINE) {
                Some(left) => self.left = left,
                None => {
                    self.left = 0;
                    break;
                }
            }
            shown += line.len();
        }
        let mut text = String::from_utf8_lossy(&lines[..shown]).into_owned();
        if self.left == 0 {
            text.push_str("(the rest is in its log)\n");
        }
        self.report.event(Event::Output { what: self.label, text: &text });
    }
}

/// The lines of a failed step's log that its error shows.
const LAST_LINES: usize = 20;
/// They are looked for in so many bytes at the end.
const LAST_BYTES: u64 = 16 << 10;

/// An error with the end of the log: that is what a person looks for first.
pub fn told(error: Error, log: &Path) -> Error {
    match last_lines(log).as_str() {
        "" => error.why("it printed nothing"),
        last => error.why(format!("it printed last:\n{last}")),
    }
}

/// What was printed last; empty: nothing.
pub fn last_lines(log: &Path) -> String {
    let end = || -> io::Result<String> {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(LAST_BYTES)))?;
        let mut bytes = vec![];
        file.take(LAST_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = end().unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_cannot_be_written_is_still_read_to_its_end() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut printed: &[u8] = &[b'x'; 100_000];
        let search = Search::default();
        let kept = keep(&mut printed, &mut Full, &search, None);
        assert_eq!(kept.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert!(printed.is_empty());
    }

    #[derive(Default)]
    struct Heard(std::sync::Mutex<Vec<String>>);

    impl Report for Heard {
        fn event(&self, event: Event<'_>) {
            if let Event::Output { what, text } = event {
                self.0.lock().unwrap().push(format!("{what} {text}"));
            }
        }
    }

    #[test]
    fn what_is_printed_is_told_in_whole_lines_as_it_comes_and_not_without_end() {
        let heard = Heard::default();
        let told = || std::mem::take(&mut *heard.0.lock().unwrap());
        let mut live = Live::new(&heard, "//a:b");
        for (piece, expected) in
            [("one\ntw", "//a:b one\n"), ("o", ""), ("\nthree\n", "//a:b two\nthree\n"), ("end", "")]
        {
            live.feed(piece.as_bytes());
            assert_eq!(told().concat(), expected);
        }
        live.end();
        assert_eq!(told(), ["//a:b end"]);
        live.feed(&[b'x'; LONGEST_LINE]);
        assert_eq!(told().concat().len(), "//a:b ".len() + LONGEST_LINE);
        for _ in 0..SHOWN {
            live.feed(b"y\n");
        }
        live.end();
        let told = told();
        assert!(told.len() < SHOWN / LINE && told.last().unwrap().ends_with("(the rest is in its log)\n"));
    }

    #[test]
    fn what_may_be_the_beginning_of_a_secret_is_told_when_it_is_none() {
        let secret = sandbox::Secret { name: "s".into(), value: b"first line\nsecond line".to_vec() };
        let search = Search::of(&[secret]);
        let told = |pieces: &[&str]| {
            let heard = Heard::default();
            let (mut reader, mut writer) = io::pipe().unwrap();
            let found = std::thread::scope(|scope| {
                let live = Some(Live::new(&heard, "//a:b"));
                let kept = scope.spawn(|| keep(&mut reader, &mut Vec::new(), &search, live).unwrap());
                for piece in pieces {
                    writer.write_all(piece.as_bytes()).unwrap();
                }
                drop(writer);
                kept.join().unwrap()
            });
            (heard.0.into_inner().unwrap().concat().replace("//a:b ", ""), found)
        };
        let before = "before\n".repeat(10);
        assert_eq!(told(&[&before, "first line\n", "third line\n"]).0, format!("{before}first line\nthird line\n"));
        for pieces in [
            &[&before, "first line\n", "second ", "line\n", "after\n"][..],
            &[&format!("{before}first line\nsecond line\n")],
        ] {
            let (shown, found) = told(pieces);
            assert_eq!(found, Some("s"));
            assert!(before.starts_with(&shown) && !shown.contains("first"), "{shown}");
        }
    }
}
