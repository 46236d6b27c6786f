//! `tapeout build`

use std::num::NonZeroUsize;

use serde::Serialize;

use crate::build_file::spec::{Graph, Spec, Value};
use crate::build_file::workspace::Workspace;
use crate::cli::args::{Build as Args, Global};
use crate::cli::{context, ui};
use crate::error::{Error, Result};
use crate::execute::base::{Base, Settings, Wanted};
use crate::execute::build::{self, Build, Forecast, Options, Output};
use crate::execute::secrets::{self, Secrets};
use crate::execute::unchanged::{self, Recorder, Watch};
use crate::execute::{room, wants};
use crate::graph;
use crate::label::{Label, Pattern};
use crate::report::{Event, Report};
use crate::store::Store;
use crate::store::inputs::Inputs;

/// Builds what the labels name, or says what would be built.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let request = context::request(global, &args.ask, &args.labels)?;
    let store = context::store(global)?;
    let directory = context::directory(global)?;
    let progress = ui::Progress::start(&directory);
    let output = match &args.output {
        Some(output) => directory.join(output),
        None => request.workspace.root.join("tapeout-out"),
    };
    let allow_network =
        args.allow_network.iter().map(|text| Pattern::one_in(text, &request.here)).collect::<Result<_>>()?;
    let settings = Settings {
        mirror: args.mirror.clone(),
        keyring: args.keyring.as_ref().map(|path| directory.join(path)),
        locked: args.locked,
        offline: global.offline,
        keychain: context::keychain(),
        dry: args.dry_run,
        ..Settings::default()
    };
    let plain = !args.dry_run
        && !args.twice
        && !global.offline
        && args.secrets.is_empty()
        && args.input_files.is_empty()
        && !room::is_open();
    let key = if plain {
        Some(unchanged::key(&request, &(&output, &args.mirror, &settings.keyring, args.locked))?)
    } else {
        None
    };
    // The graph and the record of the last build are looked at at once: both mostly ask the kernel about thousands of files.
    let (asked, recalled) = std::thread::scope(|scope| {
        let recalled = key.as_ref().map(|key| scope.spawn(|| unchanged::recall(&store, key)));
        // A graph that holds a secret is refused; kept before that, it would stay on the disk.
        let asked = args.secrets.is_empty().then(|| graph::kept::ask(&store, &request)).transpose();
        (asked, recalled.and_then(|recalled| recalled.join().ok().flatten()))
    });
    let asked = asked?;
    let plan = asked.as_ref().and_then(|asked| asked.plan());
    let mut planned = None;
    if let Some(record) = recalled.filter(|record| plan.is_some_and(|plan| record.is_of(&plan))) {
        let base = Base::planned(&store, wanted(&request.workspace), &settings, &progress)?;
        if record.stands_on(&base) {
            record.tell(&store, &progress);
            if global.json {
                ui::print(&record.outcomes);
            }
            return Ok(());
        }
        planned = Some(base);
    }
    let graph = match asked {
        Some(asked) => asked.graph()?,
        None => graph::analyse(&request)?,
    };
    if !args.input_files.is_empty() {
        let paths: Vec<_> = args.input_files.iter().map(|path| directory.join(path)).collect();
        store.use_inputs(Inputs::open(&paths)?);
    }
    let mut base = match planned {
        Some(base) => base,
        None => Base::planned(&store, wanted(&request.workspace), &settings, &progress)?,
    };
    let options = Options {
        workspace: request.workspace.root.clone(),
        jobs: args.jobs.unwrap_or_else(processors),
        epoch: base.epoch,
        output,
        allow_network,
        inputs: request.workspace.inputs.clone(),
        mirrors: request.workspace.mirrors.clone(),
        environment: context::tools(),
        offline: global.offline,
        secrets: context::secrets(&args.secrets, &directory)?,
    };
    for name in options.secrets.unused(&graph) {
        // A slip of the pen, or of whoever wrote the build file: what was meant to have it runs without.
        let text =
            format!("no rule of this command names the secret {name}: a rule that reads it has secrets = [{name:?}]");
        progress.event(Event::Note { text: &text });
    }
    if args.dry_run {
        let planned = Build::new(&store, &graph, &base, &options, &crate::report::Silent);
        // Without a network, what is missing is the error that the build itself would end with.
        let checked = if global.offline { wants::check(&planned, &args.labels) } else { Ok(()) };
        return match planned.forecast() {
            Ok(forecasts) => print_plan(global, &graph, &base, forecasts).and(checked),
            // What is missing may be why nothing can be forecast.
            Err(error) => Err(checked.err().unwrap_or(error)),
        };
    }
    if global.offline {
        let planned = Build::new(&store, &graph, &base, &options, &crate::report::Silent);
        let checked = wants::check(&planned, &args.labels);
        base.save_lock()?;
        checked?;
    }
    base.make(&progress)?;
    let watch = key.and_then(|key| Watch::begin(&store, key, plan, &graph, &base, &options));
    let recorder = Recorder::new(&progress);
    let built = build(&store, &graph, &base, &options, &recorder);
    base.save_lock()?;
    let outcomes = ui::json(&built?)?;
    if let Some(watch) = watch {
        watch.end(&base, recorder, &outcomes);
    }
    if args.twice {
        return twice(global, &store, &graph, &base, &options, &progress);
    }
    if global.json {
        ui::print(&outcomes);
    }
    Ok(())
}

/// Runs what was built again; what comes out differently is an error.
fn twice(
    global: &Global,
    store: &Store,
    graph: &Graph,
    base: &Base,
    options: &Options,
    report: &dyn Report,
) -> Result<()> {
    let build = Build::new(store, graph, base, options, report);
    // All of it is in the store now; a pod's bundle alone is made anew, and nothing runs in it.
    Build::forecast(&build)?;
    let differing = build.again()?;
    if global.json {
        ui::print_json(&differing)?;
    } else if !differing.is_empty() {
        let short = |digest: &Option<crate::digest::Digest>| digest.map_or(String::new(), |digest| digest.short());
        let rows: Vec<_> = differing
            .iter()
            .map(|one| {
                let byte = one.byte.map_or(String::new(), |byte| format!(", from byte {byte}"));
                let how = format!("{}{byte}", one.how.join(", "));
                vec![one.rule.to_string(), one.path.clone(), short(&one.first), short(&one.second), how]
            })
            .collect();
        ui::print(&ui::table(&["RULE", "PATH", "FIRST", "SECOND", ""], &rows));
    }
    match differing.first() {
        None => Ok(()),
        Some(first) => Err(Error::failed(format!(
            "{} came out differently the second time",
            crate::report::counted(differing.len(), "file")
        ))
        .next(format!(
            "find what {} takes from the clock, from random numbers or from the order of files",
            first.rule
        ))),
    }
}

/// What one requested label came to.
#[derive(Serialize)]
struct Outcome {
    label: Label,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<std::path::PathBuf>,
    /// What this build did weaker or slower than it is done elsewhere. It is in no image: their bytes are the same.
    weakened: Vec<String>,
}

fn build(store: &Store, graph: &Graph, base: &Base, options: &Options, report: &dyn Report) -> Result<Vec<Outcome>> {
    let build = Build::new(store, graph, base, options, report);
    build.run()?;
    graph
        .requested
        .iter()
        .map(|&id| {
            let instance = &graph.instances[id];
            let (digest, path) = match build.output(id)? {
                Output::Changeset(digest) => (digest.map(|d| d.to_string()), None),
                Output::Selection { selection, .. } => (Some(selection.to_string()), None),
                Output::Image(image) => (Some(image.manifest.digest.to_string()), image.path.clone()),
                Output::Pod(path) => (None, Some(path.clone())),
            };
            let (label, kind) = (instance.label.clone(), build::kind(&instance.spec));
            Ok(Outcome { label, kind, digest, path, weakened: build.weakened() })
        })
        .collect()
}

#[derive(Serialize)]
struct Planned<'a> {
    label: &'a Label,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a Label>,
    state: Forecast,
    packages: &'a [String],
    parameters: &'a std::collections::BTreeMap<Label, Value>,
    hermetic: bool,
    reproducible: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    secrets: &'a [String],
}

fn print_plan(global: &Global, graph: &Graph, base: &Base, forecasts: Vec<Forecast>) -> Result<()> {
    let plan: Vec<_> = graph
        .instances
        .iter()
        .zip(forecasts)
        .map(|(instance, state)| Planned {
            label: &instance.label,
            kind: build::kind(&instance.spec),
            image: instance.image.as_ref(),
            state,
            packages: &instance.packages,
            parameters: &instance.parameters,
            hermetic: !matches!(&instance.spec, Spec::Rule(rule) if rule.network),
            reproducible: !base.is_host(),
            secrets: secrets::wanted(&instance.spec),
        })
        .collect();
    if global.json {
        return ui::print_json(&plan);
    }
    let mut text = String::new();
    for step in &plan {
        let state = match step.state {
            Forecast::Cached => "cached",
            Forecast::Run => "run",
            Forecast::Unknown => "maybe",
            Forecast::Group => "group",
        };
        text.push_str(&format!("{state:>8}  {}", step.label));
        if let Some(image) = step.image {
            text.push_str(&format!(" for {image}"));
        }
        for (label, value) in step.parameters {
            text.push_str(&format!("  {label}={}", serde_json::to_string(value).unwrap_or_default()));
        }
        if step.label.is_base_build() && !step.packages.is_empty() {
            text.push_str(&format!("  with {}", step.packages.join(", ")));
        }
        if !step.hermetic {
            text.push_str(&format!("  ({})", build::NOT_HERMETIC));
        }
        if !step.reproducible {
            text.push_str("  (not reproducible: the builder is this machine)");
        }
        if !step.secrets.is_empty() {
            text.push_str(&format!("  (needs --secret {})", step.secrets.join(", ")));
        }
        text.push('\n');
    }
    ui::print(&text);
    Ok(())
}

/// As many jobs as processors that we may use.
pub fn processors() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// The builder that a workspace wants.
pub fn wanted(workspace: &Workspace) -> Wanted<'_> {
    let config = workspace.builder.clone().unwrap_or_else(Base::default_config);
    Wanted { config, epoch: workspace.epoch, folder: &workspace.root, lock_path: workspace.root.join("tapeout.lock") }
}

/// The builder as the store has it: nothing is made or fetched.
pub fn base_as_is(store: &Store, workspace: &Workspace) -> Result<Base> {
    let settings = Settings { locked: true, offline: true, dry: true, ..Settings::default() };
    Base::ready(store, wanted(workspace), &settings, &crate::report::Silent)
}

/// How to look at what a build would do, or did: nothing runs, nothing is fetched or written.
pub fn as_is(workspace: &Workspace, base: &Base) -> Options {
    Options {
        workspace: workspace.root.clone(),
        jobs: NonZeroUsize::MIN,
        epoch: base.epoch,
        output: std::path::PathBuf::new(),
        allow_network: vec![],
        inputs: workspace.inputs.clone(),
        mirrors: workspace.mirrors.clone(),
        environment: context::tools(),
        offline: true,
        secrets: Secrets::default(),
    }
}
