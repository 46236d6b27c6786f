//! `tapeout push`

use super::image::find;
use crate::cli::args::{Global, Push as Args};
use crate::cli::{context, ui};
use crate::error::{Error, Result};
use crate::image::push::push;
use crate::remote::reference::Reference;
use crate::remote::registry::Repository;

/// Brings an image into a registry.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let reference = args.to.parse::<Reference>()?;
    if reference.digest.is_some() {
        return Err(Error::request(format!("{reference} names a digest"))
            .why("an image has the digest that its content gives it")
            .next("name a tag, or nothing: then it is the image's own"));
    }
    let found = find(global, &args.ask, &args.image)?;
    let repository = Repository::new(&reference, &context::keychain(), context::network(global));
    let tag = reference.tag.clone().unwrap_or_else(|| found.tag.clone());
    let progress = ui::Progress::start(&context::directory(global)?);
    let outcome = push(&found.image, &repository, &tag, &found.store, &progress)?;
    found.store.sync()?;
    if global.json {
        return ui::print_json(&outcome);
    }
    let how = match outcome.sent + outcome.mounted {
        0 => "all of it was there".to_string(),
        _ => format!(
            "{} sent, {} from other repositories, {} were there",
            ui::size(outcome.bytes),
            outcome.mounted,
            outcome.there
        ),
    };
    ui::print(&format!("{}\n{how}", outcome.reference));
    Ok(())
}
