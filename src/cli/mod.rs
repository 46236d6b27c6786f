//! The command line: the only place that prints, reads the environment or exits.

pub mod args;
pub mod commands;
pub mod context;
mod terminal;
pub mod ui;

use std::process::ExitCode;

use clap::Parser;

use crate::error::Result;
use args::{Cli, Command, PodCommand};

/// Parses, runs the command, and prints the error if there is one.
pub fn main() -> ExitCode {
    // clap ends the process itself: 0 for help and version, 2 for what it can't parse.
    let cli = Cli::parse();
    let outcome = run(&cli);
    crate::store::wait_until_clean();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            ui::print_error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Gives the exit code, which `shell` passes on from inside.
fn run(cli: &Cli) -> Result<u8> {
    let wish = context::wish(&cli.global);
    crate::execute::room::wish(wish);
    if wish.isolation == Some(crate::sandbox::Isolation::Chroot) {
        // It is root, or refused; it needs no namespace, and there may be none.
        crate::sys::process::drop_groups();
    } else if touches_the_store(&cli.command) {
        crate::sys::nursery::stay_outside();
        crate::store::help_removing(crate::sandbox::give_back);
        // Refused, it is tried again by the first sandbox, which says why; nothing is lost without it.
        let _ = crate::sys::process::enter_user_namespace();
    }
    let global = &cli.global;
    match &cli.command {
        Command::Build(args) => commands::build::run(global, args),
        Command::Bootstrap(args) => commands::bootstrap::run(global, args),
        Command::Lock(args) => commands::lock::run(global, args),
        Command::Fetch(args) => commands::fetch::run(global, args),
        Command::Init => commands::init::run(global),
        Command::List(args) => commands::list::run(global, args),
        Command::Graph(args) => commands::graph::run(global, args),
        Command::Shell(args) => return commands::shell::run(global, args),
        Command::Explain(args) => commands::explain::run(global, args),
        Command::Log(args) => commands::log::run(global, args),
        Command::Image(args) => commands::image::run(global, &args.command),
        Command::Export(args) => commands::export::run(global, args),
        Command::Push(args) => commands::push::run(global, args),
        Command::Gc(args) => commands::gc::run(global, args),
        Command::Fsck(args) => commands::fsck::run(global, args),
        Command::Pod(args) => match &args.command {
            PodCommand::Pack { bundle, output } => commands::pod::pack(global, bundle, output),
            PodCommand::Verify { bundle } => commands::pod::verify(global, bundle),
        },
        Command::Doctor(_) => commands::doctor::run(global),
        Command::Completions { shell } => commands::completions::run(*shell),
    }?;
    Ok(0)
}

/// These read and remove what rules made, folders of mode 000 among it.
fn touches_the_store(command: &Command) -> bool {
    !matches!(
        command,
        Command::Init
            | Command::List(_)
            | Command::Graph(_)
            | Command::Doctor(_)
            | Command::Pod(_)
            // The programs that know passwords want to be asked by the user's own ID.
            | Command::Push(_)
            | Command::Completions { .. }
    )
}
