//! Pod bundles: images, static data and configuration of a tightly coupled group of containers, as a
//! folder that is carried to where it runs.
//!
//! ```text
//! pod.json            what the pod is (`described`; docs/pod.schema.json)
//! images/             one OCI image layout with all images, blobs once
//! volumes/NAME.tar.zst
//! files/              configuration files
//! kube.yaml           the pod for `podman kube play` and Kubernetes (`kube`, `yaml`)
//! systemd/            units that the build file named
//! SHA256SUMS          every file but itself
//! README              the commands that load and start it (`readme`)
//! ```
//!
//! `plan` checks what the build file says, and resolves names to numbers; the rest writes it down.
//! `carried` makes one file of a bundle, and checks one that arrived (`schema`).
//! All bytes, modes and times are the same for the same pod.

pub mod bundle;
pub mod carried;
pub mod described;
pub mod kube;
pub mod plan;
pub mod readme;
pub mod schema;
pub mod yaml;

pub use bundle::{Written, write};
pub use plan::{Image, Request};
