//! Headers that a proxy must change: those of one hop, and those that say who is calling.

use crate::model::{HttpOptions, Identity};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, FORWARDED, HOST, PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};
use std::{collections::BTreeMap, net::IpAddr};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What no client may say of itself or of its way here.
const CLAIMS: [&str; 2] = ["tailscale-", "x-forwarded-"];
const REAL_IP: &str = "x-real-ip";
const LOGIN: HeaderName = HeaderName::from_static("tailscale-user-login");
const NAME: HeaderName = HeaderName::from_static("tailscale-user-name");
const PICTURE: HeaderName = HeaderName::from_static("tailscale-user-profile-pic");
const INFO: HeaderName = HeaderName::from_static("tailscale-headers-info");
const NODE: HeaderName = HeaderName::from_static("tailscale-node");
const TAGS: HeaderName = HeaderName::from_static("tailscale-tags");
const CAPABILITIES: HeaderName = HeaderName::from_static("tailscale-app-capabilities");
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
    /// What is told beyond what always is.
    pub(super) options: &'a HttpOptions,
}

/// Fields that say where a message ends and what becomes of its connection. They are ours to set:
/// a filter of a route changes none of them.
pub(super) fn is_framing(name: &HeaderName) -> bool {
    [
        CONNECTION,
        CONTENT_LENGTH,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ]
    .contains(name)
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
        HTTP2_SETTINGS,
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

/// Makes one field of the several that HTTP/2 allows (RFC 9113 §8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<_> = headers.get_all(COOKIE).iter().collect();
    let crumbs: Vec<_> = crumbs.into_iter().map(HeaderValue::as_bytes).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, whole);
    }
}

/// Removes what trailers must not hold, as some put them among the headers (RFC 9110 §6.5.1).
pub(super) fn scrub_trailers(trailers: &mut HeaderMap) {
    remove_claims(trailers);
    let forbidden = |name: &HeaderName| {
        is_framing(name) || [AUTHORIZATION, COOKIE, HOST, SET_COOKIE].contains(name)
    };
    let forbidden: Vec<_> = trailers
        .keys()
        .filter(|name| forbidden(name))
        .cloned()
        .collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

/// Whether a field is one that only we may write. Backends in the manner of CGI read `_` as `-`.
fn is_claim(name: &HeaderName) -> bool {
    let is_one = |name: &str| {
        CLAIMS.iter().any(|claim| name.starts_with(claim))
            || name == FORWARDED.as_str()
            || name == REAL_IP
    };
    match name.as_str().contains('_') {
        true => is_one(&name.as_str().replace('_', "-")),
        false => is_one(name.as_str()),
    }
}

fn remove_claims(headers: &mut HeaderMap) {
    let claims: Vec<_> = headers
        .keys()
        .filter(|name| is_claim(name))
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
}

/// Replaces what a client says of itself by what is known of it.
pub(super) fn introduce(headers: &mut HeaderMap, caller: &Caller<'_>) {
    remove_claims(headers);
    let mut put = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    put(FORWARDED_FOR, &caller.address.to_string());
    put(FORWARDED_HOST, caller.authority);
    put(FORWARDED_PROTO, caller.scheme);
    let options = caller.options;
    if options.forwarded {
        put(FORWARDED, &forwarded(caller));
    }
    let Some(identity) = caller.identity else {
        return;
    };
    if options.node && !identity.node.is_empty() {
        put(NODE, &encoded(&identity.node));
    }
    if options.tags && !identity.tags.is_empty() {
        put(TAGS, &encoded(&identity.tags.join(",")));
    }
    if let Some(granted) = granted(identity, &options.capabilities) {
        put(CAPABILITIES, &encoded(&granted));
    }
    if !identity.tags.is_empty() || identity.login.is_empty() {
        return;
    }
    put(LOGIN, &encoded(&identity.login));
    put(NAME, &encoded(&identity.display_name));
    put(PICTURE, &identity.profile_pic_url);
    headers.insert(INFO, INFO_URL);
}

/// `Forwarded` (RFC 7239 §4).
fn forwarded(caller: &Caller<'_>) -> String {
    let address = match caller.address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    // A port makes it no token.
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let host = match caller.authority.bytes().all(is_token) {
        true => caller.authority.to_owned(),
        false => format!("\"{}\"", caller.authority),
    };
    format!("for={address};host={host};proto={}", caller.scheme)
}

/// The capabilities of these that a peer has, as `tailscale serve --accept-app-caps` tells them;
/// `None` for a peer without any at all.
fn granted(identity: &Identity, wanted: &[String]) -> Option<String> {
    if wanted.is_empty() || identity.capabilities.is_empty() {
        return None;
    }
    let granted: BTreeMap<_, _> = wanted
        .iter()
        .filter_map(|name| identity.capabilities.get_key_value(name))
        .collect();
    let text = serde_json::to_string(&granted).ok()?;
    // Go writes JSON so that it may stand in HTML; these characters stand in strings only.
    Some(
        text.replace('<', "\\u003c")
            .replace('>', "\\u003e")
            .replace('&', "\\u0026")
            .replace('\u{2028}', "\\u2028")
            .replace('\u{2029}', "\\u2029"),
    )
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

    fn caller<'a>(identity: Option<&'a Identity>, options: &'a HttpOptions) -> Caller<'a> {
        Caller {
            options,
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
            // As CGI would read them.
            ("tailscale_user_login", "admin@example.com"),
            ("tailscale-user_name", "Admin"),
            ("x_forwarded_for", "10.0.0.3"),
            ("x-forwarded-client-cert", "Subject=admin"),
            ("x_real-ip", "10.0.0.4"),
        ]);
        introduce(&mut map, &caller(None, &HttpOptions::default()));
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
        introduce(&mut map, &caller(Some(&identity), &HttpOptions::default()));
        assert_eq!(map[LOGIN], "jo@example.com");
        assert_eq!(map[NAME], "=?utf-8?q?J=C3=B6_Doe?=");
        assert_eq!(map[PICTURE], "https://example.com/jo.png");
        assert_eq!(map[INFO], INFO_URL);
        identity.tags = vec!["tag:web".into()];
        let mut map = HeaderMap::new();
        introduce(&mut map, &caller(Some(&identity), &HttpOptions::default()));
        assert!(!map.contains_key(LOGIN));
        assert!(!map.contains_key(INFO));
    }

    #[test]
    fn more_is_told_by_choice() {
        let identity = Identity {
            node: "ci.tail1234.ts.net".into(),
            tags: vec!["tag:ci".into(), "tag:web".into()],
            capabilities: [
                ("example.com/cap/a", r#"{"roles":["<admin>","a&b"]}"#),
                ("example.com/cap/b", r#"{"name":"Jö"}"#),
            ]
            .map(|(name, value)| (name.into(), vec![serde_json::from_str(value).unwrap()]))
            .into(),
            ..Identity::default()
        };
        let told = |capabilities: &[&str], name: HeaderName| {
            let options = HttpOptions {
                forwarded: true,
                node: true,
                tags: true,
                capabilities: capabilities.iter().map(|name| (*name).into()).collect(),
                access_log: None,
            };
            let mut map = HeaderMap::new();
            introduce(&mut map, &caller(Some(&identity), &options));
            let value = map
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned());
            value.unwrap_or_default()
        };
        assert_eq!(told(&[], NODE), "ci.tail1234.ts.net");
        assert_eq!(told(&[], TAGS), "tag:ci,tag:web");
        assert_eq!(told(&[], LOGIN), "");
        assert_eq!(told(&[], CAPABILITIES), "");
        assert_eq!(
            told(&[], FORWARDED),
            "for=100.64.0.1;host=web.tail1234.ts.net;proto=https"
        );
        let a = r#"{"example.com/cap/a":[{"roles":["\u003cadmin\u003e","a\u0026b"]}]}"#;
        assert_eq!(told(&["example.com/cap/a", "other"], CAPABILITIES), a);
        assert_eq!(told(&["other"], CAPABILITIES), "{}");
        assert_eq!(
            told(&["example.com/cap/b"], CAPABILITIES),
            "=?utf-8?q?{\"example.com/cap/b\":[{\"name\":\"J=C3=B6\"}]}?="
        );
    }

    #[test]
    fn an_address_of_ipv6_and_a_port_are_quoted() {
        let options = HttpOptions::default();
        let caller = Caller {
            address: "fd7a:115c:a1e0::1".parse().unwrap(),
            authority: "web:8080",
            ..caller(None, &options)
        };
        let expected = "for=\"[fd7a:115c:a1e0::1]\";host=\"web:8080\";proto=https";
        assert_eq!(forwarded(&caller), expected);
    }

    #[test]
    fn trailers_are_no_way_round() {
        let mut map = headers(&[
            ("tailscale-user-login", "admin@example.com"),
            ("content-length", "5"),
            ("host", "b"),
            ("x-sum", "7"),
        ]);
        scrub_trailers(&mut map);
        assert_eq!(map, headers(&[("x-sum", "7")]));
    }

    #[test]
    fn cookies_are_one_field() {
        let mut map = headers(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut map);
        assert_eq!(map, headers(&[("cookie", "a=1; b=2")]));
    }
}
