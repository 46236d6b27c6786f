//! What a registry is given: blobs, in pieces that go on where they broke, and manifests.

use std::io::Read;

use ureq::Body;
use ureq::http::{Method, Response};

use super::address::{next_hop, shown};
use super::{Attempt, PUSH, Repository, Sent, Trouble, header};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::remote::http::OnBytes;

/// An upload is sent in pieces of this size: so much is sent again at most when it breaks.
const PIECE: u64 = 16 << 20;

/// Opens what is uploaded at an offset.
pub type OpenAt<'a> = &'a (dyn Fn(u64) -> Result<Box<dyn Read>> + Sync);

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

impl Repository {
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
}

/// How many bytes of an upload a server has, by its `Range`; `None`: it says what can't be.
fn arrived(range: &str, size: u64) -> Option<u64> {
    let last: u64 = range.trim_start_matches("bytes=").split_once('-')?.1.trim().parse().ok()?;
    // "0-0" is said of nothing and of one byte; pieces are larger.
    let arrived = if last == 0 { 0 } else { last.checked_add(1)? };
    (arrived <= size).then_some(arrived)
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
}
