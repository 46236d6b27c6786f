//! A registry of images (OCI distribution-spec 1.1): what it has, what it is given.
//!
//! Every request is tried again where that can help (the connection broke; 408, 429, 5xx), with growing
//! pauses or the one that the server asks for. An upload goes on where it broke, a download too.
//!
//! Credentials go to the registry itself and to the token server of its own domain, and to nobody else:
//! redirects are followed by hand, without them, and never from HTTPS to HTTP. No message shows them.

mod address;
mod token;
mod upload;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Mutex;
use std::time::Duration;

use ureq::http::{Method, Request, Response};
use ureq::{Agent, Body, SendBody};

use self::address::{next_hop, same_origin, shown};
pub use self::upload::{OpenAt, Pushed};
use super::credentials::{Credential, Keychain};
use super::http::{self, Network, OnBytes};
use super::reference::{Reference, is_loopback};
use crate::digest::Digest;
use crate::error::{Error, Result};

/// How often a request is made without progress.
const TRIES: u32 = 5;
/// The first pause between two tries; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(400);
/// The longest pause, also when a server asks for a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The largest manifest or index (registries allow 4 MiB).
const MAX_DOCUMENT: u64 = 4 << 20;
/// The largest answer with a token or an error.
const MAX_ANSWER: u64 = 1 << 20;
/// Redirects that are followed.
const MAX_HOPS: usize = 5;

/// The media types that we ask for.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// A repository of a registry.
pub struct Repository {
    agent: Agent,
    network: Network,
    reference: Reference,
    keychain: Keychain,
    credential: Mutex<Option<Option<Credential>>>,
    /// What goes into `Authorization`, by what it is for.
    tokens: Mutex<BTreeMap<String, String>>,
}

/// A manifest or index as a registry has it.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Of these.
    pub digest: Digest,
}

/// Why a request came to nothing.
enum Trouble {
    /// It may be tried again, after this long if the server says so.
    Passing(String, Option<Duration>),
    /// It is no use.
    Final(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

type Attempt<T> = std::result::Result<T, Trouble>;

/// What is sent with a request.
#[derive(Clone, Copy)]
enum Sent<'a> {
    Nothing,
    Bytes(&'a [u8]),
    Piece(OpenAt<'a>, u64, u64),
}

/// What we may do with a token.
const PULL: &str = "pull";
const PUSH: &str = "pull,push";

impl Repository {
    /// Nothing is asked yet.
    pub fn new(reference: &Reference, keychain: &Keychain, network: Network) -> Self {
        let settings = http::settings().max_redirects(0).timeout_recv_response(Some(Duration::from_secs(300)));
        // Nobody stands between us and this machine.
        let settings = if is_loopback(&reference.registry) { settings.proxy(None) } else { settings };
        Self {
            agent: settings.build().new_agent(),
            network,
            reference: reference.clone(),
            keychain: keychain.clone(),
            credential: Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    /// Its name.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The digest of the manifest under a tag, if there is one.
    pub fn manifest_digest(&self, tag: &str) -> Result<Option<Digest>> {
        let url = self.url(&format!("manifests/{tag}"));
        self.tried(&url, || {
            let accept = [("Accept", MANIFESTS.to_string())];
            let response = self.send(Method::HEAD, &url, PUSH, &accept, Sent::Nothing)?;
            match response.status().as_u16() {
                200 => Ok(header(&response, "docker-content-digest").and_then(|digest| digest.parse().ok())),
                404 => Ok(None),
                _ => Err(self.refused(&url, response)),
            }
        })
    }

    /// The manifest or index under a tag or digest.
    pub fn manifest(&self, wanted: &str) -> Result<Manifest> {
        let url = self.url(&format!("manifests/{wanted}"));
        let (media_type, bytes) = self.tried(&url, || {
            let accept = [("Accept", MANIFESTS.to_string())];
            let response = self.send(Method::GET, &url, PULL, &accept, Sent::Nothing)?;
            if response.status() != 200 {
                return Err(self.refused(&url, response));
            }
            let media_type = header(&response, "content-type").unwrap_or_default();
            let media_type = media_type.split(';').next().unwrap_or_default().trim().to_string();
            Ok((media_type, read_bounded(response, MAX_DOCUMENT, &url)?))
        })?;
        let digest = Digest::of(&bytes);
        match wanted.parse::<Digest>() {
            Ok(expected) if expected != digest => Err(Error::failed(format!("{} sent another manifest", shown(&url)))
                .why(format!("its content has the digest {digest}"))),
            _ => Ok(Manifest { media_type, bytes, digest }),
        }
    }

    /// Copies a blob to `sink`: exactly these bytes, or an error.
    pub fn blob(&self, digest: &Digest, size: u64, sink: &mut dyn Write, on_bytes: OnBytes) -> Result<()> {
        let url = self.url(&format!("blobs/{digest}"));
        let mut have = 0;
        let mut tries = 0;
        while have < size || size == 0 {
            let before = have;
            match self.piece_of_blob(&url, size, &mut have, sink, on_bytes) {
                Ok(()) => break,
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(why, after)) => {
                    tries = if have > before { 1 } else { tries + 1 };
                    self.pause(&url, tries, why, after)?;
                }
            }
        }
        if have == size { Ok(()) } else { Err(self.wrong_size(&url, size)) }
    }

    fn piece_of_blob(
        &self,
        url: &str,
        size: u64,
        have: &mut u64,
        sink: &mut dyn Write,
        on_bytes: OnBytes,
    ) -> Attempt<()> {
        let range = [("Range", format!("bytes={have}-"))];
        let response = self.send(Method::GET, url, PULL, if *have > 0 { &range } else { &[] }, Sent::Nothing)?;
        let mut skip = match response.status().as_u16() {
            200 => *have,
            206 if http::resumes_at(&response, *have) => 0,
            206 => return Err(Error::failed(format!("{} sent another part than was asked for", shown(url))).into()),
            _ => return Err(self.refused(url, response)),
        };
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) if *have < size => return Err(Trouble::Passing("it ended too early".into(), None)),
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Trouble::Passing(e.to_string(), None)),
            };
            let known = usize::try_from(skip).unwrap_or(n).min(n);
            skip -= known as u64;
            let new = &buffer[known..n];
            *have += new.len() as u64;
            if *have > size {
                return Err(self.wrong_size(url, size).into());
            }
            sink.write_all(new).map_err(|e| Error::io("write", format!("what came from {}", shown(url)), e))?;
            on_bytes(new.len() as u64);
        }
    }

    fn wrong_size(&self, url: &str, size: u64) -> Error {
        Error::failed(format!("{} has not the {size} bytes that its manifest says", shown(url)))
    }

    fn url(&self, what: &str) -> String {
        format!("{}/v2/{}/{what}", self.reference.base(), self.reference.repository)
    }

    fn tried<T>(&self, url: &str, mut attempt: impl FnMut() -> Attempt<T>) -> Result<T> {
        let mut tries = 0;
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(why, after)) => {
                    tries += 1;
                    self.pause(url, tries, why, after)?;
                }
            }
        }
    }

    /// Waits before the next try, or gives up.
    fn pause(&self, url: &str, tries: u32, why: String, after: Option<Duration>) -> Result<()> {
        if tries >= TRIES {
            return Err(Error::failed(format!("{}: {}", shown(url), self.without_secrets(&why)))
                .why(format!("tried {TRIES} times"))
                .next("see whether the registry is up, and try again: what arrived is not sent again"));
        }
        std::thread::sleep(after.unwrap_or(PAUSE * 2u32.pow(tries - 1)).min(LONGEST_PAUSE));
        Ok(())
    }

    /// Sends a request with what proves who we are, learns that where the server asks for it, and follows
    /// redirects of what is read.
    fn send(
        &self,
        method: Method,
        url: &str,
        scope: &str,
        headers: &[(&str, String)],
        sent: Sent,
    ) -> Attempt<Response<Body>> {
        if self.network == Network::Offline {
            return Err(Error::failed(format!("{} is needed, and --offline forbids to ask for it", shown(url)))
                .next("run once without --offline")
                .into());
        }
        let mut url = url.to_string();
        let mut learnt = false;
        for _ in 0..=MAX_HOPS {
            let ours = same_origin(&url, &self.reference.base());
            let token = if ours { lock(&self.tokens).get(scope).cloned() } else { None };
            let response = self.once(&method, &url, token.as_deref(), headers, sent)?;
            let reading = method == Method::GET || method == Method::HEAD;
            match response.status().as_u16() {
                401 if ours && !learnt => {
                    let token = self.learn(&response, scope, token.as_deref())?;
                    lock(&self.tokens).insert(scope.to_string(), token);
                    learnt = true;
                }
                301 | 302 | 303 | 307 | 308 if reading => {
                    let location = header(&response, "location")
                        .ok_or_else(|| Error::failed(format!("{} leads to nowhere", shown(&url))))?;
                    url = next_hop(&url, &location)?;
                }
                _ => return Ok(response),
            }
        }
        Err(Error::failed(format!("{} leads from one place to the next", shown(&url))).into())
    }

    fn once(
        &self,
        method: &Method,
        url: &str,
        token: Option<&str>,
        headers: &[(&str, String)],
        sent: Sent,
    ) -> Attempt<Response<Body>> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(token) = token {
            request = request.header("Authorization", token);
        }
        let bad = |e: ureq::http::Error| Error::failed(format!("{} can't be asked for: {e}", shown(url)));
        let answer = match sent {
            Sent::Nothing => self.agent.run(request.body(()).map_err(bad)?),
            Sent::Bytes(bytes) => self.agent.run(request.body(bytes).map_err(bad)?),
            Sent::Piece(open, from, length) => {
                let mut piece = open(from)?.take(length);
                let request = request.header("Content-Length", length.to_string());
                self.agent.run(request.body(SendBody::from_reader(&mut piece)).map_err(bad)?)
            }
        };
        answer.map_err(|e| match e {
            ureq::Error::BadUri(_) => Error::failed(format!("{} is not a URL", shown(url))).into(),
            ureq::Error::Tls(_) | ureq::Error::Pem(_) | ureq::Error::Rustls(_) => {
                Error::failed(format!("{}: no safe connection: {e}", shown(url))).into()
            }
            other => Trouble::Passing(other.to_string(), None),
        })
    }

    /// What an answer that is no success means.
    fn refused(&self, url: &str, response: Response<Body>) -> Trouble {
        let status = response.status().as_u16();
        let after = header(&response, "retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let said = read_bounded(response, MAX_ANSWER, url).map(|bytes| message(&bytes)).unwrap_or_default();
        let said = self.without_secrets(&said);
        let told =
            if said.is_empty() { format!("it answers {status}") } else { format!("it answers {status}: {said}") };
        if matches!(status, 408 | 429 | 500..) {
            return Trouble::Passing(told, after);
        }
        let error = Error::failed(format!("{}: {told}", shown(url)));
        let registry = &self.reference.registry;
        Trouble::Final(match status {
            401 | 403 => error.next(format!("log in (podman login {registry}), or use a repository that is yours")),
            404 => error.next("see whether the repository and the tag are spelled right"),
            _ => error,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn header(response: &Response<Body>, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_string)
}

fn read_bounded(response: Response<Body>, most: u64, url: &str) -> Attempt<Vec<u8>> {
    let mut bytes = vec![];
    let read = response.into_body().into_reader().take(most + 1).read_to_end(&mut bytes);
    read.map_err(|e| Trouble::Passing(e.to_string(), None))?;
    if bytes.len() as u64 > most {
        return Err(Error::failed(format!("{} is longer than {most} bytes", shown(url))).into());
    }
    Ok(bytes)
}

/// What a registry says is wrong (distribution-spec, "Error Codes"): one line.
fn message(bytes: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let error = &body["errors"][0];
    let part = |name: &str| error[name].as_str().unwrap_or_default();
    let text = format!("{} {}", part("code"), part("message"));
    text.trim().chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::credentials::basic;

    #[test]
    fn a_message_shows_neither_user_nor_query() {
        assert_eq!(shown("https://me:secret@a.b/x?token=secret"), "https://a.b/x");
        assert_eq!(message(br#"{"errors":[{"code":"DENIED","message":"no\n"}]}"#), "DENIED no");
        assert_eq!(message(b"<html>"), "");
    }

    /// Answers each request by its head, for as long as the test runs; gives its address and what was asked.
    fn server(answer: impl Fn(&str) -> String + Send + 'static) -> (String, std::sync::Arc<Mutex<Vec<String>>>) {
        use std::io::{BufRead, BufReader};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked: std::sync::Arc<Mutex<Vec<String>>> = Default::default();
        let heads = asked.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let lines = BufReader::new(&stream).lines().map_while(|line| line.ok());
                let head = lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
                lock(&heads).push(head.clone());
                let _ = stream.write_all(answer(&head).as_bytes());
            }
        });
        (address, asked)
    }

    fn answer(status: &str, headers: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    /// A keychain with a password for this registry.
    fn keychain(registry: &str) -> (tempfile::TempDir, Keychain) {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("auth.json");
        let text = format!(r#"{{"auths":{{"{registry}":{{"auth":"{}"}}}}}}"#, basic("me", "open-sesame"));
        std::fs::write(&file, text).unwrap();
        (temp, Keychain { files: vec![file] })
    }

    fn has_authorization(head: &str) -> bool {
        head.to_ascii_lowercase().contains("\nauthorization:")
    }

    #[test]
    fn a_token_is_fetched_with_the_password_and_a_redirect_gets_neither() {
        let (elsewhere, asked_elsewhere) = server(|_| answer("200 OK", "", "abc"));
        let (tokens, asked_for_token) = server(|_| answer("200 OK", "", r#"{"token":"a-token"}"#));
        let (registry, asked) = server(move |head| {
            if !head.contains("Bearer a-token") {
                let challenge = format!("Www-Authenticate: Bearer realm=\"http://{tokens}/token\",service=\"s\"\r\n");
                return answer("401 Unauthorized", &challenge, "");
            }
            answer("307 Temporary Redirect", &format!("Location: http://{elsewhere}/blob\r\n"), "")
        });
        let (_temp, keychain) = keychain(&registry);
        let reference: Reference = format!("docker://{registry}/x").parse().unwrap();
        let repository = Repository::new(&reference, &keychain, Network::Allowed);
        let mut bytes = vec![];
        repository.blob(&Digest::of("abc"), 3, &mut bytes, &|_| {}).unwrap();
        assert_eq!(bytes, b"abc");
        let token = lock(&asked_for_token).clone();
        assert!(
            token[0].contains("scope=repository:x:pull") && token[0].contains(&basic("me", "open-sesame")),
            "{token:?}"
        );
        assert!(!has_authorization(&lock(&asked)[0]) && has_authorization(&lock(&asked)[1]));
        assert!(!has_authorization(&lock(&asked_elsewhere)[0]), "{asked_elsewhere:?}");
    }

    #[test]
    fn a_server_that_sends_the_password_back_is_not_quoted() {
        let (registry, _) = server(|head| match has_authorization(head) {
            true => {
                let body = format!(
                    r#"{{"errors":[{{"code":"DENIED","message":"open-sesame {}"}}]}}"#,
                    basic("me", "open-sesame")
                );
                answer("403 Forbidden", "", &body)
            }
            false => answer("401 Unauthorized", "Www-Authenticate: Basic realm=x\r\n", ""),
        });
        let (_temp, keychain) = keychain(&registry);
        let reference: Reference = format!("docker://{registry}/x").parse().unwrap();
        let error = Repository::new(&reference, &keychain, Network::Allowed).manifest("1").unwrap_err().to_string();
        assert!(error.contains("DENIED"), "{error}");
        assert!(!error.contains("sesame") && !error.contains(&basic("me", "open-sesame")), "{error}");
    }
}
