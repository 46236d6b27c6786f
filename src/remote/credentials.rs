//! Who we are to a registry, as `docker login` and `podman login` keep it: entries in a JSON file, or
//! a program that is asked (`docker-credential-NAME`). Nothing of it is ever printed.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::reference::Reference;
use crate::error::{Error, Result};
use crate::sys::file;

/// The largest file of credentials.
const MAX_FILE: u64 = 4 << 20;
/// The most that a program may answer.
const MAX_ANSWER: u64 = 64 << 10;

/// What proves to a registry who we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// What is exchanged for tokens (`identitytoken`).
    Identity(String),
}

/// Nothing secret.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

impl Credential {
    /// What must not be seen.
    pub fn secrets(&self) -> Vec<String> {
        match self {
            Self::Password { user, password } => vec![password.clone(), basic(user, password)],
            Self::Identity(token) => vec![token.clone()],
        }
    }
}

/// What `Authorization: Basic` has after it.
pub fn basic(user: &str, password: &str) -> String {
    STANDARD.encode(format!("{user}:{password}"))
}

/// Where credentials are looked up: files, the first that knows the registry counts.
#[derive(Debug, Clone, Default)]
pub struct Keychain {
    /// `auth.json` of podman, `config.json` of docker.
    pub files: Vec<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Kept {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    identitytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Keychain {
    /// The credential for an image, if there is one.
    pub fn find(&self, reference: &Reference) -> Result<Option<Credential>> {
        let keys = reference.keys();
        for path in &self.files {
            let Some(kept) = read(path)? else { continue };
            if let Some((key, program)) = keys.iter().find_map(|key| Some((key, kept.cred_helpers.get(key)?)))
                && let Some(found) = ask(program, key, path)?
            {
                return Ok(Some(found));
            }
            for auth in keys.iter().filter_map(|key| kept.auths.get(key)) {
                if !auth.identitytoken.is_empty() {
                    return Ok(Some(Credential::Identity(auth.identitytoken.clone())));
                }
                if !auth.auth.is_empty() {
                    return decoded(&auth.auth).map(Some).map_err(|e| e.context(path.display()));
                }
            }
            if let Some(program) = &kept.creds_store {
                // Docker files an entry under the registry's own name, Docker Hub's under its old address.
                let server = keys.iter().find(|key| kept.auths.contains_key(*key)).unwrap_or(&reference.registry);
                if let Some(found) = ask(program, server, path)? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }
}

fn read(path: &Path) -> Result<Option<Kept>> {
    if !path.exists() {
        return Ok(None);
    }
    let mut bytes = vec![];
    file::open_regular(path)?.take(MAX_FILE).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    // The parser's own words may quote the file.
    let kept = serde_json::from_slice(&bytes).map_err(|e| {
        Error::request(format!("{} is not a file of credentials", path.display()))
            .why(format!("it can't be read at line {}, column {}", e.line(), e.column()))
            .next("log in again with docker login or podman login")
    })?;
    Ok(Some(kept))
}

fn decoded(auth: &str) -> Result<Credential> {
    let bad = || Error::request("an entry in it is not base64 of USER:PASSWORD").next("log in again");
    let bytes = STANDARD.decode(auth.trim()).map_err(|_| bad())?;
    let text = String::from_utf8(bytes).map_err(|_| bad())?;
    let (user, password) = text.split_once(':').ok_or_else(bad)?;
    // docker pads with zero bytes.
    Ok(Credential::Password { user: user.into(), password: password.trim_end_matches('\0').into() })
}

/// Asks `docker-credential-NAME`. It runs in our environment, where its own secrets may be.
fn ask(name: &str, server: &str, file: &Path) -> Result<Option<Credential>> {
    let program = format!("docker-credential-{name}");
    let failed = |why: String| {
        Error::failed(format!("{program} gave no credentials for {server}"))
            .why(why)
            .next(format!("see what {} says, or log in again", file.display()))
    };
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err(Error::request(format!("{} names a program that can't be one: {name:?}", file.display())));
    }
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed(Error::io("execute", &program, e).what().to_string()))?;
    // A program that doesn't read has ended; its answer says why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(server.as_bytes()));
    let mut answer = vec![];
    let read = child.stdout.take().map(|stdout| stdout.take(MAX_ANSWER).read_to_end(&mut answer));
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    read.transpose().map_err(|e| failed(e.to_string()))?;
    if !status.success() {
        // docker-credential-helpers: the one failure that says that there is none.
        let nothing = String::from_utf8_lossy(&answer).contains("credentials not found");
        return if nothing { Ok(None) } else { Err(failed(format!("it ended with {status}"))) };
    }
    let answer: Answer = serde_json::from_slice(&answer).map_err(|_| failed("its answer can't be read".into()))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credential::Identity(answer.secret),
        _ => Credential::Password { user: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, reference: &str) -> Result<Option<Credential>> {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("auth.json");
        std::fs::write(&path, text).unwrap();
        let keychain = Keychain { files: vec![temp.path().join("none.json"), path] };
        keychain.find(&reference.parse().unwrap())
    }

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { user: user.into(), password: password.into() })
    }

    #[test]
    fn the_most_specific_entry_counts() {
        let text = format!(
            r#"{{"auths":{{"a.b":{{"auth":"{}"}},"a.b/c":{{"auth":"{}"}},"https://index.docker.io/v1/":{{"auth":"{}"}}}}}}"#,
            basic("me", "x:y"),
            basic("you", "z"),
            basic("hub", "h")
        );
        assert_eq!(found(&text, "docker://a.b/d").unwrap(), password("me", "x:y"));
        assert_eq!(found(&text, "docker://a.b/c/d").unwrap(), password("you", "z"));
        assert_eq!(found(&text, "docker://debian").unwrap(), password("hub", "h"));
        assert_eq!(found(&text, "docker://c.d/x").unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_shows_nothing_of_it() {
        for text in
            [r#"{"auths":{"a.b":{"auth":"c2VjcmV0"}}}"#, r#"{"auths":{"a.b":{"auth":"secret"}}}"#, r#"{"secret""#]
        {
            let error = found(text, "docker://a.b/x").unwrap_err();
            assert!(!error.to_string().contains("ecret"), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
        let shown = format!("{:?}", password("me", "secret"));
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn a_program_that_is_a_path_is_refused() {
        for name in ["../x", "a b", "", "a;b"] {
            assert!(found(&format!(r#"{{"credsStore":"{name}"}}"#), "docker://a.b/x").is_err(), "{name}");
        }
    }
}
