//! Headers that a proxy must change: those of one hop, and those that say who is calling.

use crate::model::Identity;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        CONNECTION, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRANSFER_ENCODING, UPGRADE,
    },
};
use std::net::IpAddr;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What no client may say of itself.
const TAILSCALE: &str = "tailscale-";
const LOGIN: HeaderName = HeaderName::from_static("tailscale-user-login");
const NAME: HeaderName = HeaderName::from_static("tailscale-user-name");
const PICTURE: HeaderName = HeaderName::from_static("tailscale-user-profile-pic");
const INFO: HeaderName = HeaderName::from_static("tailscale-headers-info");
const INFO_URL: HeaderValue = HeaderValue::from_static("https://tailscale.com/s/serve-headers");

/// Who a request is from, as backends are told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    pub(super) address: IpAddr,
    pub(super) identity: Option<&'a Identity>,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    /// As the client named the host, with its port.
    pub(super) authority: &'a str,
}

/// Removes what concerns one connection alone (RFC 9110 §7.6.1). Trailers stay announced.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<_> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse::<HeaderName>().ok())
        .collect();
    // Host is of the request, whatever a client says.
    for name in named.iter().filter(|name| **name != HOST) {
        headers.remove(name);
    }
    let trailers = accepts_trailers(headers);
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(TE).iter();
    let mut values = values.filter_map(|value| value.to_str().ok());
    values.any(|value| value.split(',').any(|part| part.trim() == "trailers"))
}

/// Replaces what a client says of itself by what is known of it.
pub(super) fn introduce(headers: &mut HeaderMap, caller: &Caller<'_>) {
    let claims: Vec<_> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(TAILSCALE))
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
    headers.remove(FORWARDED);
    let mut put = |name: HeaderName, value: &str| {
        headers.remove(&name);
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    put(FORWARDED_FOR, &caller.address.to_string());
    put(FORWARDED_HOST, caller.authority);
    put(FORWARDED_PROTO, caller.scheme);
    let user = caller.identity.filter(|identity| identity.tags.is_empty());
    let Some(identity) = user.filter(|identity| !identity.login.is_empty()) else {
        return;
    };
    put(LOGIN, &encoded(&identity.login));
    put(NAME, &encoded(&identity.display_name));
    put(PICTURE, &identity.profile_pic_url);
    headers.insert(INFO, INFO_URL);
}

/// Text of a header; what is not ASCII becomes an encoded word (RFC 2047, "Q" encoding in UTF-8),
/// as `tailscale serve` writes it.
fn encoded(text: &str) -> String {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~' | b'\t');
    if text.bytes().all(is_plain) {
        return text.into();
    }
    let mut words = Vec::new();
    let mut word = String::new();
    for character in text.chars() {
        let mut bytes = [0; 4];
        let mut letter = String::new();
        for &byte in character.encode_utf8(&mut bytes).as_bytes() {
            match byte {
                b' ' => letter.push('_'),
                b'!'..=b'~' if !matches!(byte, b'=' | b'?' | b'_') => letter.push(char::from(byte)),
                _ => letter.push_str(&format!("={byte:02X}")),
            }
        }
        if word.len() + letter.len() > MAX_WORD {
            words.push(std::mem::take(&mut word));
        }
        word.push_str(&letter);
    }
    words.push(word);
    let words: Vec<_> = words
        .iter()
        .map(|word| format!("=?utf-8?q?{word}?="))
        .collect();
    words.join(" ")
}

/// An encoded word is at most 75 bytes long, with its frame of 12.
const MAX_WORD: usize = 75 - 12;

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        let mut map = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            map.append(name, value);
        }
        map
    }

    fn caller<'a>(identity: Option<&'a Identity>) -> Caller<'a> {
        Caller {
            address: "100.64.0.1".parse().unwrap(),
            identity,
            scheme: "https",
            authority: "web.tail1234.ts.net",
        }
    }

    #[test]
    fn what_concerns_one_hop_stays_there() {
        let mut map = headers(&[
            ("connection", "close, x-hop, host"),
            ("host", "a"),
            ("x-hop", "1"),
            ("x-kept", "2"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "secret"),
        ]);
        strip_hop_by_hop(&mut map);
        let kept = headers(&[("host", "a"), ("x-kept", "2"), ("te", "trailers")]);
        assert_eq!(map, kept);
    }

    #[test]
    fn nobody_can_claim_to_be_somebody() {
        let mut map = headers(&[
            ("tailscale-user-login", "admin@example.com"),
            ("tailscale-anything", "yes"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-forwarded-proto", "http"),
            ("forwarded", "for=10.0.0.1"),
        ]);
        introduce(&mut map, &caller(None));
        let expected = headers(&[
            ("x-forwarded-for", "100.64.0.1"),
            ("x-forwarded-host", "web.tail1234.ts.net"),
            ("x-forwarded-proto", "https"),
        ]);
        assert_eq!(map, expected);
    }

    #[test]
    fn users_are_named_and_tagged_nodes_are_not() {
        let mut identity = Identity {
            login: "jo@example.com".into(),
            display_name: "Jö Doe".into(),
            profile_pic_url: "https://example.com/jo.png".into(),
            ..Identity::default()
        };
        let mut map = HeaderMap::new();
        introduce(&mut map, &caller(Some(&identity)));
        assert_eq!(map[LOGIN], "jo@example.com");
        assert_eq!(map[NAME], "=?utf-8?q?J=C3=B6_Doe?=");
        assert_eq!(map[PICTURE], "https://example.com/jo.png");
        assert_eq!(map[INFO], INFO_URL);
        identity.tags = vec!["tag:web".into()];
        let mut map = HeaderMap::new();
        introduce(&mut map, &caller(Some(&identity)));
        assert!(!map.contains_key(LOGIN));
        assert!(!map.contains_key(INFO));
    }
}
