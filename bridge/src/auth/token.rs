//! Tokens: text in, claims out, and back. Pure: no clock, no files.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
#[cfg(test)]
use ring::signature::KeyPair;
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Role;

/// Who issues tokens, and for whom: one that was made for something else is refused.
const ISSUER: &str = "tideline";
const AUDIENCE: &str = "tideline-api";

/// The one algorithm.
const ALGORITHM: &str = "EdDSA";

/// How far the clocks of issuer and bridge may be apart, seconds.
pub(crate) const LEEWAY_SECONDS: u64 = 30;

/// Longest time for which a token may be good: a revocation is remembered for as long, and then no
/// token of its name can be good any more.
pub const VALIDITY_SECONDS_MAX: u64 = 366 * 86_400;

/// Most bytes of a token that are looked at.
const TOKEN_BYTES_MAX: usize = 2_048;

/// What a token says. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued it.
    pub iss: String,
    /// For what.
    pub aud: String,
    /// Whom it is made out to: a person's or a program's name, or a device's id.
    pub sub: String,
    /// What it is good for.
    pub role: Role,
    /// When it was issued.
    pub iat: u64,
    /// When it ends.
    pub exp: u64,
    /// Its own name.
    pub jti: String,
}

/// What a token says of itself; anything else in a header (`crit`, `jwk`, `x5u`) is refused.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    #[serde(default)]
    typ: Option<String>,
    kid: String,
}

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no token of ours by its form.
    #[error("is malformed")]
    Malformed,
    /// It names another algorithm.
    #[error("is not signed with EdDSA")]
    Algorithm,
    /// Nobody here knows the key.
    #[error("is signed with an unknown key")]
    UnknownKey,
    /// Somebody changed it, or another key signed it.
    #[error("has a wrong signature")]
    Signature,
    /// It was made by or for something else.
    #[error("is of another issuer or for another audience")]
    Foreign,
    /// It is over.
    #[error("has expired")]
    Expired,
    /// It would be good for longer than any token may be.
    #[error("is made out for more than {} days", VALIDITY_SECONDS_MAX / 86_400)]
    TooLong,
    /// It was issued in the future.
    #[error("is not valid yet: compare the clocks")]
    NotYet,
}

/// The half that issues.
#[derive(Debug)]
pub struct SigningKey {
    kid: String,
    pair: Ed25519KeyPair,
}

/// The half that checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey(pub(super) [u8; 32]);

impl Claims {
    /// What a new token says.
    #[must_use]
    pub fn new(subject: String, role: Role, now: u64, seconds: u64) -> Self {
        Self {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: subject,
            role,
            iat: now,
            exp: now.saturating_add(seconds),
            jti: format!("{:032x}", rand::random::<u128>()),
        }
    }
}

impl Refused {
    /// The reason as it stands in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Foreign => "foreign",
            Self::Expired => "expired",
            Self::TooLong => "too_long",
            Self::NotYet => "not_yet",
        }
    }
}

impl SigningKey {
    /// From a PKCS#8 document; `None` when it holds no Ed25519 key.
    pub(super) fn from_pkcs8(kid: String, document: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(document).ok()?;
        Some(Self { kid, pair })
    }

    /// Its name.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    #[cfg(test)]
    pub(super) fn verifying(&self) -> VerifyingKey {
        let mut raw = [0; 32];
        raw.copy_from_slice(self.pair.public_key().as_ref());
        VerifyingKey(raw)
    }

    /// The token of these claims.
    ///
    /// # Errors
    /// None that can happen: claims are plain values.
    pub fn sign(&self, claims: &Claims) -> Result<String, serde_json::Error> {
        let header = Header {
            alg: ALGORITHM.to_owned(),
            typ: Some("JWT".to_owned()),
            kid: self.kid.clone(),
        };
        let mut token = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header)?);
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims)?));
        let signature = self.pair.sign(token.as_bytes());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature.as_ref()));
        Ok(token)
    }
}

/// What a token says, when a known key signed it and it is in force at `now` (seconds since the
/// Unix epoch). `key` finds the key of a `kid`.
///
/// # Errors
/// [`Refused`] says why it is not taken. An ended token says so to those alone who have its
/// signature.
pub fn verify(
    token: &str,
    now: u64,
    key: impl FnOnce(&str) -> Option<VerifyingKey>,
) -> Result<Claims, Refused> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Refused::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(Refused::Malformed)?;
    let header: Header = part(header)?;
    if header.alg != ALGORITHM {
        return Err(Refused::Algorithm);
    }
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| Refused::Malformed)?;
    let VerifyingKey(raw) = key(&header.kid).ok_or(Refused::UnknownKey)?;
    UnparsedPublicKey::new(&ED25519, raw)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| Refused::Signature)?;
    let claims: Claims = part(payload)?;
    if claims.iss != ISSUER || claims.aud != AUDIENCE {
        return Err(Refused::Foreign);
    }
    if claims.exp.saturating_add(LEEWAY_SECONDS) <= now {
        return Err(Refused::Expired);
    }
    if claims.exp.saturating_sub(claims.iat) > VALIDITY_SECONDS_MAX {
        return Err(Refused::TooLong);
    }
    if claims.iat > now.saturating_add(LEEWAY_SECONDS) {
        return Err(Refused::NotYet);
    }
    Ok(claims)
}

fn part<T: DeserializeOwned>(text: &str) -> Result<T, Refused> {
    let json = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| Refused::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| Refused::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::rand::SystemRandom;

    use super::*;

    const NOW: u64 = 1_790_000_000;

    fn key(kid: &str) -> SigningKey {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        SigningKey::from_pkcs8(kid.to_owned(), document.as_ref()).unwrap()
    }

    fn claims() -> Claims {
        Claims::new("alice".to_owned(), Role::Operator, NOW, 600)
    }

    fn check(token: &str, now: u64, key: &SigningKey) -> Result<Claims, Refused> {
        verify(token, now, |kid| {
            (kid == key.kid()).then(|| key.verifying())
        })
    }

    /// A token with this header and payload, signed as they stand.
    fn forge(key: &SigningKey, header: &str, payload: &str) -> String {
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(payload)
        );
        let signature = key.pair.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    #[test]
    fn a_token_says_what_was_signed_while_it_is_in_force() {
        let key = key("k1");
        let token = key.sign(&claims()).unwrap();
        let expires = NOW + 600 + LEEWAY_SECONDS;
        for now in [NOW - LEEWAY_SECONDS, NOW, expires - 1] {
            assert_eq!(check(&token, now, &key).unwrap().sub, "alice");
        }
        assert_eq!(check(&token, expires, &key), Err(Refused::Expired));
        let early = NOW - LEEWAY_SECONDS - 1;
        assert_eq!(check(&token, early, &key), Err(Refused::NotYet));
    }

    #[test]
    fn another_key_another_algorithm_and_another_purpose_are_refused() {
        let (ours, other) = (key("k1"), key("k1"));
        let token = other.sign(&claims()).unwrap();
        assert_eq!(check(&token, NOW, &ours), Err(Refused::Signature));
        let unknown = key("k2").sign(&claims()).unwrap();
        assert_eq!(check(&unknown, NOW, &ours), Err(Refused::UnknownKey));

        let payload = serde_json::to_string(&claims()).unwrap();
        for (header, expected) in [
            (r#"{"alg":"none","kid":"k1"}"#, Refused::Algorithm),
            (r#"{"alg":"HS256","kid":"k1"}"#, Refused::Algorithm),
            (r#"{"alg":"RS256","kid":"k1"}"#, Refused::Algorithm),
            (r#"{"alg":"eddsa","kid":"k1"}"#, Refused::Algorithm),
            (r#"{"alg":"EdDSA"}"#, Refused::Malformed),
            (
                r#"{"alg":"EdDSA","kid":"k1","crit":["x"]}"#,
                Refused::Malformed,
            ),
            (r#"{"alg":"EdDSA","kid":"k1","jwk":{}}"#, Refused::Malformed),
        ] {
            let token = forge(&ours, header, &payload);
            assert_eq!(check(&token, NOW, &ours), Err(expected), "{header}");
        }
        let header = r#"{"alg":"EdDSA","kid":"k1"}"#;
        let strange = |change: fn(&mut Claims)| {
            let mut claims = claims();
            change(&mut claims);
            forge(&ours, header, &serde_json::to_string(&claims).unwrap())
        };
        let issuer = strange(|claims| claims.iss = "else".to_owned());
        let audience = strange(|claims| claims.aud = "else".to_owned());
        for token in [issuer, audience] {
            assert_eq!(check(&token, NOW, &ours), Err(Refused::Foreign));
        }
        let timeless = payload.replace("\"exp\":", "\"until\":");
        let token = forge(&ours, header, &timeless);
        assert_eq!(check(&token, NOW, &ours), Err(Refused::Malformed));
        let worded = payload.replace(&(NOW + 600).to_string(), "\"never\"");
        let token = forge(&ours, header, &worded);
        assert_eq!(check(&token, NOW, &ours), Err(Refused::Malformed));
    }

    #[test]
    fn a_token_may_be_good_for_a_year_and_no_longer() {
        let key = key("k1");
        let of = |seconds| Claims::new("alice".to_owned(), Role::Operator, NOW, seconds);
        let longest = key.sign(&of(VALIDITY_SECONDS_MAX)).unwrap();
        assert!(check(&longest, NOW + VALIDITY_SECONDS_MAX, &key).is_ok());
        let longer = key.sign(&of(VALIDITY_SECONDS_MAX + 1)).unwrap();
        assert_eq!(check(&longer, NOW, &key), Err(Refused::TooLong));
    }

    #[test]
    fn tokens_have_a_longest_length() {
        let key = key("k1");
        let mut claims = claims();
        let room = |claims: &Claims| key.sign(claims).unwrap().len();
        while room(&claims) < TOKEN_BYTES_MAX - 4 {
            claims.sub.push('a');
        }
        let token = key.sign(&claims).unwrap();
        assert!(token.len() <= TOKEN_BYTES_MAX && check(&token, NOW, &key).is_ok());
        claims.sub.push_str("aaaaa");
        let token = key.sign(&claims).unwrap();
        assert!(token.len() > TOKEN_BYTES_MAX);
        assert_eq!(check(&token, NOW, &key), Err(Refused::Malformed));
    }

    proptest! {
        #[test]
        fn any_text_is_refused(token in "[A-Za-z0-9_.-]{0,200}|.{0,64}") {
            prop_assert!(check(&token, NOW, &key("k1")).is_err());
        }

        #[test]
        fn any_change_of_a_token_is_noticed(at in 0_usize..4_096, to in "[A-Za-z0-9_.-]") {
            let key = key("k1");
            let token = key.sign(&claims()).unwrap();
            let at = at % token.len();
            let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
            prop_assume!(changed != token);
            prop_assert!(check(&changed, NOW, &key).is_err());
        }
    }
}
