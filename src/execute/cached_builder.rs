//! A builder with rules already built in: `tapeout bootstrap TAG --from rule://LABEL`.

use crate::build_file::spec::{Id, Spec};
use crate::error::{Error, Result};
use crate::execute::build::{Build, kind};
use crate::store::Builder;

impl Build<'_> {
    /// What a rule that depends on this one sees, but for its sources, as a builder. All of it must have run.
    pub fn as_builder(&self, id: Id, tag: &str, from: &str) -> Result<Builder> {
        let instance = &self.graph.instances[id];
        let refused = match &instance.spec {
            Spec::Rule(_) | Spec::Archive(_) | Spec::Git(_) if self.base.is_host() => Some(
                Error::request(format!("{} stands on the builder host", instance.label))
                    .why("that is this machine itself, whose files change under a builder that is kept")
                    .next("build it on another one: tapeout bootstrap --help lists them"),
            ),
            Spec::Rule(_) | Spec::Archive(_) | Spec::Git(_) => None,
            spec => Some(
                Error::request(format!("{} is of kind {}, and changes nothing", instance.label, kind(spec)))
                    .next("name what is built: a rule, an archive or a git"),
            ),
        };
        if let Some(refused) = refused {
            return Err(refused.at(instance.place.clone(), ""));
        }
        let stack = self.snapshot(id, None)?.stack(self.store, self.graph, &self.order)?;
        let own = self.output(id)?.changeset();
        let mut packages = self.base.installed().clone();
        for package in self.base.packages_of(&instance.packages, self.report)? {
            packages.insert(package.name, package.version);
        }
        let hermetic = |id: &Id| !matches!(&self.graph.instances[*id].spec, Spec::Rule(rule) if rule.network);
        let mut all = self.order.as_written(id);
        all.push(id);
        Ok(Builder {
            tag: tag.to_string(),
            from: from.to_string(),
            changesets: stack.0.iter().map(|layer| layer.digest).chain(own).collect(),
            packages,
            // Whoever adds packages to it would have to know what its rules made of the package database.
            lock: None,
            reproducible: self.base.is_reproducible() && all.iter().all(hermetic),
        })
    }
}
