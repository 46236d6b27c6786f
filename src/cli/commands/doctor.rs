//! `tapeout doctor`

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::build_file::workspace::Workspace;
use crate::builder::From;
use crate::builder::debian::{self, signature::Keyring, sources};
use crate::builder::lock_file::Lock;
use crate::cli::args::Global;
use crate::cli::{context, ui};
use crate::error::{Error, Result};
use crate::execute::base::Base;
use crate::remote::http::{Http, Network};
use crate::sandbox::{Finding, Isolation, Machine, State, findings};
use crate::store::Store;

/// A mirror that takes longer to answer is as good as none.
const PATIENCE: Duration = Duration::from_secs(5);

/// What `--json` prints; docs/kernel.md describes it.
#[derive(Serialize)]
struct Examined {
    tapeout: &'static str,
    kernel: String,
    uid: u32,
    store: String,
    can_build: bool,
    findings: Vec<Finding>,
}

/// Tries what a build needs, and says what is there, what is done without it, and what mends it.
pub fn run(global: &Global) -> Result<()> {
    let path = context::store_path(global)?;
    let opened = Store::open(&path).and_then(|store| store.scratch().map(|scratch| (store, scratch)));
    let folders = opened.as_ref().map(|(_, scratch)| (path.as_path(), scratch.path())).map_err(Clone::clone);
    let machine = Machine::here(context::wish(global).isolation.unwrap_or(Isolation::Namespaces), folders);
    let mut findings = findings(&machine);
    let workspace = context::directory(global).and_then(|here| Workspace::find(&here)).ok();
    findings.extend(outside(global, workspace.as_ref(), machine.now));
    let missing: Vec<_> = findings.iter().filter(|f| f.state == State::Missing).map(|f| f.name.clone()).collect();
    let examined = Examined {
        tapeout: env!("CARGO_PKG_VERSION"),
        kernel: machine.kernel,
        uid: machine.uid,
        store: path.display().to_string(),
        can_build: missing.is_empty(),
        findings,
    };
    match global.json {
        true => ui::print_json(&examined)?,
        false => ui::print(&text(&examined)),
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::failed("nothing can be built here")
        .why(format!("it lacks: {}", missing.join(", ")))
        .next("see what tapeout doctor says of each"))
}

/// What a builder from Debian needs of the world: a clock, keys, a mirror.
fn outside(global: &Global, workspace: Option<&Workspace>, now: i64) -> Vec<Finding> {
    let config = workspace.and_then(|w| w.builder.clone()).unwrap_or_else(Base::default_config);
    let suite = match config.from.as_deref().map(str::parse) {
        None => "bookworm".to_string(),
        Some(Ok(From::Debian(suite))) => suite,
        Some(_) => return vec![clock(now, &[])],
    };
    let keyring = match Keyring::debian() {
        Ok(keyring) => keyring,
        Err(error) => return vec![Finding::weak("keyring", "no builder can be made from Debian").why(error.what())],
    };
    let lock = workspace.and_then(|w| Lock::read(&w.root.join("tapeout.lock")).ok().flatten());
    let mut dates = vec![(keyring.newest(), "the newest key of Debian's keyring was made")];
    dates.extend(lock.as_ref().and_then(Lock::date).map(|date| (date, "the index in tapeout.lock was made")));
    let mut all = vec![clock(now, &dates), keys(keyring.usable(now))];
    if !global.offline {
        let mirrors: Vec<_> = config.mirror.into_iter().collect();
        all.push(mirror(&suite, asked(&suite, &mirrors)));
    }
    all
}

/// Is the time later than what must lie in the past?
fn clock(now: i64, past: &[(i64, &str)]) -> Finding {
    const DAY: i64 = 86_400;
    match past.iter().max().filter(|(date, _)| *date > now + DAY) {
        None => Finding::good("clock", "later than all that must lie in the past"),
        Some((date, what)) => Finding::weak(
            "clock",
            "signed indexes and certificates count as not yet valid; with a lock and a full store builds go on",
        )
        .why(format!("it is {} days before {what}", (date - now) / DAY))
        .administrator("timedatectl set-ntp true, or: date -u -s 'YYYY-MM-DD hh:mm'"),
    }
}

fn keys(usable: usize) -> Finding {
    match usable {
        0 => Finding::weak(
            "keyring",
            "no index of Debian can be verified: builders are made from a lock and a full store alone",
        )
        .why("all built-in keys have expired by this machine's clock")
        .user("give newer keys: tapeout lock --keyring FILE (Debian: package debian-archive-keyring)"),
        n => Finding::good("keyring", format!("Debian's, built in: {n} keys that are good today")),
    }
}

/// Does a mirror of the suite answer? Which one.
fn asked(suite: &str, mirrors: &[String]) -> Result<String> {
    let sources = sources::sources(suite, debian::host_architecture()?, mirrors, Path::new("/etc/apt"))?;
    let source = sources.iter().find(|source| source.suite == suite).or(sources.first());
    let uri = source.map(|source| source.uri.clone()).unwrap_or_default();
    Http::new(Network::Allowed).answers(&format!("{uri}/dists/{suite}/InRelease"), PATIENCE)?;
    Ok(uri)
}

fn mirror(suite: &str, answer: Result<String>) -> Finding {
    let error = match answer {
        Ok(uri) => return Finding::good("mirror", format!("{} has {suite}", crate::remote::http::shown(&uri))),
        Err(error) => error,
    };
    let weak =
        Finding::weak("mirror", "what isn't in the store or in a file of tapeout fetch can't be had").why(error.what());
    error
        .reasons()
        .iter()
        .cloned()
        .fold(weak, Finding::why)
        .user("name one: mirror = \"URL\" under [builder] in tapeout.toml, or set http_proxy; without a network: tapeout build --inputs FILE")
}

/// One line for each thing, and below it what there is to say.
fn text(examined: &Examined) -> String {
    let mut text = format!("Tapeout {}, Linux {}, user {}\n\n", examined.tapeout, examined.kernel, examined.uid);
    let widest = examined.findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    for finding in &examined.findings {
        let state = match finding.state {
            State::Good => "good",
            State::Weak => "weak",
            State::Missing => "missing",
        };
        text.push_str(&format!("{state:<7}  {:<widest$}  {}\n", finding.name, ui::clean(&finding.meaning)));
        let whys = finding.why.iter().map(|why| ("why", why));
        let mends = [("you", &finding.user), ("administrator", &finding.administrator)];
        for (who, words) in whys.chain(mends.into_iter().filter_map(|(who, words)| Some((who, words.as_ref()?)))) {
            let words = ui::clean(words);
            // What has several lines is to be copied as it stands.
            let (gap, words) = match words.contains('\n') {
                true => ("\n", words),
                false => (" ", words),
            };
            text.push_str(&format!("{:7}  {who}:{gap}{words}\n", ""));
        }
    }
    if examined.can_build {
        let weak = examined.findings.iter().filter(|finding| finding.state == State::Weak).count();
        text.push_str(match weak {
            0 => "\nBuilds run here as well as they can.\n",
            _ => "\nBuilds run here; what is weak is said above.\n",
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_wrong_when_it_is_before_what_has_been() {
        const DAY: i64 = 86_400;
        assert_eq!(clock(100 * DAY, &[(50 * DAY, "a"), (100 * DAY + 5, "b")]).state, State::Good);
        let wrong = clock(10 * DAY, &[(50 * DAY, "a"), (40 * DAY, "b")]);
        assert_eq!((wrong.state, wrong.why[0].as_str()), (State::Weak, "it is 40 days before a"));
        assert_eq!(clock(0, &[]).state, State::Good);
    }

    #[test]
    fn a_keyring_without_a_good_key_is_weak_and_the_built_in_one_has_some() {
        let keyring = Keyring::debian().unwrap();
        assert_eq!(keys(keyring.usable(keyring.newest())).state, State::Good);
        assert_eq!(keys(0).state, State::Weak);
    }

    #[test]
    fn a_mirror_that_does_not_answer_says_why_and_what_to_do() {
        let silent = mirror("bookworm", Err(Error::failed("http://m: connection refused").why("reason")));
        assert_eq!((silent.state, silent.why.len()), (State::Weak, 2));
        assert!(silent.user.unwrap().contains("mirror ="));
        let folder = tempfile::tempdir().unwrap();
        let uri = format!("file:{}", folder.path().display());
        assert!(asked("bookworm", std::slice::from_ref(&uri)).is_err());
        std::fs::create_dir_all(folder.path().join("dists/bookworm")).unwrap();
        std::fs::write(folder.path().join("dists/bookworm/InRelease"), "").unwrap();
        assert_eq!(asked("bookworm", std::slice::from_ref(&uri)).unwrap(), uri);
    }

    #[test]
    fn what_is_to_be_copied_stands_at_the_left_and_all_else_in_columns() {
        let findings = vec![
            Finding::good("a", "is there"),
            Finding::missing("longer", "isn't").why("because").administrator("first\n  second"),
        ];
        let examined =
            Examined { tapeout: "1", kernel: "6".into(), uid: 7, store: "/s".into(), can_build: false, findings };
        assert_eq!(
            text(&examined),
            "Tapeout 1, Linux 6, user 7\n\ngood     a       is there\nmissing  longer  isn't\n         why: because\n         \
             administrator:\nfirst\n  second\n"
        );
    }
}
