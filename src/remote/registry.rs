//! A registry of images (OCI distribution-spec 1.1): what it has, what it is given.
//!
//! Every request is tried again where that can help (the connection broke; 408, 429, 5xx), with growing
//! pauses or the one that the server asks for. An upload goes on where it broke, a download too.
//!
//! Credentials go to the registry itself and to the token server of its own domain, and to nobody else:
//! redirects are followed by hand, without them, and never from HTTPS to HTTP. No message shows them.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Mutex;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{Method, Request, Response, Uri};
use ureq::{Agent, Body, SendBody};

use super::credentials::{Credential, Keychain, basic};
use super::http::{self, Network, OnBytes};
use super::reference::{Reference, host_of, is_loopback};
use crate::digest::Digest;
use crate::error::{Error, Result};

/// How often a request is made without progress.
const TRIES: u32 = 5;
/// The first pause between two tries; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(400);
/// The longest pause, also when a server asks for a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// An upload is sent in pieces of this size: so much is sent again at most when it breaks.
const PIECE: u64 = 16 << 20;
/// The largest manifest or index (registries allow 4 MiB).
const MAX_DOCUMENT: u64 = 4 << 20;
/// The largest answer with a token or an error.
const MAX_ANSWER: u64 = 1 << 20;
/// Redirects that are followed.
const MAX_HOPS: usize = 5;

/// The media types that we ask for.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// Opens what is uploaded at an offset.
pub type OpenAt<'a> = &'a (dyn Fn(u64) -> Result<Box<dyn Read>> + Sync);

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

/// How a blob got into a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    There,
    /// From another repository of the registry; no byte was sent.
    Mounted,
    /// It was sent.
    Sent,
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

    // What is there.

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

    fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let url = self.url(&format!("blobs/{digest}"));
        self.tried(&url, || {
            let response = self.send(Method::HEAD, &url, PUSH, &[], Sent::Nothing)?;
            match response.status().as_u16() {
                200 => Ok(true),
                404 => Ok(false),
                _ => Err(self.refused(&url, response)),
            }
        })
    }

    // What is given.

    /// Brings a blob there, if it isn't. `from`: another repository of this registry that has it.
    pub fn push_blob(
        &self,
        digest: &Digest,
        size: u64,
        from: Option<&str>,
        open: OpenAt,
        on_bytes: OnBytes,
    ) -> Result<Pushed> {
        if self.has_blob(digest)? {
            return Ok(Pushed::There);
        }
        let uploads = self.url("blobs/uploads/");
        let mut session: Option<String> = None;
        let (mut have, mut told, mut tries, mut mount) = (0, 0, 0, from);
        loop {
            let went = match &mut session {
                None => match self.begin_upload(&uploads, digest, mount) {
                    Ok(None) => return Ok(Pushed::Mounted),
                    Ok(Some(url)) => {
                        (session, have, mount) = (Some(url), 0, None);
                        continue;
                    }
                    Err(trouble) => Err(trouble),
                },
                Some(url) => self.go_on(url, digest, size, &mut have, open),
            };
            // A server that forgets what it took is no progress.
            let further = have > told;
            if further {
                on_bytes(have - told);
                (told, tries) = (have, 0);
            }
            match went {
                Ok(true) => return Ok(Pushed::Sent),
                Ok(false) => {}
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(why, after)) => {
                    tries += 1;
                    self.pause(&uploads, tries, why, after)?;
                    session = self.ask_how_far(session.take(), size, &mut have);
                }
            }
        }
    }

    /// Begins an upload: its address. `None`: it was mounted from another repository, and is there.
    fn begin_upload(&self, uploads: &str, digest: &Digest, from: Option<&str>) -> Attempt<Option<String>> {
        let (url, scope) = match from {
            Some(from) => (format!("{uploads}?mount={digest}&from={from}"), format!("{PUSH} {from}")),
            None => (uploads.to_string(), PUSH.to_string()),
        };
        let response = self.send(Method::POST, &url, &scope, &[], Sent::Bytes(b""))?;
        match response.status().as_u16() {
            201 if from.is_some() => Ok(None),
            202 => self.next_location(uploads, &response).map(Some),
            _ => Err(self.refused(&url, response)),
        }
    }

    fn next_location(&self, url: &str, response: &Response<Body>) -> Attempt<String> {
        let location = header(response, "location")
            .ok_or_else(|| Error::failed(format!("{} names no place for an upload", shown(url))))?;
        Ok(next_hop(url, &location)?)
    }

    /// Sends the next piece, or ends the upload; `true`: the blob is there.
    fn go_on(&self, url: &mut String, digest: &Digest, size: u64, have: &mut u64, open: OpenAt) -> Attempt<bool> {
        let kind = ("Content-Type", "application/octet-stream".to_string());
        if *have < size {
            let length = PIECE.min(size - *have);
            let range = ("Content-Range", format!("{have}-{}", *have + length - 1));
            let response = self.send(Method::PATCH, url, PUSH, &[kind, range], Sent::Piece(open, *have, length))?;
            match response.status().as_u16() {
                201 | 202 | 204 => {
                    *url = self.next_location(url, &response)?;
                    *have += length;
                    return Ok(false);
                }
                // The server has another idea of how far we are: it is asked.
                404 | 416 => return Err(Trouble::Passing(format!("the server answers {}", response.status()), None)),
                _ => return Err(self.refused(url, response)),
            }
        }
        let separator = if url.contains('?') { '&' } else { '?' };
        let end = format!("{url}{separator}digest={digest}");
        let response = self.send(Method::PUT, &end, PUSH, &[kind], Sent::Bytes(b""))?;
        match response.status().as_u16() {
            201 | 204 => Ok(true),
            404 | 416 => Err(Trouble::Passing(format!("the server answers {}", response.status()), None)),
            _ => Err(self.refused(&end, response)),
        }
    }

    /// After a failure: the upload's address and how much of it arrived; `None`: it must begin anew.
    fn ask_how_far(&self, session: Option<String>, size: u64, have: &mut u64) -> Option<String> {
        let url = session?;
        let asked = self.tried(&url, || {
            let response = self.send(Method::GET, &url, PUSH, &[], Sent::Nothing)?;
            if response.status() == 204 { Ok(response) } else { Err(self.refused(&url, response)) }
        });
        let response = asked.ok()?;
        *have = arrived(&header(&response, "range")?, size)?;
        Some(self.next_location(&url, &response).unwrap_or(url))
    }

    /// Puts a manifest or index under a tag.
    pub fn put_manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
        let url = self.url(&format!("manifests/{tag}"));
        self.tried(&url, || {
            let kind = [("Content-Type", media_type.to_string())];
            let response = self.send(Method::PUT, &url, PUSH, &kind, Sent::Bytes(bytes))?;
            if !matches!(response.status().as_u16(), 200..=202) {
                return Err(self.refused(&url, response));
            }
            match header(&response, "docker-content-digest").map(|digest| digest.parse::<Digest>()) {
                Some(Ok(digest)) if digest != Digest::of(bytes) => {
                    Err(Error::failed(format!("{} took another manifest than was sent", shown(&url)))
                        .why(format!("it has the digest {digest} there"))
                        .into())
                }
                _ => Ok(()),
            }
        })
    }

    // Requests.

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

    // Who we are.

    fn credential(&self) -> Result<Option<Credential>> {
        let mut known = lock(&self.credential);
        if let Some(known) = &*known {
            return Ok(known.clone());
        }
        let found = self.keychain.find(&self.reference)?;
        *known = Some(found.clone());
        Ok(found)
    }

    /// What the server wants to see in `Authorization` for this scope, and not `refused`, which it saw.
    fn learn(&self, response: &Response<Body>, scope: &str, refused: Option<&str>) -> Attempt<String> {
        let challenges: Vec<_> =
            response.headers().get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok()).collect();
        let credential = self.credential()?;
        let registry = &self.reference.registry;
        if let Some(bearer) = challenges.iter().find_map(|text| parameters(text, "bearer")) {
            return self.token(&bearer, scope, credential.as_ref());
        }
        let log_in = |what: &str| {
            Error::failed(format!("{registry} {what}")).next(format!("log in first: podman login {registry}"))
        };
        match credential {
            Some(Credential::Password { user, password })
                if challenges.iter().any(|c| parameters(c, "basic").is_some()) =>
            {
                let ours = format!("Basic {}", basic(&user, &password));
                if refused == Some(ours.as_str()) {
                    return Err(log_in("does not accept the user or the password").into());
                }
                Ok(ours)
            }
            _ => Err(log_in("wants to know who you are").into()),
        }
    }

    /// Asks the token server (distribution's "token authentication").
    fn token(
        &self,
        bearer: &BTreeMap<String, String>,
        scope: &str,
        credential: Option<&Credential>,
    ) -> Attempt<String> {
        let realm = bearer.get("realm").cloned().unwrap_or_default();
        self.trust(&realm)?;
        let (actions, also) = scope.split_once(' ').unwrap_or((scope, ""));
        let mut query = vec![("scope", format!("repository:{}:{actions}", self.reference.repository))];
        if !also.is_empty() {
            query.push(("scope", format!("repository:{also}:pull")));
        }
        query.extend(bearer.get("service").map(|service| ("service", service.clone())));
        let form = |pairs: &[(&str, String)]| {
            pairs.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&")
        };
        let response = match credential {
            Some(Credential::Identity(token)) => {
                let scopes: Vec<_> =
                    query.iter().filter(|(name, _)| *name == "scope").map(|(_, s)| s.as_str()).collect();
                let service = bearer.get("service").cloned().unwrap_or_default();
                let body = form(&[
                    ("grant_type", "refresh_token".into()),
                    ("client_id", "tapeout".into()),
                    ("service", service),
                    ("scope", scopes.join(" ")),
                    ("refresh_token", token.clone()),
                ]);
                let kind = [("Content-Type", "application/x-www-form-urlencoded".to_string())];
                self.once(&Method::POST, &realm, None, &kind, Sent::Bytes(body.as_bytes()))?
            }
            _ => {
                let separator = if realm.contains('?') { '&' } else { '?' };
                let url = format!("{realm}{separator}{}", form(&query));
                let who = match credential {
                    Some(Credential::Password { user, password }) => Some(format!("Basic {}", basic(user, password))),
                    _ => None,
                };
                self.once(&Method::GET, &url, who.as_deref(), &[], Sent::Nothing)?
            }
        };
        if response.status() != 200 {
            return Err(self.refused(&realm, response));
        }
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let bytes = read_bounded(response, MAX_ANSWER, &realm)?;
        let token =
            serde_json::from_slice::<Answer>(&bytes).ok().and_then(|answer| answer.token.or(answer.access_token));
        let token = token.filter(|token| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()));
        token
            .map(|token| format!("Bearer {token}"))
            .ok_or_else(|| Error::failed(format!("{} gave no token", shown(&realm))).into())
    }

    /// A registry may name any server as the one that gives tokens. Ours are asked for only at its own
    /// domain, or where the user has logged in.
    fn trust(&self, realm: &str) -> Result<()> {
        let base = self.reference.base();
        let refuse = |why: String| {
            Error::failed(format!("{} sends us for a token to {}", self.reference.registry, shown(realm))).why(why)
        };
        next_hop(&base, realm).map_err(|_| refuse("that is no safe address".into()))?;
        let (Some(ours), Some(theirs)) = (authority(&base), authority(realm)) else {
            return Err(refuse("that is no address".into()));
        };
        let (ours, theirs) = (host_of(&ours).to_string(), host_of(&theirs).to_string());
        // registry.example.com and auth.example.com are of one domain, a.io and b.io are not.
        let domain = match ours.split_once('.') {
            Some((_, above)) if above.contains('.') && ours.parse::<std::net::IpAddr>().is_err() => above,
            _ => &ours,
        };
        if theirs == ours || theirs == domain || theirs.ends_with(&format!(".{domain}")) {
            return Ok(());
        }
        let there = Reference { registry: theirs.clone(), ..self.reference.clone() };
        match self.keychain.find(&there)? {
            Some(_) => Ok(()),
            None => Err(refuse(format!("{theirs} is of another domain than {ours}"))
                .next(format!("if that is right, log in there as well: podman login {theirs}"))),
        }
    }

    /// A server may send back what it was sent.
    fn without_secrets(&self, text: &str) -> String {
        let mut secrets: Vec<String> = lock(&self.tokens).values().cloned().collect();
        secrets
            .extend(secrets.clone().iter().filter_map(|token| token.split_once(' ').map(|(_, bare)| bare.to_string())));
        secrets.extend(lock(&self.credential).iter().flatten().flat_map(Credential::secrets));
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.iter().fold(text.to_string(), |text, secret| text.replace(secret, "…"))
    }
}

/// How many bytes of an upload a server has, by its `Range`; `None`: it says what can't be.
fn arrived(range: &str, size: u64) -> Option<u64> {
    let last: u64 = range.trim_start_matches("bytes=").split_once('-')?.1.trim().parse().ok()?;
    // "0-0" is said of nothing and of one byte; pieces are larger.
    let arrived = if last == 0 { 0 } else { last.checked_add(1)? };
    (arrived <= size).then_some(arrived)
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

/// A URL for messages: without a user, and without a query, which may hold what proves who we are.
fn shown(url: &str) -> String {
    http::shown(url.split('?').next().unwrap_or(url))
}

fn authority(url: &str) -> Option<String> {
    url.parse::<Uri>().ok()?.authority().map(|authority| authority.as_str().to_string())
}

/// Scheme, host and port are the same.
fn same_origin(one: &str, other: &str) -> bool {
    let origin = |url: &str| {
        let uri = url.parse::<Uri>().ok()?;
        let port = uri.port_u16().or_else(|| Some(if uri.scheme_str()? == "https" { 443 } else { 80 }))?;
        Some((uri.scheme_str()?.to_string(), uri.host()?.to_ascii_lowercase(), port))
    };
    origin(one).is_some_and(|one| Some(one) == origin(other))
}

/// Where `Location` leads: never from HTTPS to less, plain HTTP to this machine alone, never with a user.
fn next_hop(from: &str, location: &str) -> Result<String> {
    let refuse =
        |why: &str| Error::failed(format!("{} leads to {}", shown(from), shown(location))).why(why.to_string());
    let base = from.parse::<Uri>().map_err(|_| refuse("that is no address"))?;
    let (Some(scheme), Some(host)) = (base.scheme_str(), base.authority()) else {
        return Err(refuse("that is no address"));
    };
    let url = if location.contains("://") {
        location.to_string()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{host}{folder}/{location}")
    };
    let uri = url.parse::<Uri>().map_err(|_| refuse("that is no address"))?;
    let authority = uri.authority().ok_or_else(|| refuse("that is no address"))?.as_str();
    if authority.contains('@') {
        return Err(refuse("it names a user"));
    }
    match uri.scheme_str() {
        Some("https") => Ok(url),
        Some("http") if scheme == "http" && is_loopback(authority) => Ok(url),
        _ => Err(refuse("it is not HTTPS")),
    }
}

/// The parameters of a challenge of this kind (RFC 9110, 11.6.1): `Bearer realm="…",service="…"`.
fn parameters(challenge: &str, kind: &str) -> Option<BTreeMap<String, String>> {
    let (name, mut rest) = challenge.trim().split_once(' ').unwrap_or((challenge.trim(), ""));
    if !name.eq_ignore_ascii_case(kind) {
        return None;
    }
    let mut found = BTreeMap::new();
    while let Some((key, value)) = rest.split_once('=') {
        let key = key.trim_start_matches([',', ' ']).trim().to_ascii_lowercase();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => value.split_once(',').unwrap_or((value, "")),
        };
        found.insert(key, value.trim().to_string());
        rest = after;
    }
    Some(found)
}

/// Percent-encoding for a query (RFC 3986, 2.3).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~:/,".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_of_an_upload_is_no_more_than_was_sent() {
        for (range, size, expected) in [
            ("0-0", 5, Some(0)),
            ("0-4", 5, Some(5)),
            ("bytes=0-2", 5, Some(3)),
            ("0-5", 5, None),
            ("0-18446744073709551615", u64::MAX, None),
            ("x", 5, None),
        ] {
            assert_eq!(arrived(range, size), expected, "{range}");
        }
    }

    #[test]
    fn a_challenge_is_read_with_its_commas() {
        let found =
            parameters(r#"Bearer realm="https://a.b/token",service="a.b", scope="repository:x:pull,push""#, "bearer")
                .unwrap();
        assert_eq!((found["realm"].as_str(), found["scope"].as_str()), ("https://a.b/token", "repository:x:pull,push"));
        assert_eq!(parameters("basic realm=x", "basic").unwrap()["realm"], "x");
        assert_eq!(parameters("Basic realm=x", "bearer"), None);
    }

    #[test]
    fn a_redirect_leads_to_https_or_from_this_machine_to_this_machine() {
        let next = |from: &str, location: &str| next_hop(from, location).ok();
        for (from, location, to) in [
            ("https://a.b/v2/x", "/y?z", Some("https://a.b/y?z")),
            ("https://a.b/v2/x", "y", Some("https://a.b/v2/y")),
            ("https://a.b/v2/x", "//c.d/y", Some("https://c.d/y")),
            ("https://a.b/v2/x", "https://c.d/y", Some("https://c.d/y")),
            ("https://a.b/v2/x", "http://a.b/y", None),
            ("https://a.b/v2/x", "http://127.0.0.1/y", None),
            ("http://127.0.0.1:1/x", "http://localhost:2/y", Some("http://localhost:2/y")),
            ("http://127.0.0.1:1/x", "http://a.b/y", None),
            ("https://a.b/v2/x", "https://me:secret@a.b/y", None),
            ("https://a.b/v2/x", "file:///etc/passwd", None),
        ] {
            assert_eq!(next(from, location).as_deref(), to, "{from} {location}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert!(same_origin("https://a.b/x", "https://A.b:443/y"));
        for other in ["https://a.b:444", "http://a.b", "https://c.a.b", "https://b"] {
            assert!(!same_origin("https://a.b/x", other), "{other}");
        }
    }

    #[test]
    fn tokens_are_asked_for_in_the_registry_s_own_domain() {
        let trusts = |registry: &str, realm: &str| {
            let reference = format!("docker://{registry}/x").parse().unwrap();
            Repository::new(&reference, &Keychain::default(), Network::Offline).trust(realm).is_ok()
        };
        assert!(trusts("docker.io", "https://auth.docker.io/token"));
        assert!(trusts("registry.example.com", "https://example.com/jwt/auth"));
        assert!(trusts("quay.io", "https://quay.io/v2/auth"));
        assert!(trusts("127.0.0.1:5000", "http://127.0.0.1:5001/token"));
        for (registry, realm) in [
            ("quay.io", "https://evil.io/token"),
            ("registry.example.com", "https://evil.com/token"),
            ("registry.example.com", "http://registry.example.com/token"),
            ("registry.example.com", "https://notexample.com/token"),
            ("a.b", "https://a.b@evil.com/token"),
            ("a.b", "https://a.b.evil.com/token"),
            ("10.0.0.1:5000", "https://11.0.0.1/token"),
        ] {
            assert!(!trusts(registry, realm), "{registry} {realm}");
        }
    }

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
