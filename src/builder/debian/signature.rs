//! Whether an `InRelease` file is signed by a key that we trust, and what exactly is signed.
//!
//! The format is RFC 9580's cleartext signature framework. Two holes that others had (apt
//! CVE-2016-1252, CVE-2018-0501) are closed by construction: the file must be one signed message and
//! nothing else, and only what comes out of [`signed_text`] is ever parsed.

use pgp::composed::{CleartextSignedMessage, Deserializable, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails, VerifyingKey};

use crate::error::{Error, Result};

/// The largest `InRelease` that is read: Debian's are below 200 KiB.
pub const MAX_RELEASE: u64 = 8 << 20;

/// Debian's archive keys, as the package `debian-archive-keyring` has them.
const DEBIAN: &[u8] = include_bytes!("../../../rootfs/keyrings/debian-archive-keyring.pgp");

/// Keys that we trust.
pub struct Keyring {
    name: String,
    keys: Vec<SignedPublicKey>,
}

impl Keyring {
    /// The built-in one.
    pub fn debian() -> Result<Self> {
        Self::parse("the built-in Debian keyring", DEBIAN)
    }

    /// From the bytes of a file, armoured or not. `name` is for messages.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        let bad = |e: pgp::errors::Error| Error::request(format!("{name} is not a keyring: {e}"));
        let keys = if bytes.starts_with(b"-----BEGIN") {
            let (keys, _) = SignedPublicKey::from_armor_many(bytes).map_err(bad)?;
            keys.collect::<Result<Vec<_>, _>>()
        } else {
            SignedPublicKey::from_bytes_many(bytes).map_err(bad)?.collect()
        }
        .map_err(bad)?;
        if keys.is_empty() {
            return Err(Error::request(format!("{name} holds no key")));
        }
        Ok(Self { name: name.into(), keys })
    }

    /// How many of its keys are good at this time.
    pub fn usable(&self, now: i64) -> usize {
        let good = |key: &&SignedPublicKey| usable(&key.details.direct_signatures, &key.details.users, key, now);
        self.keys.iter().filter(good).count()
    }

    /// When the newest of its keys was made: no clock that is right shows an earlier time.
    pub fn newest(&self) -> i64 {
        self.keys.iter().map(|key| i64::from(key.primary_key.created_at().as_secs())).max().unwrap_or(0)
    }

    /// Did one of the keys, or a subkey of theirs that may sign, make this signature over `text`?
    fn made(&self, signature: &Signature, text: &[u8], now: i64) -> Option<bool> {
        let mut known = None;
        for key in &self.keys {
            if usable(&key.details.direct_signatures, &key.details.users, key, now) && is_by(signature, key) {
                known = Some(signature.verify(&key.primary_key, text).is_ok());
            }
            for subkey in &key.public_subkeys {
                if is_by(signature, &subkey.key) && subkey_may_sign(key, subkey, now) {
                    known = Some(signature.verify(&subkey.key, text).is_ok());
                }
            }
            if known == Some(true) {
                break;
            }
        }
        known
    }
}

/// The text that is signed by one of the keys. `name` is where the file came from.
pub fn signed_text(file: &[u8], keyring: &Keyring, now: i64, name: &str) -> Result<String> {
    let bad = |why: String| {
        Error::failed(format!("the signature of {name} is not good"))
            .why(why)
            .next("see whether the mirror is what it says it is; or give its keys with --keyring FILE")
    };
    let text = std::str::from_utf8(file).map_err(|_| bad("it is not text".into()))?;
    one_message(text).map_err(|why| bad(why.into()))?;
    let (message, _) = CleartextSignedMessage::from_string(text).map_err(|e| bad(format!("it can't be read: {e}")))?;
    let signed = message.signed_text();
    let mut reasons = vec![];
    for signature in message.signatures() {
        match acceptable(signature, now)
            .and_then(|()| keyring.made(signature, signed.as_bytes(), now).ok_or("no key of the keyring made it"))
        {
            Ok(true) => return Ok(signed.replace("\r\n", "\n")),
            Ok(false) => reasons.push(format!("{}: it does not fit the text", issuer(signature))),
            Err(why) => reasons.push(format!("{}: {why}", issuer(signature))),
        }
    }
    Err(bad(format!(
        "none of its signatures is good with {}: {}",
        keyring.name,
        if reasons.is_empty() { "it has none".into() } else { reasons.join("; ") }
    )))
}

/// Nothing before the message, nothing after it, and only one.
fn one_message(text: &str) -> Result<(), &'static str> {
    if !text.starts_with("-----BEGIN PGP SIGNED MESSAGE-----\n") {
        return Err("it does not begin as a signed message");
    }
    if !text.trim_end_matches('\n').ends_with("\n-----END PGP SIGNATURE-----") {
        return Err("something stands after the signature");
    }
    // A line of the signed text that begins with a dash is escaped as "- -" (RFC 9580, 7.2).
    let marks: Vec<&str> = text.lines().filter(|line| line.starts_with("-----")).collect();
    if marks != ["-----BEGIN PGP SIGNED MESSAGE-----", "-----BEGIN PGP SIGNATURE-----", "-----END PGP SIGNATURE-----"] {
        return Err("it is not one signed message");
    }
    Ok(())
}

/// What is wrong with a signature before any key is asked.
fn acceptable(signature: &Signature, now: i64) -> Result<(), &'static str> {
    if !matches!(signature.typ(), Some(SignatureType::Text | SignatureType::Binary)) {
        return Err("it is not a signature of a text");
    }
    if !matches!(
        signature.hash_alg(),
        Some(
            HashAlgorithm::Sha256
                | HashAlgorithm::Sha384
                | HashAlgorithm::Sha512
                | HashAlgorithm::Sha3_256
                | HashAlgorithm::Sha3_512
        )
    ) {
        return Err("its hash is too weak");
    }
    if let (Some(created), Some(valid)) = (signature.created(), signature.signature_expiration_time())
        && valid.as_secs() > 0
        && i64::from(created.as_secs()) + i64::from(valid.as_secs()) < now
    {
        return Err("it has expired");
    }
    Ok(())
}

fn is_by(signature: &Signature, key: &impl KeyDetails) -> bool {
    let fingerprints = signature.issuer_fingerprint();
    if fingerprints.is_empty() {
        signature.issuer_key_id().contains(&&key.legacy_key_id())
    } else {
        fingerprints.contains(&&key.fingerprint())
    }
}

fn issuer(signature: &Signature) -> String {
    match (signature.issuer_fingerprint().first(), signature.issuer_key_id().first()) {
        (Some(fingerprint), _) => format!("key {fingerprint:X}"),
        (None, Some(id)) => format!("key {id}"),
        _ => "a signature".into(),
    }
}

/// A primary key that is bound to a name by itself, that isn't revoked, and that hasn't expired.
fn usable(direct: &[Signature], users: &[pgp::types::SignedUser], key: &SignedPublicKey, now: i64) -> bool {
    if !key.details.revocation_signatures.is_empty() {
        return false;
    }
    let named = users.iter().flat_map(|user| user.signatures.iter().map(move |s| (user, s)));
    let own = named
        .filter(|(user, s)| {
            s.is_certification()
                && is_by(s, key)
                && s.verify_certification(&key.primary_key, pgp::types::Tag::UserId, &user.id).is_ok()
        })
        .map(|(_, s)| s);
    let direct = direct.iter().filter(|s| s.verify_key(&key.primary_key).is_ok());
    own.chain(direct)
        .max_by_key(|s| s.created().map(|t| t.as_secs()))
        .is_some_and(|newest| !expired(&key.primary_key, newest, now))
}

/// A subkey that its primary key bound for signing, and that agreed (the back signature).
fn subkey_may_sign(key: &SignedPublicKey, subkey: &pgp::composed::SignedPublicSubKey, now: i64) -> bool {
    if !usable(&key.details.direct_signatures, &key.details.users, key, now)
        || subkey.signatures.iter().any(|s| s.typ() == Some(SignatureType::SubkeyRevocation))
    {
        return false;
    }
    let good = subkey.signatures.iter().filter(|s| {
        s.verify_subkey_binding(&key.primary_key, &subkey.key).is_ok()
            && s.key_flags().sign()
            && s.embedded_signature()
                .is_some_and(|back| back.verify_primary_key_binding(&subkey.key, &key.primary_key).is_ok())
    });
    good.max_by_key(|s| s.created().map(|t| t.as_secs())).is_some_and(|newest| !expired(&subkey.key, newest, now))
}

fn expired(key: &impl VerifyingKey, signature: &Signature, now: i64) -> bool {
    let valid = signature.key_expiration_time().map_or(0, |d| i64::from(d.as_secs()));
    valid > 0 && i64::from(key.created_at().as_secs()) + valid < now
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use pgp::composed::{EncryptionCaps, KeyType, SecretKeyParamsBuilder, SignedSecretKey, SubkeyParamsBuilder};
    use pgp::packet::{SignatureConfig, Subpacket, SubpacketData};
    use pgp::ser::Serialize as _;
    use pgp::types::{Duration, Password, Timestamp};

    /// Keys are made now, so the tests' clock stands a little later.
    pub(crate) fn now() -> i64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64 + 60
    }

    /// A key for tests, with a subkey that may sign if `subkey` says so.
    pub(crate) fn key(subkey_signs: bool) -> SignedSecretKey {
        let subkey = SubkeyParamsBuilder::default()
            .key_type(KeyType::Ed25519Legacy)
            .can_sign(subkey_signs)
            .can_authenticate(!subkey_signs)
            .build()
            .unwrap();
        let params = SecretKeyParamsBuilder::default()
            .key_type(KeyType::Ed25519Legacy)
            .can_certify(true)
            .can_sign(true)
            .can_encrypt(EncryptionCaps::None)
            .primary_user_id("Test <test@example.org>".into())
            .subkeys(vec![subkey])
            .build()
            .unwrap();
        params.generate(rand::thread_rng()).unwrap()
    }

    /// A keyring that trusts these keys.
    pub(crate) fn keyring(keys: &[&SignedSecretKey]) -> Keyring {
        let bytes: Vec<u8> =
            keys.iter().flat_map(|key| SignedPublicKey::from((*key).clone()).to_bytes().unwrap()).collect();
        Keyring::parse("the test keyring", &bytes).unwrap()
    }

    /// A signed message.
    pub(crate) fn sign(key: &SignedSecretKey, text: &str) -> Vec<u8> {
        let message =
            CleartextSignedMessage::sign(rand::thread_rng(), text, &key.primary_key, &Password::empty()).unwrap();
        message.to_armored_bytes(Default::default()).unwrap()
    }

    fn sign_with_subkey(key: &SignedSecretKey, text: &str) -> Vec<u8> {
        let subkey = &key.secret_subkeys[0].key;
        let message = CleartextSignedMessage::sign(rand::thread_rng(), text, subkey, &Password::empty()).unwrap();
        message.to_armored_bytes(Default::default()).unwrap()
    }

    const TEXT: &str = "Suite: test\n- dashed\nDate: today\n";

    fn open(file: &[u8], keyring: &Keyring, now: i64) -> Result<String> {
        signed_text(file, keyring, now, "mirror/InRelease")
    }

    #[test]
    fn the_signed_text_comes_out_as_it_was() {
        let key = key(true);
        assert_eq!(open(&sign(&key, TEXT), &keyring(&[&key]), now()).unwrap().trim_end(), TEXT.trim_end());
        assert_eq!(open(&sign_with_subkey(&key, TEXT), &keyring(&[&key]), now()).unwrap().trim_end(), TEXT.trim_end());
    }

    #[test]
    fn one_flipped_byte_anywhere_is_found() {
        let key = key(true);
        let (file, ring) = (sign(&key, TEXT), keyring(&[&key]));
        let text = String::from_utf8(file.clone()).unwrap();
        let (start, end) = (text.find("Suite").unwrap(), text.find("-----BEGIN PGP SIGNATURE").unwrap());
        for at in (0..file.len()).filter(|at| file[*at] != b'\n') {
            let mut changed = file.clone();
            changed[at] ^= 1;
            match open(&changed, &ring, now()) {
                Err(error) => assert!(error.what().contains("mirror/InRelease"), "{error}"),
                // Outside of what is signed a change may mean nothing (unused bits, the Hash header): the text is the signed one all the same.
                Ok(found) => assert!(!(start..end).contains(&at) && found.trim_end() == TEXT.trim_end(), "byte {at}"),
            }
        }
    }

    #[test]
    fn nothing_may_stand_before_or_after_what_is_signed() {
        let key = key(true);
        let (file, ring) = (sign(&key, TEXT), keyring(&[&key]));
        let text = String::from_utf8(file.clone()).unwrap();
        for bad in [
            format!("Suite: evil\n{text}"),
            format!("{text}\nSuite: evil\n"),
            format!("{text}{text}"),
            text.replacen("\n\n", "\nSuite: evil\n\n", 1),
            text.replacen("-----BEGIN PGP SIGNATURE", "Suite: evil\n-----BEGIN PGP SIGNATURE", 1),
            TEXT.to_string(),
            String::new(),
        ] {
            assert!(open(bad.as_bytes(), &ring, now()).is_err(), "{bad}");
        }
    }

    #[test]
    fn another_key_or_one_that_may_not_sign_does_not_count() {
        let (ours, other, closed) = (key(true), key(true), key(false));
        let error = open(&sign(&other, TEXT), &keyring(&[&ours]), now()).unwrap_err();
        assert!(error.to_string().contains("no key of the keyring"), "{error}");
        assert!(open(&sign_with_subkey(&closed, TEXT), &keyring(&[&closed]), now()).is_err());
        assert!(open(&sign(&other, TEXT), &keyring(&[&ours, &other]), now()).is_ok());
    }

    #[test]
    fn a_signature_that_expired_does_not_count() {
        let key = key(true);
        let mut config = SignatureConfig::from_key(rand::thread_rng(), &key.primary_key, SignatureType::Text).unwrap();
        config.hashed_subpackets = vec![
            Subpacket::regular(SubpacketData::SignatureCreationTime(Timestamp::now())).unwrap(),
            Subpacket::regular(SubpacketData::IssuerFingerprint(key.fingerprint())).unwrap(),
            Subpacket::regular(SubpacketData::SignatureExpirationTime(Duration::from_secs(1000))).unwrap(),
        ];
        let message = CleartextSignedMessage::new(TEXT, config, &key.primary_key, &Password::empty()).unwrap();
        let file = message.to_armored_bytes(Default::default()).unwrap();
        assert!(open(&file, &keyring(&[&key]), now()).is_ok());
        assert!(open(&file, &keyring(&[&key]), now() + 2000).is_err());
    }

    #[test]
    fn the_built_in_keyring_is_readable_and_other_files_are_not_keyrings() {
        assert!(Keyring::debian().unwrap().keys.len() >= 5);
        for bad in [&b""[..], b"not a keyring", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n"] {
            assert!(Keyring::parse("x", bad).is_err());
        }
    }
}
