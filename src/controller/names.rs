//! Names of what is made for a Gateway.

use crate::{index::egress, model::ObjectName};
use std::fmt::Write;

/// Longest name: a StatefulSet's pods carry it with `-0` and, in a label, with a dash and a hash of
/// ten characters, which together may not exceed 63.
const LONGEST: usize = 52;

/// Longest description of an auth key that the Tailscale API takes: of letters, digits, dashes and
/// spaces.
const DESCRIPTION: usize = 50;

/// Digits of the hash that tells apart what would be called the same.
const DIGITS: usize = 8;

/// The name of a Gateway's workload: `<name>-<namespace>`, as its node is called by default. With
/// a hash where that is ambiguous (either part holds a dash, or the namespace could be a hash), too
/// long, or no DNS label. That of an egress is `<name>-egress-<namespace>-<hash>`.
pub fn workload_name(subject: &ObjectName) -> String {
    let ObjectName { namespace, name } = subject;
    let plain = match egress::object_of(subject) {
        Some((object, _)) => format!("{}-egress-{namespace}", object.name),
        None => format!("{name}-{namespace}"),
    };
    let is_plain = plain.len() <= LONGEST
        && !name.contains(['-', '/'])
        && !namespace.contains('-')
        && !is_hash(namespace)
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && is_label(&plain);
    if is_plain {
        return plain;
    }
    let mut label: String = plain
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    label.truncate(LONGEST - DIGITS - 1);
    // A Service's name starts with a letter (RFC 1035).
    let label = label.trim_start_matches(|c: char| !c.is_ascii_lowercase());
    let label = match label.trim_end_matches('-') {
        "" => "gateway",
        label => label,
    };
    format!("{label}-{}", hash(&subject.to_string()))
}

/// A label value (at most 63 letters, digits, `-`, `_` and `.`, letters or digits at both ends)
/// that says `text`, and is `text` where that is one.
pub(super) fn label_value(text: &str) -> String {
    let is_end = |c: char| c.is_ascii_alphanumeric();
    let is_value = text.len() <= 63
        && text.starts_with(is_end)
        && text.ends_with(is_end)
        && text
            .chars()
            .all(|c| is_end(c) || matches!(c, '-' | '_' | '.'));
    if is_value || text.is_empty() {
        return text.to_owned();
    }
    let mut value: String = text
        .chars()
        .map(|c| if is_end(c) || c == '.' { c } else { '-' })
        .collect();
    value.truncate(63 - DIGITS - 1);
    let value = value.trim_matches(|c: char| !is_end(c));
    let hash = hash(text);
    if value.is_empty() {
        hash
    } else {
        format!("{value}-{hash}")
    }
}

/// How an auth key made for a node is described: no two nodes of a cluster share it.
pub(super) fn key_description(subject: &ObjectName) -> String {
    const START: &str = "tailway ";
    let mut name = workload_name(subject);
    // Cut off alone it could be that of another, whose keys would go with those of this one.
    if START.len() + name.len() > DESCRIPTION {
        name.truncate(DESCRIPTION - START.len() - DIGITS - 1);
        name = format!("{name}-{}", hash(&subject.to_string()));
    }
    format!("{START}{name}")
}

/// Whether a text could be what [`hash`] gives.
fn is_hash(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_label(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.ends_with('-')
}

/// The first digits of a SHA-256, which does not change between versions of this program.
fn hash(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let mut digits = String::with_capacity(DIGITS);
    for byte in &digest.as_ref()[..DIGITS / 2] {
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(namespace: &str, name: &str) -> String {
        workload_name(&ObjectName::new(namespace, name))
    }

    #[test]
    fn a_short_name_is_readable_and_an_ambiguous_one_has_a_hash() {
        assert_eq!(name("default", "nginx"), "nginx-default");
        assert_ne!(name("c", "a-b"), name("b-c", "a"));
        assert!(name("c", "a-b").starts_with("a-b-c-"));
        assert!(name("default", &"x".repeat(253)).len() <= LONGEST);
    }

    #[test]
    fn a_namespace_that_looks_like_a_hash_gives_no_name_of_another() {
        let long = name("shop", &"a".repeat(60));
        let (start, hash) = long.rsplit_once('-').unwrap();
        assert_ne!(name(hash, start), long);
    }

    #[test]
    fn a_description_is_one_that_the_api_takes() {
        let long = ObjectName::new("n".repeat(63), "g".repeat(253));
        assert!(key_description(&long).len() <= 50);
        let short = ObjectName::new("default", "nginx");
        assert_eq!(key_description(&short), "tailway nginx-default");
    }

    #[test]
    fn no_two_nodes_share_the_description_of_their_keys() {
        let long = |namespace: &str, end: &str| {
            key_description(&ObjectName::new(namespace, "g".repeat(38) + end))
        };
        assert_ne!(long("team-one", ""), long("team-two", ""));
        assert_ne!(long("default", "a"), long("default", "b"));
        assert_ne!(long("shops1", ""), long("shops2", ""));
        let endpoints = ObjectName::new("default", "e".repeat(60));
        let pod = |ordinal| key_description(&egress::replica(&endpoints, ordinal));
        assert_ne!(pod(0), pod(1));
    }

    proptest! {
        #[test]
        fn no_two_gateways_share_a_name(
            a in ("[a-z]([a-z-]{0,8}[a-z])?", "[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?"),
            b in ("[a-z]([a-z-]{0,8}[a-z])?", "[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?"),
        ) {
            let (first, second) = (name(&a.0, &a.1), name(&b.0, &b.1));
            prop_assert_eq!(first == second, a == b, "{} {}", first, second);
            prop_assert!(first.len() <= LONGEST && is_label(&first));
            prop_assert!(first.starts_with(|c: char| c.is_ascii_lowercase()), "{}", first);
        }

        #[test]
        fn any_text_makes_a_legal_label_value(text in "\\PC{0,100}") {
            let value = label_value(&text);
            prop_assert!(value.len() <= 63);
            prop_assert!(value.is_empty() == text.is_empty());
            prop_assert!(value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)), "{}", value);
            let ends = [value.chars().next(), value.chars().last()];
            prop_assert!(ends.iter().flatten().all(char::is_ascii_alphanumeric), "{}", value);
        }
    }
}
