//! `tapeout shell`

use crate::build_file::spec::{Graph, Step};
use crate::cli::args::{Global, Shell as Args};
use crate::cli::{context, terminal, ui};
use crate::error::{Error, Result};
use crate::execute::base::{Base, Settings};
use crate::execute::build::{Build, Options};
use crate::execute::shell::{self, Room};
use crate::graph;
use crate::label::Pattern;
use crate::report::{Event, Report};
use crate::sandbox::{self, Isolation, Standard, Status};
use crate::store::Store;

/// Opens a shell, or runs a command, where a rule runs; gives the exit code.
pub fn run(global: &Global, args: &Args) -> Result<u8> {
    let progress = ui::Progress::start(&context::directory(global)?);
    let store = context::store(global)?;
    let room = if args.failed { failed(global, args, &store)? } else { sees(global, args, &store, &progress)? };
    let label = &args.label;
    enter(room, args, &progress).map_err(|e| match args.command.is_empty() && e.what().contains("/bin/sh can't") {
        true => Error::failed(format!("{label} has no shell"))
            .why(e.what().to_string())
            .next(format!("name a program that it has: tapeout shell {label} -- PROGRAM")),
        false => e,
    })
}

fn failed(global: &Global, args: &Args, store: &Store) -> Result<Room> {
    let (workspace, here) = context::workspace(global, &args.ask)?;
    let label = Pattern::one_in(&args.label, &here)?;
    for run in store.runs(&workspace.root, &label)?.iter().rev() {
        if let Some(room) = shell::left(store, &run.whose)? {
            return Ok(room);
        }
    }
    Err(Error::request(format!("{label} left nothing"))
        .why("it did not fail in this workspace, has succeeded since, or what it left was removed (the last eight are kept)")
        .next(format!("see what it sees: tapeout shell {label}")))
}

fn sees(global: &Global, args: &Args, store: &Store, report: &dyn Report) -> Result<Room> {
    let image = args.label.ends_with("/build_image");
    let request = context::request(global, &args.ask, std::slice::from_ref(&args.label))?;
    let mut graph: Graph = match graph::kept::analyse(store, &request) {
        // `:web` means the image, as elsewhere.
        Err(error) if !image => {
            let name = format!("{}/build_image", args.label);
            context::request(global, &args.ask, &[name])
                .and_then(|request| graph::kept::analyse(store, &request))
                .map_err(|_| error)?
        }
        other => other?,
    };
    // It is looked into, so nothing is written out.
    let requested = std::mem::take(&mut graph.requested);
    let [id] = requested[..] else {
        return Err(Error::request(format!("{} names {} rules", args.label, requested.len())).next("name one"));
    };
    let directory = context::directory(global)?;
    let settings = Settings {
        mirror: args.mirror.clone(),
        keyring: args.keyring.as_ref().map(|path| directory.join(path)),
        offline: global.offline,
        ..Settings::default()
    };
    let base = Base::ready(store, super::build::wanted(&request.workspace), &settings, report)?;
    let allow_network =
        args.allow_network.iter().map(|text| Pattern::one_in(text, &request.here)).collect::<Result<_>>()?;
    let options = Options {
        jobs: super::build::processors(),
        allow_network,
        offline: global.offline,
        ..super::build::as_is(&request.workspace, &base)
    };
    let build = Build::new(store, &graph, &base, &options, report);
    let ran = build.run_for_shell(id);
    base.save_lock()?;
    ran?;
    build.room(id)
}

fn enter(mut room: Room, args: &Args, report: &dyn Report) -> Result<u8> {
    report.event(Event::Note { text: &format!("in {}; what you change is thrown away when you leave", room.what) });
    room.spec.steps = vec![match &args.command[..] {
        [] => shell::default_shell(),
        command => Step::Argv(command.to_vec()),
    }];
    // Without namespaces there are no terminals of its own: pipes carry, and there is no job control.
    let outcome = if terminal::is_one() && room.spec.isolation == Isolation::Namespaces {
        room.spec.standard = Standard::Terminal;
        if let Ok(term) = std::env::var("TERM") {
            room.spec.env.entry("TERM".to_string()).or_insert(term);
        }
        sandbox::run_on_terminal(&room.spec, terminal::relay)
    } else {
        room.spec.standard = Standard::Given;
        let (pipes, given) = terminal::Pipes::open()?;
        let outcome = sandbox::run_with(&room.spec, given);
        pipes.finish();
        outcome
    }?;
    for text in &outcome.weakened {
        report.event(Event::Note { text });
    }
    Ok(match outcome.status {
        Status::Exited(code) => u8::try_from(code).unwrap_or(1),
        Status::Signalled(signal) => u8::try_from(128 + signal).unwrap_or(1),
        Status::Limit(_) => 1,
    })
}
