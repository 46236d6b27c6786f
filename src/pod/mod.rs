//! Pod bundles.
