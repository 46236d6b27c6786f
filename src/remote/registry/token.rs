//! Who we are, for those who may know: passwords and tokens (distribution-spec's "token authentication").

use std::collections::BTreeMap;

use serde::Deserialize;
use ureq::Body;
use ureq::http::{Method, Response};

use super::address::{authority, next_hop, shown};
use super::{Attempt, MAX_ANSWER, Repository, Sent, lock, read_bounded};
use crate::error::{Error, Result};
use crate::remote::credentials::{Credential, basic};
use crate::remote::reference::{Reference, host_of};

impl Repository {
    pub(super) fn credential(&self) -> Result<Option<Credential>> {
        let mut known = lock(&self.credential);
        if let Some(known) = &*known {
            return Ok(known.clone());
        }
        let found = self.keychain.find(&self.reference)?;
        *known = Some(found.clone());
        Ok(found)
    }

    /// What the server wants to see in `Authorization` for this scope, and not `refused`, which it saw.
    pub(super) fn learn(&self, response: &Response<Body>, scope: &str, refused: Option<&str>) -> Attempt<String> {
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
    pub(super) fn trust(&self, realm: &str) -> Result<()> {
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
    pub(super) fn without_secrets(&self, text: &str) -> String {
        let mut secrets: Vec<String> = lock(&self.tokens).values().cloned().collect();
        secrets
            .extend(secrets.clone().iter().filter_map(|token| token.split_once(' ').map(|(_, bare)| bare.to_string())));
        secrets.extend(lock(&self.credential).iter().flatten().flat_map(Credential::secrets));
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.iter().fold(text.to_string(), |text, secret| text.replace(secret, "…"))
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
    use crate::remote::credentials::Keychain;
    use crate::remote::http::Network;

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
}
