//! `kube.yaml`: the pod for `podman kube play` (4.3 and newer) and Kubernetes.
//!
//! What podman 4.3.1 does, tried: it refuses a PersistentVolumeClaim whose volume is there already, so the
//! file has none, and a volume's data is brought by the README's command into the volume that the claim
//! names. It publishes every port that a container lists, so only those that the pod publishes are listed. A
//! ConfigMap becomes a volume of its name that stays when the pod is gone, and old keys in it: so there is one
//! for each folder of a container, with the digest of its content in its name. It ignores `subPath`. An
//! `emptyDir` becomes a volume of the name that it has in the pod.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::described::{Container, Pod, Port, Probe, Volume};
use super::plan::{Configured, Plan};
use super::yaml;
use crate::build_file::spec::expands;
use crate::digest::Digest;
use crate::error::Result;
use crate::tree::RootPath;

/// The whole file.
pub fn write(plan: &Plan) -> Result<String> {
    let mut documents = vec![];
    let mut containers = vec![];
    let mut volumes = vec![];
    let pod = &plan.described;
    for (at, container) in pod.containers.iter().enumerate() {
        let made =
            Making { pod, container, documents: &mut documents, volumes: &mut volumes }.container(&plan.configured[at]);
        containers.push(made);
    }
    volumes.extend(
        pod.volumes
            .iter()
            .filter(|v| pod.containers.iter().any(|c| c.mounts.iter().any(|m| m.volume.as_ref() == Some(&v.name))))
            .map(|volume| {
                let name = volume_name(pod, volume);
                match (volume.kind.as_str(), &volume.claim, &volume.host_path) {
                    ("files", Some(claim), _) => json!({"name": name, "persistentVolumeClaim": {"claimName": claim}}),
                    ("hostPath", _, Some(path)) => json!({"name": name, "hostPath": {"path": path}}),
                    _ => json!({"name": name, "emptyDir": {}}),
                }
            }),
    );
    let mut metadata = json!({"name": pod.name, "labels": {"app": pod.name}});
    if let Some(version) = &pod.version {
        metadata["annotations"] = json!({"org.opencontainers.image.version": version});
    }
    let mut spec = json!({"restartPolicy": restart(&pod.containers), "automountServiceAccountToken": false, "containers": containers});
    if !volumes.is_empty() {
        spec["volumes"] = Value::Array(volumes);
    }
    documents.push(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}));
    let head = format!(
        "# The pod {} ({}), for podman 4.3 and newer and for Kubernetes. README says how to load it.\n",
        pod.name, pod.label
    );
    Ok(head + &yaml::documents(&documents))
}

/// One policy holds for all containers of a pod: that of the one that wants the most.
fn restart(containers: &[Container]) -> &'static str {
    match () {
        () if containers.iter().any(|c| c.restart == "always") => "Always",
        () if containers.iter().any(|c| c.restart == "on-failure") => "OnFailure",
        () => "Never",
    }
}

/// Ports of the host: inside, outside, protocol. A pod's own list counts, and ports that a container publishes.
pub fn published(ports: &[Port], containers: &[Container]) -> Vec<(u16, u16, String)> {
    let all = ports.iter().chain(containers.iter().flat_map(|c| &c.ports));
    let mut published: Vec<_> = all.filter_map(|p| Some((p.port, p.host?, p.protocol.clone()))).collect();
    published.sort();
    published.dedup();
    published
}

/// Volumes of the pod, of configuration and of writable folders are told apart by what stands before. podman
/// makes a volume of this very name for an `emptyDir`, one for all pods: so the pod's name is in it.
fn volume_name(pod: &Pod, volume: &Volume) -> String {
    match volume.kind.as_str() {
        "empty" => short(&format!("{}-empty-{}", pod.name, volume.name)),
        _ => short(&format!("volume-{}", volume.name)),
    }
}

struct Making<'a> {
    pod: &'a Pod,
    container: &'a Container,
    documents: &'a mut Vec<Value>,
    volumes: &'a mut Vec<Value>,
}

impl Making<'_> {
    fn container(&mut self, configured: &[Configured]) -> Value {
        let container = self.container;
        let built = container.image.starts_with("localhost/");
        let mut made = Map::new();
        made.insert("name".into(), json!(container.name));
        made.insert("image".into(), json!(container.image));
        // What the README loaded is there, or it's an error; nothing is fetched under such a name.
        made.insert("imagePullPolicy".into(), json!(if built { "Never" } else { "IfNotPresent" }));
        if !container.command.is_empty() {
            made.insert("command".into(), json!(container.command));
        }
        if !container.working_dir.is_empty() {
            made.insert("workingDir".into(), json!(container.working_dir));
        }
        let env = self.env();
        if !env.is_empty() {
            made.insert("env".into(), Value::Array(env));
        }
        made.insert("securityContext".into(), self.security());
        let mounts = self.mounts(configured);
        if !mounts.is_empty() {
            made.insert("volumeMounts".into(), Value::Array(mounts));
        }
        let ports = self.ports();
        if !ports.is_empty() {
            made.insert("ports".into(), Value::Array(ports));
        }
        for (name, probe) in &container.probes {
            made.insert(format!("{name}Probe"), self::probe(probe));
        }
        Value::Object(made)
    }

    fn security(&self) -> Value {
        let mut security = json!({"readOnlyRootFilesystem": self.container.read_only});
        for (name, value) in [("runAsUser", self.container.user), ("runAsGroup", self.container.group)] {
            if let Some(value) = value {
                security[name] = json!(value);
            }
        }
        security
    }

    /// Kubernetes replaces `$(NAME)` and `$$` in values, but not in those that come from a ConfigMap.
    fn env(&mut self) -> Vec<Value> {
        let env = &self.container.env;
        let (raw, plain): (Vec<_>, Vec<_>) = env.iter().partition(|(_, value)| expands(value, env));
        let mut made: Vec<Value> =
            plain.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        if !raw.is_empty() {
            let data: BTreeMap<&String, &String> = raw.iter().copied().collect();
            let map = self.config_map("env", json!(data), json!({}));
            made.extend(
                raw.iter().map(
                    |(name, _)| json!({"name": name, "valueFrom": {"configMapKeyRef": {"name": map, "key": name}}}),
                ),
            );
        }
        made
    }

    fn config_map(&mut self, what: &str, text: Value, binary: Value) -> String {
        let digest = Digest::of(json!([text, binary]).to_string());
        let name = format!("{}-{}-{what}-{}", self.pod.name, self.container.name, &digest.hex()[..8]);
        let mut map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        for (field, data) in [("data", text), ("binaryData", binary)] {
            if data.as_object().is_some_and(|data| !data.is_empty()) {
                map[field] = data;
            }
        }
        self.documents.push(map);
        name
    }

    fn mounts(&mut self, configured: &[Configured]) -> Vec<Value> {
        let mut mounts = vec![];
        for mount in &self.container.mounts {
            if let Some(volume) = self.pod.volumes.iter().find(|v| Some(&v.name) == mount.volume.as_ref()) {
                mounts.push(json!({"name": volume_name(self.pod, volume), "mountPath": mount.path, "readOnly": mount.read_only}));
            }
        }
        for (at, folder) in self.container.writable.iter().enumerate() {
            let name = short(&format!("{}-writable-{}-{at}", self.pod.name, self.container.name));
            self.volumes.push(json!({"name": name, "emptyDir": {"medium": "Memory"}}));
            mounts.push(json!({"name": name, "mountPath": folder}));
        }
        let mut folders: BTreeMap<&RootPath, Vec<&Configured>> = BTreeMap::new();
        for file in configured {
            folders.entry(&file.folder).or_default().push(file);
        }
        for (at, (folder, files)) in folders.into_iter().enumerate() {
            let name = self.configuration(at, &files);
            if files.iter().any(|f| f.crowded) {
                mounts.extend(files.iter().map(|f| json!({"name": name, "mountPath": format!("{folder}/{}", f.name), "subPath": f.name, "readOnly": true})));
            } else {
                mounts.push(json!({"name": name, "mountPath": folder.to_string(), "readOnly": true}));
            }
        }
        mounts
    }

    /// A ConfigMap and the volume that shows it.
    fn configuration(&mut self, at: usize, files: &[&Configured]) -> String {
        let (mut text, mut binary) = (Map::new(), Map::new());
        for file in files {
            match std::str::from_utf8(&file.content) {
                Ok(content) if !content.contains('\0') => text.insert(file.name.clone(), json!(content)),
                _ => binary.insert(file.name.clone(), json!(base64(&file.content))),
            };
        }
        let map = self.config_map(&format!("files{at}"), Value::Object(text), Value::Object(binary));
        let name = short(&format!("files-{}-{at}", self.container.name));
        let items: Vec<Value> =
            files.iter().map(|f| json!({"key": f.name, "path": f.name, "mode": f.mode & 0o777})).collect();
        self.volumes.push(json!({"name": name, "configMap": {"name": map, "items": items}}));
        name
    }

    /// Ports that the pod publishes are listed at the container that listens on them, else at the first.
    fn ports(&self) -> Vec<Value> {
        let listens = |container: &Container, port: u16, protocol: &str| {
            container.ports.iter().any(|p| p.port == port && p.protocol == protocol)
        };
        let all = published(&self.pod.ports, &self.pod.containers);
        let mine = all.iter().filter(|(inside, _, protocol)| {
            let of = self.pod.containers.iter().find(|c| listens(c, *inside, protocol)).or(self.pod.containers.first());
            of.is_some_and(|c| c.name == self.container.name)
        });
        mine.map(|(inside, host, protocol)| json!({"containerPort": inside, "hostPort": host, "protocol": protocol.to_ascii_uppercase()})).collect()
    }
}

/// Names of volumes have at most 63 letters.
fn short(name: &str) -> String {
    match name.get(..54) {
        Some(start) if name.len() > 63 => format!("{start}-{}", &Digest::of(name).hex()[..8]),
        _ => name.to_string(),
    }
}

fn probe(probe: &Probe) -> Value {
    let mut made = match (&probe.http, probe.port) {
        (Some(path), Some(port)) => json!({"httpGet": {"path": path, "port": port}}),
        (None, Some(port)) => json!({"tcpSocket": {"port": port}}),
        _ => json!({"exec": {"command": probe.exec}}),
    };
    made["periodSeconds"] = json!(probe.period);
    made
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let all = u32::from(chunk[0]) << 16
            | u32::from(*chunk.get(1).unwrap_or(&0)) << 8
            | u32::from(*chunk.get(2).unwrap_or(&0));
        for at in 0..4 {
            let digit = (at <= chunk.len()).then(|| char::from(DIGITS[(all >> (18 - 6 * at) & 63) as usize]));
            out.push(digit.unwrap_or('='));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, expected) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(text.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }
}
