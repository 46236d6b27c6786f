//! What a person sees: errors with their source, progress on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::error::Error;
use crate::report::{Event, Report};

/// Writes results to standard output. A reader that went away (`| head`) is no error.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    if !text.ends_with('\n') && !text.is_empty() {
        let _ = out.write_all(b"\n");
    }
    let _ = out.flush();
}

/// A value as JSON.
pub fn json(value: &impl serde::Serialize) -> crate::error::Result<String> {
    serde_json::to_string_pretty(value).map_err(|e| Error::failed(format!("can't write JSON: {e}")))
}

/// Prints a value as JSON.
pub fn print_json(value: &impl serde::Serialize) -> crate::error::Result<()> {
    print(&json(value)?);
    Ok(())
}

fn coloured() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Prints an error and those found with it.
pub fn print_error(error: &Error) {
    let mut text = String::new();
    for error in std::iter::once(error).chain(error.others()) {
        text.push_str(&render(error, coloured()));
        text.push('\n');
    }
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// An error as text: what, where with the source, why, next.
pub fn render(error: &Error, colour: bool) -> String {
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let what = clean(error.what());
    let snippets: Vec<(String, usize, std::ops::Range<usize>, String, String)> = error
        .places()
        .iter()
        .map(|(place, note)| {
            let source = clean(place.source.as_deref().unwrap_or("")).replace('\t', " ");
            let byte = |column: usize| source.char_indices().nth(column).map_or(source.len(), |(i, _)| i);
            let start = byte(place.column.saturating_sub(1));
            let end = byte(place.column.saturating_sub(1) + place.length.max(1)).max(start);
            (source, place.line, start..end, place.file.clone(), clean(note))
        })
        .collect();
    let mut group: Group<'_> = Group::with_title(Level::ERROR.primary_title(what.as_str()));
    for (i, (source, line, range, file, note)) in snippets.iter().enumerate() {
        let kind = if i == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
        let annotation = kind.span(range.clone()).label(note.as_str());
        group = group
            .element(Snippet::source(source.as_str()).line_start(*line).path(file.as_str()).annotation(annotation));
    }
    let mut text = renderer.render(&[group]).to_string();
    for why in error.reasons() {
        text.push_str(&format!("\nwhy:  {}", indent(&clean(why))));
    }
    if let Some(next) = error.next_step() {
        text.push_str(&format!("\nnext: {}", indent(&clean(next))));
    }
    text
}

/// Paths below `here` (with a slash at its end), as one who stands there would write them.
fn relative(text: &str, here: Option<&str>) -> String {
    let Some(here) = here else { return text.to_string() };
    let mut parts = text.split(here);
    let mut short = parts.next().unwrap_or_default().to_string();
    for part in parts {
        // Else it is the tail of a longer path.
        if !short.is_empty() && !short.ends_with([' ', '\n', '"', '(']) {
            short.push_str(here);
        }
        short.push_str(part);
    }
    short
}

fn indent(text: &str) -> String {
    text.replace('\n', "\n      ")
}

/// Control characters of what a build file or archive wrote must not reach the terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// The same of what must stay one line: a file's name may hold line ends, and would forge a row.
pub fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Columns: a title that begins with `>` stands at the right, as numbers do. Without titles there are only rows.
pub fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let head = (!titles.is_empty()).then(|| titles.iter().map(|t| t.trim_start_matches('>').to_string()).collect());
    let all: Vec<Vec<String>> =
        head.into_iter().chain(rows.iter().map(|row| row.iter().map(|cell| line(cell)).collect())).collect();
    let columns = all.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |at: usize| all.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &all {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            let gap = " ".repeat(widths[at] - cell.chars().count());
            match titles.get(at) {
                Some(title) if title.starts_with('>') => line.push_str(&format!("{gap}{cell}  ")),
                _ => line.push_str(&format!("{cell}{gap}  ")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Seconds for people.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Shows the progress of a build.
pub struct Progress {
    bars: Option<MultiProgress>,
    /// The folder one stands in, with a slash: what is below it is shown relative to it.
    here: Option<String>,
    running: Mutex<Vec<(String, ProgressBar)>>,
    /// Lines of what is cached, not written yet: there may be ten thousand of them, and nobody waits for one.
    later: Mutex<String>,
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.flush("");
    }
}

impl Progress {
    /// Bars on a terminal, plain lines elsewhere.
    pub fn start(here: &Path) -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        let here = here.to_str().filter(|here| *here != "/").map(|here| format!("{here}/"));
        Self { bars, here, running: Mutex::default(), later: Mutex::default() }
    }

    fn line(&self, text: &str) {
        let text = &relative(text, self.here.as_deref());
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(text);
            }
            None => {
                self.flush(&format!("{text}\n"));
            }
        }
    }

    /// What a rule printed, each line behind its label; of a line that was written over, what was seen last.
    fn output(&self, label: &str, text: &str) {
        let line = |line: &str| {
            let seen = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
            format!("{label} | {}\n", clean(seen))
        };
        let text: String = text.lines().map(line).collect();
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(text.trim_end_matches('\n'));
            }
            None => self.flush(&text),
        }
    }

    /// A line that may wait for the next one.
    fn line_later(&self, text: &str) {
        if self.bars.is_some() {
            return self.line(text);
        }
        let mut later = self.later();
        later.push_str(&relative(text, self.here.as_deref()));
        later.push('\n');
        if later.len() > 16 << 10 {
            drop(later);
            self.flush("");
        }
    }

    fn later(&self) -> std::sync::MutexGuard<'_, String> {
        self.later.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn flush(&self, text: &str) {
        let mut later = self.later();
        later.push_str(text);
        if !later.is_empty() {
            let _ = std::io::stderr().lock().write_all(later.as_bytes());
            later.clear();
        }
    }

    fn begin(&self, name: &str, total: Option<u64>) {
        let Some(bars) = &self.bars else { return self.flush("") };
        let bar = match total {
            Some(total) => ProgressBar::new(total).with_style(
                ProgressStyle::with_template("{spinner} {msg} {bar:30} {bytes}/{total_bytes}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            ),
            None => ProgressBar::new_spinner().with_style(
                ProgressStyle::with_template("{spinner} {msg} {elapsed}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            ),
        };
        let bar = bars.add(bar.with_message(clean(name)));
        bar.enable_steady_tick(Duration::from_millis(120));
        self.running().push((name.to_string(), bar));
    }

    fn end(&self, name: &str) {
        let mut running = self.running();
        if let Some(i) = running.iter().position(|(n, _)| n == name) {
            running.remove(i).1.finish_and_clear();
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Vec<(String, ProgressBar)>> {
        self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Report for Progress {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Started { what, total } => self.begin(what, total),
            Event::Advanced { what, bytes } => {
                if let Some((_, bar)) = self.running().iter().find(|(n, _)| n == what) {
                    bar.inc(bytes);
                }
            }
            Event::Ended { what } => self.end(what),
            Event::Output { what, text } => self.output(&clean(what), text),
            Event::Done { verb, what, detail } => {
                let detail = if detail.is_empty() { String::new() } else { format!("  {detail}") };
                let text = format!("{verb:>8}  {}{detail}", clean(what));
                if verb == "cached" { self.line_later(&text) } else { self.line(&text) }
            }
            Event::Note { text } => self.line(&format!("{:>8}  {}", "note", indent(&clean(text)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Place;

    #[test]
    fn an_error_says_what_where_why_and_what_next() {
        let place = Place {
            file: "app/build.star".into(),
            line: 14,
            column: 5,
            length: 4,
            source: Some("    name = 1".into()),
        };
        let error =
            Error::request("a name must be a string").at(place, "this is an int").why("because").next("write \"1\"");
        let text = render(&error, false);
        for part in [
            "error: a name must be a string",
            "app/build.star:14:5",
            "name = 1",
            "^^^^ this is an int",
            "why:  because",
            "next: write \"1\"",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn a_path_below_the_folder_one_stands_in_is_shown_relative_to_it() {
        let here = Some("/home/a/");
        assert_eq!(relative("   wrote  //x  /home/a/out/x", here), "   wrote  //x  out/x");
        assert_eq!(relative("/home/a/x and (/home/a/y)", here), "x and (y)");
        assert_eq!(relative("/mnt/home/a/x /home/ab", here), "/mnt/home/a/x /home/ab");
        assert_eq!(relative("/home/a/x", None), "/home/a/x");
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        assert!(!render(&Error::failed("a\x1b[31mb"), false).contains('\x1b'));
    }
}
