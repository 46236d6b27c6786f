//! `tapeout doctor`

use serde::Serialize;

use crate::cli::args::Global;
use crate::cli::{context, ui};
use crate::error::{Error, Result};
use crate::sandbox::Probe;
use crate::sandbox::probe::State;
use crate::store::Store;

#[derive(Serialize)]
struct Examined<'a> {
    store: String,
    free: Option<u64>,
    #[serde(flatten)]
    probe: &'a Probe,
    can_run: bool,
}

/// Tries what a sandbox needs, and says what is there, what is done without it, and what mends it.
pub fn run(global: &Global) -> Result<()> {
    let path = context::store_path(global)?;
    let store = Store::open(&path)?;
    let scratch = store.scratch()?;
    let probe = Probe::this_machine(scratch.path());
    let free = nix::sys::statvfs::statvfs(&path).ok().map(|s| s.blocks_available() * s.fragment_size());
    let examined = Examined { store: path.display().to_string(), free, probe: &probe, can_run: probe.can_run() };
    if global.json {
        ui::print_json(&examined)?;
    } else {
        ui::print(&text(&examined));
    }
    if probe.can_run() {
        return Ok(());
    }
    let missing: Vec<_> =
        probe.findings.iter().filter(|f| f.state == State::Missing).map(|f| f.name.as_str()).collect();
    Err(Error::failed("no rule can run on this machine")
        .why(format!("it lacks: {}", missing.join(", ")))
        .next("see what tapeout doctor says of each"))
}

fn text(examined: &Examined) -> String {
    let mut text = format!("kernel {}\n", examined.probe.kernel);
    text.push_str(&format!("{:>8}  store: {}", "", examined.store));
    text.push_str(&examined.free.map_or(String::new(), |free| format!(", {} free", ui::size(free))));
    text.push('\n');
    for finding in &examined.probe.findings {
        let state = match finding.state {
            State::Good => "good",
            State::Weak => "weak",
            State::Missing => "missing",
        };
        text.push_str(&format!("{state:>8}  {}: {}\n", finding.name, finding.meaning));
        for why in &finding.why {
            text.push_str(&format!("{:>8}  why:  {}\n", "", ui::clean(why)));
        }
        if let Some(next) = &finding.next {
            text.push_str(&format!("{:>8}  next: {}\n", "", next.replace('\n', "\n                ")));
        }
    }
    text
}
