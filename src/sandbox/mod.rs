//! The sandbox: namespaces, the snapshot, recorded owners.
