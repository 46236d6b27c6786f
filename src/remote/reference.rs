//! Names of images in registries: `docker://[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, read as docker and
//! podman read them: without a host it is Docker Hub's.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// The name under which people know Docker Hub.
const DOCKER_HUB: &str = "docker.io";
/// Where its registry is.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// The name of an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Host, and port where one is named.
    pub registry: String,
    /// The repository: lower case, parts between slashes.
    pub repository: String,
    /// A tag.
    pub tag: Option<String>,
    /// A digest, which says exactly which image.
    pub digest: Option<Digest>,
}

impl Reference {
    /// What its image is asked for by: the digest if it has one, else the tag, else `latest`.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_string(),
        }
    }

    /// The registry's address without a path.
    pub fn base(&self) -> String {
        let host = if self.registry == DOCKER_HUB { DOCKER_HUB_HOST } else { &self.registry };
        format!("{}://{host}", if is_loopback(&self.registry) { "http" } else { "https" })
    }

    /// Under which names its credentials may be filed, the most specific first.
    pub fn keys(&self) -> Vec<String> {
        let mut keys = vec![];
        let mut path = Some(format!("{}/{}", self.registry, self.repository));
        while let Some(key) = path {
            path = key.rsplit_once('/').map(|(above, _)| above.to_string());
            keys.push(key);
        }
        if self.registry == DOCKER_HUB {
            keys.extend(["https://index.docker.io/v1/", "index.docker.io", DOCKER_HUB_HOST].map(String::from));
        }
        let with_scheme = [format!("https://{}", self.registry), format!("http://{}", self.registry)];
        keys.extend(with_scheme.into_iter().flat_map(|url| [format!("{url}/v1/"), format!("{url}/v2/"), url]));
        keys
    }
}

/// Is it this machine? Only then plain HTTP is spoken.
pub fn is_loopback(host_and_port: &str) -> bool {
    let host = host_of(host_and_port);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The host of `HOST[:PORT]`; an IPv6 address without its brackets.
pub fn host_of(host_and_port: &str) -> &str {
    match host_and_port.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host_and_port.split(':').next().unwrap_or(host_and_port),
    }
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", port),
        Some(_) => return false,
        None => match text.find(':') {
            Some(at) => text.split_at(at),
            None => (text, ""),
        },
    };
    let plain = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    let port_is_right = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    host.split('.').all(plain) && port_is_right
}

/// distribution-spec, "Pulling manifests": `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_repository_part(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = |b: Option<u8>| b.is_some_and(word);
    part.len() < 256
        && ends(part.bytes().next())
        && ends(part.bytes().last())
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

/// distribution-spec, "Pulling manifests": `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
pub fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::request(format!("not the name of an image in a registry: {text:?}"))
                .why(why)
                .next("write docker://HOST/REPOSITORY:TAG or docker://HOST/REPOSITORY@sha256:…")
        };
        let rest = text.strip_prefix("docker://").ok_or_else(|| bad("it does not begin with docker://"))?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|e| bad(e.what()))?)),
            None => (rest, None),
        };
        let (registry, path) = match rest.split_once('/') {
            Some((host, path)) if host.contains(['.', ':', '[']) || host == "localhost" => (host, path),
            _ => (DOCKER_HUB, rest),
        };
        if !is_host(registry) {
            return Err(bad("its host is none"));
        }
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        let registry = match registry {
            "index.docker.io" | DOCKER_HUB_HOST => DOCKER_HUB,
            other => other,
        };
        // Docker Hub's own images have a folder that nobody writes.
        let folder = if registry == DOCKER_HUB && !repository.contains('/') { "library/" } else { "" };
        let repository = format!("{folder}{repository}");
        if !repository.split('/').all(is_repository_part) {
            return Err(bad("a repository is lower-case letters and digits, with . _ __ or - and / between them"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad("a tag is up to 128 letters, digits and . _ -, the first no . or -"));
        }
        Ok(Self { registry: registry.to_string(), repository, tag: tag.map(str::to_string), digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "docker://{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let digest = Digest::of("x");
        for (text, full) in [
            ("docker://debian", "docker://docker.io/library/debian".to_string()),
            ("docker://debian:12", "docker://docker.io/library/debian:12".into()),
            ("docker://me/web:1", "docker://docker.io/me/web:1".into()),
            ("docker://index.docker.io/me/web", "docker://docker.io/me/web".into()),
            ("docker://localhost/web", "docker://localhost/web".into()),
            ("docker://localhost:5000/a/b:V1", "docker://localhost:5000/a/b:V1".into()),
            ("docker://[::1]:5000/a", "docker://[::1]:5000/a".into()),
            ("docker://ghcr.io/me/web", "docker://ghcr.io/me/web".into()),
        ] {
            assert_eq!(parsed(text), full);
            assert_eq!(parsed(&full), full);
            assert_eq!(parsed(&format!("{text}@{digest}")), format!("{full}@{digest}"));
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in [
            "debian",
            "docker://",
            "docker://Debian",
            "docker://a.b/../x",
            "docker://a.b/x:",
            "docker://a.b/x:-",
            "docker://a.b/x@sha256:12",
            "docker://a.b:port/x",
            "docker://me:secret@a.b/x",
            "docker://a.b/x\n",
            "docker://-a.b/x",
            "docker://a.b/x:sha256:1",
            "docker://a.b /x",
        ] {
            assert_eq!(bad.parse::<Reference>().expect_err(bad).exit_code(), 2);
        }
    }

    #[test]
    fn plain_http_is_for_this_machine_alone() {
        for (text, base) in [
            ("docker://127.0.0.1:5000/x", "http://127.0.0.1:5000"),
            ("docker://localhost:1/x", "http://localhost:1"),
            ("docker://[::1]:5000/x", "http://[::1]:5000"),
            ("docker://localhost.example.com/x", "https://localhost.example.com"),
            ("docker://127.0.0.1.example.com/x", "https://127.0.0.1.example.com"),
            ("docker://x", "https://registry-1.docker.io"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().base(), base);
        }
    }
}
