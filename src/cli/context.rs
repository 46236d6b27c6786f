//! What was typed, turned into what is meant: the folder, the workspace, the store, the request.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::build_file::workspace::Workspace;
use crate::cli::args::{self, Ask, Global};
use crate::error::{Error, Kind, Result};
use crate::execute::secrets::{self, Secrets};
use crate::graph::Request;
use crate::label::Package;
use crate::remote::credentials::Keychain;
use crate::remote::http::Network;
use crate::sandbox::{Isolation, Snapshots, Wish};
use crate::store::Store;
use crate::sys::{file, process};

/// The folder to stand in.
pub fn directory(global: &Global) -> Result<PathBuf> {
    let current =
        std::env::current_dir().map_err(|e| Error::io("getcwd", ".", e).next("stand in a folder that exists"))?;
    let folder = match &global.directory {
        Some(folder) => current.join(folder),
        None => current,
    };
    folder.canonicalize().map_err(|e| Error::io("open", &folder, e).with_kind(crate::error::Kind::Request))
}

/// The store: `--store`, `TAPEOUT_STORE`, `$XDG_DATA_HOME/tapeout`, `~/.local/share/tapeout`.
pub fn store(global: &Global) -> Result<Store> {
    Store::open(&store_path(global)?)
}

/// Where the store is, or would be.
pub fn store_path(global: &Global) -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = match &global.store {
        Some(path) => path.clone(),
        None => match (set("XDG_DATA_HOME").filter(|p| p.is_absolute()), set("HOME")) {
            (Some(data), _) => data.join("tapeout"),
            (None, Some(home)) => home.join(".local/share/tapeout"),
            (None, None) => {
                return Err(Error::request("there is no place for the store")
                    .why("HOME is not set")
                    .next("set TAPEOUT_STORE, or --store DIR"));
            }
        },
    };
    std::path::absolute(&path).map_err(|e| Error::io("open", &path, e))
}

/// How sandboxes are to be made.
pub fn wish(global: &Global) -> Wish {
    Wish {
        isolation: match global.isolation {
            args::Isolation::Auto => None,
            args::Isolation::Namespaces => Some(Isolation::Namespaces),
            args::Isolation::Chroot => Some(Isolation::Chroot),
        },
        snapshots: global.snapshots.map(|snapshots| match snapshots {
            args::Snapshots::Overlay => Snapshots::Overlay,
            args::Snapshots::Copy => Snapshots::Copy,
        }),
    }
}

/// The workspace that one stands in, with what the command line adds, and the package there.
pub fn workspace(global: &Global, ask: &Ask) -> Result<(Workspace, Package)> {
    let here = directory(global)?;
    let mut workspace = Workspace::find(&here)?;
    for path in &ask.paths {
        let path = here.join(path);
        if !path.is_dir() {
            return Err(Error::request(format!("--path {}: not a folder", path.display()))
                .next("name a folder that holds packages"));
        }
        workspace.search_path.insert(0, path);
    }
    for input in &ask.inputs {
        let Some((name, path)) = input.split_once('=') else {
            return Err(Error::request(format!("--input {input}: no =")).next("write --input NAME=PATH"));
        };
        workspace.inputs.insert(name.to_string(), here.join(path));
    }
    let package = package_of(&workspace.root, &here)?;
    Ok((workspace, package))
}

fn package_of(root: &Path, here: &Path) -> Result<Package> {
    let below = here.strip_prefix(root).unwrap_or(Path::new(""));
    let text = below
        .to_str()
        .ok_or_else(|| Error::request(format!("a folder that can't be a package: {}", below.display())))?;
    // Standing in a folder whose name no package can have is fine as long as full labels are used.
    Package::new(text).or_else(|_| Package::new(""))
}

/// What tools of this machine get of our environment: where programs are, and the way to the network.
pub fn tools() -> BTreeMap<OsString, OsString> {
    let names = [
        "PATH",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
        "SSL_CERT_FILE",
        "GIT_SSL_CAINFO",
    ];
    names.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?))).collect()
}

/// May we speak to the world?
pub fn network(global: &Global) -> Network {
    if global.offline { Network::Offline } else { Network::Allowed }
}

/// Where docker and podman keep credentials for registries (containers-auth.json(5), docker login).
pub fn keychain() -> Keychain {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    keychain_of(&set, process::caller())
}

/// The same for a user of this number, with this environment.
fn keychain_of(set: &dyn Fn(&str) -> Option<PathBuf>, uid: u32) -> Keychain {
    if let Some(file) = set("REGISTRY_AUTH_FILE") {
        return Keychain { files: vec![file] };
    }
    let home = set("HOME");
    // podman-login(1): without XDG_RUNTIME_DIR, as for root in a container, it is a folder of that user's number.
    let runtime = set("XDG_RUNTIME_DIR").map(|folder| folder.join("containers"));
    let files = [
        Some(runtime.unwrap_or_else(|| format!("/run/containers/{uid}").into()).join("auth.json")),
        set("XDG_CONFIG_HOME")
            .or(home.as_ref().map(|home| home.join(".config")))
            .map(|f| f.join("containers/auth.json")),
        set("DOCKER_CONFIG").or(home.as_ref().map(|home| home.join(".docker"))).map(|f| f.join("config.json")),
    ];
    Keychain { files: files.into_iter().flatten().collect() }
}

/// The secrets of a command line: `NAME=file:PATH` or `NAME=env:VARIABLE`.
pub fn secrets(given: &[String], directory: &Path) -> Result<Secrets> {
    let mut secrets = Secrets::default();
    for text in given {
        // Somebody may have written the secret itself: it is not repeated.
        let (name, from) = text.split_once('=').ok_or_else(|| {
            Error::request("--secret takes NAME=file:PATH or NAME=env:VARIABLE").next("write --secret NAME=file:PATH")
        })?;
        let value = match from.split_once(':') {
            Some(("file", path)) => {
                let mut value = vec![];
                let path = directory.join(path);
                file::open_regular(&path)
                    .and_then(|file| {
                        let bounded = file.take(secrets::LONGEST as u64 + 1).read_to_end(&mut value);
                        bounded.map_err(|e| Error::io("read", &path, e))
                    })
                    .map_err(|e| e.context(format!("--secret {name}")).with_kind(Kind::Request))?;
                value
            }
            Some(("env", variable)) => std::env::var_os(variable)
                .ok_or_else(|| {
                    Error::request(format!("--secret {name}: the variable {variable} is not set"))
                        .next(format!("set {variable}, or take a file: --secret {name}=file:PATH"))
                })?
                .into_vec(),
            _ => {
                return Err(Error::request(format!("--secret {name}: it says neither file: nor env:"))
                    .why("what stands on a command line can be read by every process of this machine")
                    .next(format!("write --secret {name}=file:PATH, or --secret {name}=env:VARIABLE")));
            }
        };
        secrets.add(name, value)?;
    }
    Ok(secrets)
}

/// A request for labels and patterns as typed.
pub fn request(global: &Global, ask: &Ask, patterns: &[String]) -> Result<Request> {
    let (workspace, here) = workspace(global, ask)?;
    let directory = directory(global)?;
    let parameters = ask.parameters.iter().map(|text| match text.strip_prefix('@') {
        Some(file) => format!("@{}", directory.join(file).display()),
        None => text.clone(),
    });
    Ok(Request { workspace, patterns: patterns.to_vec(), here, parameters: parameters.collect() })
}

/// What a command that takes no parameters asks for.
pub fn nothing_asked() -> Ask {
    Ask { parameters: vec![], paths: vec![], inputs: vec![] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_looked_for_where_docker_and_podman_put_them() {
        let files = |set: &[(&str, &str)]| -> Vec<String> {
            let found = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value));
            keychain_of(&found, 1000).files.iter().map(|path| path.display().to_string()).collect()
        };
        let at_home = ["/h/.config/containers/auth.json", "/h/.docker/config.json"];
        assert_eq!(files(&[("HOME", "/h")]), [&["/run/containers/1000/auth.json"][..], &at_home].concat());
        assert_eq!(files(&[]), ["/run/containers/1000/auth.json"]);
        let runtime = ("XDG_RUNTIME_DIR", "/run/user/1000");
        assert_eq!(files(&[("HOME", "/h"), runtime])[0], "/run/user/1000/containers/auth.json");
        let all = [("HOME", "/h"), runtime, ("XDG_CONFIG_HOME", "/c"), ("DOCKER_CONFIG", "/d")];
        let expected = ["/run/user/1000/containers/auth.json", "/c/containers/auth.json", "/d/config.json"];
        assert_eq!(files(&all), expected);
        assert_eq!(files(&[runtime, ("REGISTRY_AUTH_FILE", "/f")]), ["/f"]);
    }
}
