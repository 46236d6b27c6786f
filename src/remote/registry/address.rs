//! Addresses that a registry names: which are ours, and which may be followed.

use ureq::http::Uri;

use crate::error::{Error, Result};
use crate::remote::http;
use crate::remote::reference::is_loopback;

/// A URL for messages: without a user, and without a query, which may hold what proves who we are.
pub fn shown(url: &str) -> String {
    http::shown(url.split('?').next().unwrap_or(url))
}

pub fn authority(url: &str) -> Option<String> {
    url.parse::<Uri>().ok()?.authority().map(|authority| authority.as_str().to_string())
}

/// Scheme, host and port are the same.
pub fn same_origin(one: &str, other: &str) -> bool {
    let origin = |url: &str| {
        let uri = url.parse::<Uri>().ok()?;
        let port = uri.port_u16().or_else(|| Some(if uri.scheme_str()? == "https" { 443 } else { 80 }))?;
        Some((uri.scheme_str()?.to_string(), uri.host()?.to_ascii_lowercase(), port))
    };
    origin(one).is_some_and(|one| Some(one) == origin(other))
}

/// Where `Location` leads: never from HTTPS to less, plain HTTP to this machine alone, never with a user.
pub fn next_hop(from: &str, location: &str) -> Result<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
