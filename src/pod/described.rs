//! `pod.json`: what a pod is, for programs. `docs/pod.schema.json` is its schema; a test holds the two
//! together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The form of this document. A reader refuses a number that it doesn't know.
pub const FORMAT: u32 = 1;

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// [`FORMAT`].
    pub format_version: u32,
    /// Its name: a host name.
    pub name: String,
    /// The rule that made it.
    pub label: String,
    /// Version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `SOURCE_DATE_EPOCH` as RFC 3339 has it.
    pub created: String,
    /// Containers, as written.
    pub containers: Vec<Container>,
    /// The images in `images/`, by name.
    pub images: Vec<Image>,
    /// Volumes, as written.
    pub volumes: Vec<Volume>,
    /// Files in `files/`, by path.
    pub files: Vec<File>,
    /// Ports that the pod publishes.
    pub ports: Vec<Port>,
    /// Names of the units in `systemd/`.
    pub systemd_units: Vec<String>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Container {
    /// Its name in the pod.
    pub name: String,
    /// What `kube.yaml` calls its image.
    pub image: String,
    /// The digest of the image's manifest.
    pub digest: Digest,
    /// Instead of the image's entrypoint and command; empty: the image's.
    pub command: Vec<String>,
    /// Environment besides the image's.
    pub env: BTreeMap<String, String>,
    /// Number of its user; absent: the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// Number of its group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// Empty: the image's.
    pub working_dir: String,
    /// The root file system can't be written.
    pub read_only: bool,
    /// Folders that are writable all the same, and empty at the start.
    pub writable: Vec<String>,
    /// What is mounted where.
    pub mounts: Vec<Mount>,
    /// Ports that it listens on.
    pub ports: Vec<Port>,
    /// `liveness`, `readiness`, `startup`.
    pub probes: BTreeMap<String, Probe>,
    /// `always`, `on-failure`, `never`.
    pub restart: String,
}

/// A mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// The name of a volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Or the path of a file below `files/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Where.
    pub path: String,
    /// It can't be written there.
    pub read_only: bool,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// Inside.
    pub port: u16,
    /// On the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<u16>,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// How to see whether a container is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// A command that exits 0.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub exec: Vec<String>,
    /// Or an HTTP path on `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Or that this port accepts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Seconds between two.
    pub period: u64,
}

/// An image of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Its tag in the layout: `oci:images:NAME`.
    pub name: String,
    /// What `kube.yaml` calls it.
    pub reference: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The rule that made it.
    pub label: String,
    /// Version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    /// Its name in the pod.
    pub name: String,
    /// `files`, `hostPath` or `empty`.
    pub kind: String,
    /// For `files`: the name of the volume where the pod runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// For `files`: the archive, from the bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
    /// For `files`: the digest of the archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// For `hostPath`: the folder of the machine where the pod runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// No container can write it.
    pub read_only: bool,
}

/// A configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// Below `files/`.
    pub path: String,
    /// `file`, `folder` or `link`.
    pub kind: String,
    /// For `file`: the digest of its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// For `link`: its target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Mode that it is meant to have, in octal.
    pub mode: String,
    /// Number of the owner that it is meant to have.
    pub owner: u32,
    /// Number of the group.
    pub group: u32,
}
