//! The config and the manifest of an image (OCI image-spec 1.1, config.md and manifest.md).
//! Nothing in them depends on the clock, the machine or the order of a map.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use chrono::{DateTime, SecondsFormat};
use oci_spec::image::{
    ANNOTATION_CREATED, ANNOTATION_TITLE, ANNOTATION_VERSION, Arch, ConfigBuilder, Descriptor, History, HistoryBuilder,
    ImageConfigurationBuilder, ImageManifestBuilder, MediaType, Os, RootFsBuilder,
};

use super::json;
use super::layer::LayerInfo;
use crate::build_file::spec::{Compression, Image, Platform};
use crate::digest::Digest;
use crate::error::{Error, Result};

/// GOARCH's word for the machine that images are built on and for.
pub const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else if cfg!(target_arch = "riscv64") {
    "riscv64"
} else if cfg!(target_arch = "s390x") {
    "s390x"
} else if cfg!(target_arch = "powerpc64") {
    "ppc64le"
} else {
    "unknown"
};

/// Who an image runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The number of its own group.
    pub gid: u32,
    /// The groups besides, of which the image's `/etc/group` says that it is a member.
    pub groups: Vec<u32>,
}

impl fmt::Display for User {
    /// A runtime looks further groups up where no group is said (image-spec config.md, "User"); what it finds depends on
    /// nothing else where there are none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.groups.is_empty() {
            true => write!(f, "{}:{}", self.uid, self.gid),
            false => write!(f, "{}", self.uid),
        }
    }
}

/// What an image is for.
pub fn platform(image: &Image) -> Platform {
    image.platform.clone().unwrap_or_else(|| Platform { architecture: ARCHITECTURE.to_string(), variant: None })
}

/// A layer of an image, and which rule it came from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageLayer {
    /// The layer.
    pub info: LayerInfo,
    /// The rule's label.
    pub created_by: String,
}

/// The media type of a layer.
pub fn media_type(compression: Compression) -> MediaType {
    match compression {
        Compression::Zstd => MediaType::ImageLayerZstd,
        Compression::Gzip => MediaType::ImageLayerGzip,
        Compression::None => MediaType::ImageLayer,
    }
}

/// Seconds since 1970 as RFC 3339 has them.
pub fn rfc3339(epoch: i64) -> Result<String> {
    let time = DateTime::from_timestamp(epoch, 0).ok_or_else(|| Error::request(format!("not a time: {epoch}")))?;
    Ok(time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// When an image was made, as its config says: seconds since 1970.
pub fn epoch_of(config: &[u8]) -> Option<i64> {
    let config: serde_json::Value = serde_json::from_slice(config).ok()?;
    DateTime::parse_from_rfc3339(config["created"].as_str()?).ok().map(|time| time.timestamp())
}

/// Writes the config of an image. `user` is resolved to numbers; `None`: the image names none.
pub fn config(image: &Image, user: Option<&User>, layers: &[ImageLayer], epoch: i64) -> Result<Vec<u8>> {
    let created = rfc3339(epoch)?;
    let bad = |e: oci_spec::OciSpecError| Error::failed(format!("can't write an image's config: {e}"));
    let mut run = ConfigBuilder::default();
    if let Some(user) = user {
        run = run.user(user.to_string());
    }
    if !image.ports.is_empty() {
        run = run.exposed_ports(image.ports.iter().map(|port| with_protocol(port)).collect::<Vec<_>>());
    }
    if !image.env.is_empty() {
        run = run.env(image.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>());
    }
    if !image.entrypoint.is_empty() {
        run = run.entrypoint(image.entrypoint.clone());
    }
    if !image.cmd.is_empty() {
        run = run.cmd(image.cmd.clone());
    }
    if !image.volumes.is_empty() {
        run = run.volumes(image.volumes.clone());
    }
    if !image.working_dir.is_empty() {
        run = run.working_dir(image.working_dir.clone());
    }
    if !image.stop_signal.is_empty() {
        run = run.stop_signal(image.stop_signal.clone());
    }
    if !image.labels.is_empty() {
        run = run.labels(hash_map(&image.labels));
    }
    let history = layers.iter().map(|layer| history(layer, &created)).collect::<Result<Vec<_>>>()?;
    let diff_ids = layers.iter().map(|layer| layer.info.diff_id.to_string()).collect::<Vec<_>>();
    let rootfs = RootFsBuilder::default().typ("layers".to_string()).diff_ids(diff_ids).build().map_err(bad)?;
    let platform = platform(image);
    let mut config = ImageConfigurationBuilder::default();
    if let Some(variant) = platform.variant {
        config = config.variant(variant);
    }
    let config = config
        .created(created)
        .architecture(Arch::from(platform.architecture.as_str()))
        .os(Os::Linux)
        .config(run.build().map_err(bad)?)
        .rootfs(rootfs)
        .history(history)
        .build()
        .map_err(bad)?;
    json::write(&config)
}

fn history(layer: &ImageLayer, created: &str) -> Result<History> {
    let history = HistoryBuilder::default().created(created).created_by(layer.created_by.clone()).build();
    history.map_err(|e| Error::failed(format!("can't write an image's config: {e}")))
}

fn with_protocol(port: &str) -> String {
    if port.contains('/') { port.to_string() } else { format!("{port}/tcp") }
}

// oci-spec keeps these in a HashMap; `json::write` sorts what comes out of it.
fn hash_map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A descriptor with a digest of ours.
pub fn descriptor(media_type: MediaType, digest: &Digest, size: u64) -> Result<Descriptor> {
    let digest: oci_spec::image::Digest =
        digest.to_string().parse().map_err(|e| Error::failed(format!("can't write the digest {digest}: {e}")))?;
    Ok(Descriptor::new(media_type, size, digest))
}

/// Annotations that say what an image is: its name, version, time, and what the build file adds.
pub fn annotations(image: &Image, title: &str, epoch: i64) -> Result<BTreeMap<String, String>> {
    let mut annotations = BTreeMap::from([
        (ANNOTATION_TITLE.to_string(), title.to_string()),
        (ANNOTATION_CREATED.to_string(), rfc3339(epoch)?),
    ]);
    annotations.extend(image.version.iter().map(|version| (ANNOTATION_VERSION.to_string(), version.clone())));
    annotations.extend(image.annotations.clone());
    Ok(annotations)
}

/// Writes the manifest of an image.
pub fn manifest(config: &[u8], layers: &[ImageLayer], annotations: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let layers = (layers.iter())
        .map(|layer| descriptor(media_type(layer.info.compression), &layer.info.digest, layer.info.size))
        .collect::<Result<Vec<_>>>()?;
    let mut manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(MediaType::ImageConfig, &Digest::of(config), config.len() as u64)?)
        .layers(layers);
    if !annotations.is_empty() {
        manifest = manifest.annotations(hash_map(annotations));
    }
    json::write(&manifest.build().map_err(|e| Error::failed(format!("can't write an image's manifest: {e}")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> Vec<ImageLayer> {
        let info = LayerInfo {
            diff_id: Digest::of("tar"),
            digest: Digest::of("zst"),
            size: 3,
            compression: Compression::Zstd,
        };
        vec![ImageLayer { info, created_by: "//app:tapeout".into() }]
    }

    #[test]
    fn a_config_says_what_the_build_file_said() {
        let image = Image {
            entrypoint: vec!["/bin/web".into()],
            env: BTreeMap::from([("B".into(), "2".into()), ("A".into(), "1".into())]),
            ports: vec!["80".into(), "53/udp".into()],
            labels: BTreeMap::from([("b".into(), "2".into()), ("a".into(), "1".into())]),
            ..Image::default()
        };
        let user = User { uid: 33, gid: 33, groups: vec![] };
        let text = String::from_utf8(config(&image, Some(&user), &layers(), 1767225600).unwrap()).unwrap();
        let expected = format!(
            concat!(
                r#"{{"architecture":"{}","config":{{"Entrypoint":["/bin/web"],"Env":["A=1","B=2"],"ExposedPorts":{{"53/udp":{{}},"80/tcp":{{}}}},"#,
                r#""Labels":{{"a":"1","b":"2"}},"User":"33:33"}},"created":"2026-01-01T00:00:00Z","#,
                r#""history":[{{"created":"2026-01-01T00:00:00Z","created_by":"//app:tapeout"}}],"os":"linux","rootfs":{{"diff_ids":["{}"],"type":"layers"}}}}"#
            ),
            ARCHITECTURE,
            Digest::of("tar")
        );
        assert_eq!(text, expected);
        // Whoever is in further groups gets them where the group isn't said.
        let member = User { groups: vec![4], ..user };
        let platform = Some(Platform { architecture: "arm".into(), variant: Some("v7".into()) });
        let other = config(&Image { platform, ..image }, Some(&member), &layers(), 1767225600).unwrap();
        let other = String::from_utf8(other).unwrap();
        assert!(other.contains(r#""User":"33"}"#) && other.ends_with(r#""variant":"v7"}"#), "{other}");
        assert!(other.starts_with(r#"{"architecture":"arm","#), "{other}");
    }

    #[test]
    fn a_manifest_names_config_and_layers() {
        let image = Image { version: Some("1.2".into()), ..Image::default() };
        let annotations = annotations(&image, "web", 0).unwrap();
        let text = String::from_utf8(manifest(b"{}", &layers(), &annotations).unwrap()).unwrap();
        let expected = format!(
            concat!(
                r#"{{"annotations":{{"org.opencontainers.image.created":"1970-01-01T00:00:00Z","org.opencontainers.image.title":"web","org.opencontainers.image.version":"1.2"}},"#,
                r#""config":{{"digest":"{}","mediaType":"application/vnd.oci.image.config.v1+json","size":2}},"#,
                r#""layers":[{{"digest":"{}","mediaType":"application/vnd.oci.image.layer.v1.tar+zstd","size":3}}],"#,
                r#""mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}}"#
            ),
            Digest::of("{}"),
            Digest::of("zst")
        );
        assert_eq!(text, expected);
    }
}
