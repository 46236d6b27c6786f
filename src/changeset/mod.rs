//! Changesets on disk: what a rule changed, captured, named, kept and stacked.
