//! Builders: base root filesystems under a tag in the store.
