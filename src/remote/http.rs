//! Files over HTTP: bounded, with retries that go on where the connection broke.
//!
//! What comes in is data and trusted for nothing: whoever asked checks its digest. `http_proxy`
//! and its like are honoured (ureq reads them). `file:` URLs are read from disk, also offline.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ureq::config::ConfigBuilder;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

use ureq::typestate::AgentScope;

use crate::error::{Error, Result};

/// May we speak to the world?
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// Yes.
    #[default]
    Allowed,
    /// No: asking is an error before any socket opens.
    Offline,
}

/// Is told how many bytes came in.
pub type OnBytes<'a> = &'a (dyn Fn(u64) + Sync);

/// How often a request is made without a byte of progress.
const TRIES: u32 = 4;

/// A client; clones share their connections.
#[derive(Debug, Clone)]
pub struct Http {
    /// Made when it is first needed: reading the certificates takes milliseconds.
    agent: Arc<OnceLock<ureq::Agent>>,
    network: Network,
}

/// Where systems keep the certificates that they trust, those of their owner among them.
const CERTIFICATES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Bytes of these.
const CERTIFICATES_SIZE: u64 = 16 << 20;

/// What one attempt came to.
enum Attempt {
    Done,
    NotThere,
    /// May be tried again; why it failed.
    Broken(String),
}

impl Http {
    /// A client.
    pub fn new(network: Network) -> Self {
        Self { agent: Arc::default(), network }
    }

    fn agent(&self) -> &ureq::Agent {
        self.agent.get_or_init(agent)
    }

    /// Are sockets allowed?
    pub fn network(&self) -> Network {
        self.network
    }

    /// Copies what is at `url` to `sink`; gives its size. More than `limit` bytes are an error.
    pub fn fetch(&self, url: &str, limit: u64, sink: &mut dyn Write, on_bytes: OnBytes) -> Result<u64> {
        let size = self.fetch_if_there(url, limit, sink, on_bytes)?;
        size.ok_or_else(|| Error::failed(format!("{} is not there", shown(url))))
    }

    /// The same; `None` where the server says that there is no such file.
    pub fn fetch_if_there(
        &self,
        url: &str,
        limit: u64,
        sink: &mut dyn Write,
        on_bytes: OnBytes,
    ) -> Result<Option<u64>> {
        if let Some(path) = file_path(url) {
            return copy_file(Path::new(path), limit, sink, on_bytes);
        }
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(Error::request(format!("{} is a URL of a kind that is not known here", shown(url)))
                .next("use https:, http: or file:"));
        }
        if self.network == Network::Offline {
            return Err(Error::failed(format!("{} is needed, and --offline forbids to fetch it", shown(url)))
                .next("run once without --offline, so that it gets into the store"));
        }
        self.fetch_with_retries(url, limit, sink, on_bytes)
    }

    /// Is there something at `url`? Asked once, and not longer than this.
    pub fn answers(&self, url: &str, within: Duration) -> Result<()> {
        let failed = |why: String| Err(Error::failed(format!("{}: {why}", shown(url))));
        if let Some(path) = file_path(url) {
            return std::fs::metadata(path).map(drop).map_err(|e| Error::io("stat", path, e));
        }
        if self.network == Network::Offline {
            return failed("--offline forbids to ask".into());
        }
        match settings().timeout_global(Some(within)).build().new_agent().head(url).call() {
            Ok(response) if response.status().as_u16() < 400 => Ok(()),
            Ok(response) => failed(format!("the server answers {}", response.status().as_u16())),
            Err(error) => failed(error.to_string()),
        }
    }

    /// The bytes at `url`, at most `limit`.
    pub fn get(&self, url: &str, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![];
        self.fetch(url, limit, &mut bytes, &|_| {})?;
        Ok(bytes)
    }

    fn fetch_with_retries(
        &self,
        url: &str,
        limit: u64,
        sink: &mut dyn Write,
        on_bytes: OnBytes,
    ) -> Result<Option<u64>> {
        let (mut have, mut tries) = (0, 0);
        loop {
            let before = have;
            let reason = match self.attempt(url, limit, &mut have, sink, on_bytes)? {
                Attempt::Done => return Ok(Some(have)),
                Attempt::NotThere if have == 0 => return Ok(None),
                // The sink holds a part of it, which is nobody else's beginning.
                Attempt::NotThere => "it was there and is gone".into(),
                Attempt::Broken(reason) => reason,
            };
            tries = if have > before { 1 } else { tries + 1 };
            if tries >= TRIES {
                return Err(Error::failed(format!("fetch {}: {reason}", shown(url)))
                    .why(format!("tried {TRIES} times"))
                    .next("see whether the mirror is up, whether http_proxy must be set, or name another one with --mirror"));
            }
            std::thread::sleep(Duration::from_millis(300 << tries));
        }
    }

    fn attempt(
        &self,
        url: &str,
        limit: u64,
        have: &mut u64,
        sink: &mut dyn Write,
        on_bytes: OnBytes,
    ) -> Result<Attempt> {
        let mut request = self.agent().get(url);
        if *have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let response = match request.call() {
            Ok(response) => response,
            Err(ureq::Error::BadUri(why)) => return Err(Error::request(format!("{} is not a URL: {why}", shown(url)))),
            Err(error) => return Ok(Attempt::Broken(error.to_string())),
        };
        let status = response.status().as_u16();
        let mut skip = match status {
            200 => *have,
            206 if resumes_at(&response, *have) => 0,
            404 | 410 => return Ok(Attempt::NotThere),
            408 | 429 | 500.. => return Ok(Attempt::Broken(format!("the server answers {status}"))),
            _ => return Err(Error::failed(format!("fetch {}: the server answers {status}", shown(url)))),
        };
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => return Ok(Attempt::Done),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Attempt::Broken(error.to_string())),
            };
            let known = usize::try_from(skip).unwrap_or(n).min(n);
            skip -= known as u64;
            let new = &buffer[known..n];
            *have += new.len() as u64;
            if *have > limit {
                return Err(too_long(url, limit));
            }
            sink.write_all(new).map_err(|e| Error::io("write", format!("what came from {}", shown(url)), e))?;
            on_bytes(new.len() as u64);
        }
    }
}

fn agent() -> ureq::Agent {
    settings().build().new_agent()
}

/// What every client of ours has.
pub(super) fn settings() -> ConfigBuilder<AgentScope> {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_recv_body(Some(Duration::from_secs(300)))
        .max_idle_connections_per_host(16)
        .tls_config(TlsConfig::builder().root_certs(certificates()).build())
        .user_agent(concat!("tapeout/", env!("CARGO_PKG_VERSION")))
}

/// The system's certificates; those that came with us where it has none.
fn certificates() -> RootCerts {
    let read = |path: &&str| {
        let mut bytes = vec![];
        File::open(path).ok()?.take(CERTIFICATES_SIZE).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    };
    let bytes = CERTIFICATES.iter().find_map(read).unwrap_or_default();
    let found: Vec<Certificate<'static>> = ureq::tls::parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() { RootCerts::WebPki } else { RootCerts::from(found) }
}

fn too_long(url: &str, limit: u64) -> Error {
    Error::failed(format!("{} is longer than the {limit} bytes that were expected", shown(url)))
}

/// Does a 206 begin where we asked it to?
pub(super) fn resumes_at(response: &ureq::http::Response<ureq::Body>, have: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|v| v.to_str().ok());
    range.is_some_and(|r| r.trim().starts_with(&format!("bytes {have}-")))
}

/// `file:/a` and `file:///a`.
fn file_path(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("file:")?;
    Some(rest.strip_prefix("//").unwrap_or(rest))
}

fn copy_file(path: &Path, limit: u64, sink: &mut dyn Write, on_bytes: OnBytes) -> Result<Option<u64>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    if !file.metadata().map_err(|e| Error::io("fstat", path, e))?.is_file() {
        return Err(Error::failed(format!("{} is not a regular file", path.display())));
    }
    let size = io::copy(&mut file.take(limit + 1), sink).map_err(|e| Error::io("copy", path, e))?;
    if size > limit {
        return Err(too_long(&format!("file:{}", path.display()), limit));
    }
    on_bytes(size);
    Ok(Some(size))
}

/// A URL for messages: without a user name and password.
pub fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_string() };
    let host_end = rest.find('/').unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    /// Answers each connection with the next of `answers`; gives the URL and what was asked.
    fn server(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            answers
                .into_iter()
                .map(|answer| {
                    let (mut stream, _) = listener.accept().unwrap();
                    let asked = BufReader::new(&stream)
                        .lines()
                        .map(|l| l.unwrap())
                        .take_while(|l| !l.is_empty())
                        .collect::<Vec<_>>();
                    stream.write_all(answer.as_bytes()).unwrap();
                    asked.join("\n")
                })
                .collect()
        });
        (url, thread)
    }

    #[test]
    fn offline_is_an_error_before_any_socket() {
        let error = Http::new(Network::Offline).get("http://192.0.2.1/x", 10).unwrap_err();
        assert!(error.what().contains("--offline"), "{error}");
    }

    #[test]
    fn a_broken_connection_is_taken_up_where_it_broke() {
        let (url, thread) = server(vec![
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nabc".into(),
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 3-5/6\r\nContent-Length: 3\r\nConnection: close\r\n\r\ndef".into(),
        ]);
        assert_eq!(Http::new(Network::Allowed).get(&url, 10).unwrap(), b"abcdef");
        assert!(thread.join().unwrap()[1].to_lowercase().contains("range: bytes=3-"));
    }

    #[test]
    fn a_server_without_ranges_is_read_again_from_the_start() {
        let (url, thread) = server(vec![
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nabc".into(),
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nabcdef".into(),
        ]);
        assert_eq!(Http::new(Network::Allowed).get(&url, 10).unwrap(), b"abcdef");
        thread.join().unwrap();
    }

    #[test]
    fn more_than_the_limit_is_an_error() {
        let (url, thread) =
            server(vec!["HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nabcdef".into()]);
        assert!(Http::new(Network::Allowed).get(&url, 5).is_err());
        thread.join().unwrap();
    }

    #[test]
    fn what_is_not_there_is_told_from_what_fails() {
        let (url, thread) =
            server(vec!["HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into()]);
        assert!(Http::new(Network::Allowed).fetch_if_there(&url, 5, &mut vec![], &|_| {}).unwrap().is_none());
        thread.join().unwrap();
        assert!(
            Http::new(Network::Offline)
                .fetch_if_there("file:/no/such/file", 5, &mut vec![], &|_| {})
                .unwrap()
                .is_none()
        );
        assert!(Http::new(Network::Offline).get("ftp://host/x", 5).is_err());
    }

    #[test]
    fn a_message_shows_no_password() {
        assert_eq!(shown("https://me:secret@host:8/a@b"), "https://host:8/a@b");
        assert_eq!(shown("https://host/a@b"), "https://host/a@b");
    }
}
