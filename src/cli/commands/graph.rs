//! `tapeout graph`

use crate::cli::args::{Global, Graph};
use crate::cli::{context, ui};
use crate::error::Result;
use crate::graph;

/// Prints the analysed graph as a tree, as DOT, or as JSON.
pub fn run(global: &Global, args: &Graph) -> Result<()> {
    let request = context::request(global, &args.ask, &args.labels)?;
    // It can do without a store, which may be somewhere that nobody can write to.
    let analysed = match context::store(global) {
        Ok(store) => graph::kept::analyse(&store, &request)?,
        Err(_) => graph::analyse(&request)?,
    };
    if global.json {
        ui::print_json(&analysed)
    } else if args.dot {
        ui::print(&graph::show::dot(&analysed));
        Ok(())
    } else {
        ui::print(&graph::show::tree(&analysed));
        Ok(())
    }
}
