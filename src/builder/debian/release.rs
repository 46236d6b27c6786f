//! A suite's `Release`: which index files it has, by digest, and when it was made.

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// What we read of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// `stable`, `oldstable-security`.
    pub suite: String,
    /// `bookworm`, `bookworm-security`.
    pub codename: String,
    /// When it was made, in seconds since 1970.
    pub date: i64,
    /// When it stops to count.
    pub valid_until: Option<i64>,
    /// Index files can be fetched by their digest.
    pub by_hash: bool,
    /// Index files by their path below `dists/SUITE/`.
    pub files: BTreeMap<String, (Digest, u64)>,
}

impl Release {
    /// From the signed text.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: String| Error::failed("a Release file can't be read").why(why);
        let stanzas = deb822_fast::borrowed::parse_borrowed(text).map_err(|e| bad(e.to_string()))?;
        let [stanza] = stanzas.as_slice() else { return Err(bad("it is not one stanza".into())) };
        let field = |name: &str| stanza.get_single(name).unwrap_or_default().trim().to_string();
        let mut files = BTreeMap::new();
        for line in stanza.get("SHA256").unwrap_or_default().iter().filter(|l| !l.trim().is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let [digest, size, path] = words.as_slice() else { return Err(bad(format!("not a file: {line:?}"))) };
            let size = size.parse().map_err(|_| bad(format!("not a size: {line:?}")))?;
            files.insert(path.to_string(), (Digest::from_hex(digest)?, size));
        }
        let date = field("Date");
        let until = field("Valid-Until");
        Ok(Self {
            suite: field("Suite"),
            codename: field("Codename"),
            date: time(&date).ok_or_else(|| bad(format!("not a date: {date:?}")))?,
            valid_until: match until.as_str() {
                "" => None,
                text => Some(time(text).ok_or_else(|| bad(format!("not a date: {text:?}")))?),
            },
            by_hash: field("Acquire-By-Hash") == "yes",
            files,
        })
    }

    /// Is it of the suite that was asked for, still good, and not older than the one seen last?
    pub fn check(&self, suite: &str, now: i64, seen: Option<i64>) -> Result<()> {
        // Security's suite is called bookworm-security, buster's was buster/updates.
        let asked = suite.split('/').next().unwrap_or(suite);
        if ![&self.suite, &self.codename].iter().any(|name| *name == suite || *name == asked) {
            return Err(Error::failed(format!(
                "the mirror gave suite {:?} ({:?}) instead of {suite:?}",
                self.codename, self.suite
            )));
        }
        if let Some(seen) = seen.filter(|seen| self.date < *seen) {
            return Err(Error::failed(format!(
                "the mirror's index of {suite} is of {}, older than the one in the lock, of {}",
                shown_time(self.date),
                shown_time(seen)
            ))
            .why("a mirror that goes back in time hides security updates")
            .next("wait until the mirror has caught up, or name another one with --mirror"));
        }
        if let Some(until) = self.valid_until.filter(|until| *until < now) {
            return Err(Error::failed(format!("the index of {suite} was valid until {}", shown_time(until)))
                .why(format!("it is {} now", shown_time(now)))
                .next("see whether the clock is right and the mirror is alive; or name another one with --mirror"));
        }
        Ok(())
    }
}

/// `Sat, 11 Jul 2026 10:16:37 UTC`
fn time(text: &str) -> Option<i64> {
    let text = text
        .strip_suffix("UTC")
        .or_else(|| text.strip_suffix("GMT"))
        .or_else(|| text.strip_suffix("+0000"))?
        .trim_end();
    let day = text.split_once(", ").map_or(text, |(_, day)| day);
    chrono::NaiveDateTime::parse_from_str(day, "%d %b %Y %H:%M:%S").ok().map(|t| t.and_utc().timestamp())
}

/// `2026-07-11T10:16:37Z`
pub fn shown_time(seconds: i64) -> String {
    chrono::DateTime::from_timestamp(seconds, 0)
        .map_or_else(|| seconds.to_string(), |t| t.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// The inverse of [`shown_time`].
pub fn parse_time(text: &str) -> Option<i64> {
    chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%SZ").ok().map(|t| t.and_utc().timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(more: &str) -> Result<Release> {
        Release::parse(&format!("Suite: oldstable\nCodename: bookworm\nDate: Sat, 11 Jul 2026 10:16:37 UTC\n{more}"))
    }

    #[test]
    fn the_fields_that_count_are_read() {
        let digest = Digest::of("x");
        let read = release(&format!(
            "Acquire-By-Hash: yes\nMD5Sum:\n 0 1 main/x\nSHA256:\n {}   12 main/binary-amd64/Packages.xz\n",
            digest.hex()
        ))
        .unwrap();
        assert_eq!(read.files["main/binary-amd64/Packages.xz"], (digest, 12));
        assert_eq!((read.date, read.by_hash, read.files.len()), (1783764997, true, 1));
        assert_eq!(parse_time(&shown_time(read.date)), Some(read.date));
    }

    #[test]
    fn what_can_not_be_read_is_an_error() {
        for bad in [
            "SHA256:\n abc 1 x\n",
            "SHA256:\n ../../x 1 x\n",
            "Valid-Until: soon\n",
            "\nSuite: other\nDate: Sat, 11 Jul 2026 10:16:37 UTC\n",
        ] {
            assert!(release(bad).is_err(), "{bad}");
        }
        assert!(Release::parse("Suite: x\n").is_err());
    }

    #[test]
    fn another_suite_an_expired_and_an_older_index_are_refused() {
        let read = release("Valid-Until: Sat, 18 Jul 2026 10:16:37 UTC\n").unwrap();
        let until = read.valid_until.unwrap();
        assert!(read.check("bookworm", until, None).is_ok());
        assert!(read.check("oldstable", until, Some(read.date)).is_ok());
        assert!(read.check("trixie", until, None).is_err());
        assert!(read.check("bookworm", until + 1, None).is_err());
        assert!(read.check("bookworm", until, Some(read.date + 1)).is_err());
    }
}
