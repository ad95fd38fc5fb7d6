//! Filters against what the specification says of them, tried at random.

use super::*;
use proptest::{collection::vec, prelude::*, sample::select};

fn segments() -> impl Strategy<Value = Vec<&'static str>> {
    vec(select(vec!["a", "b", "c.d", "%20"]), 0..4)
}

fn path(segments: &[&str], slash: bool) -> String {
    match slash && !segments.is_empty() {
        true => format!("/{}/", segments.join("/")),
        false => format!("/{}", segments.join("/")),
    }
}

/// Names that a route may change, and one that is not its own.
fn changes() -> impl Strategy<Value = Vec<(String, String)>> {
    let name = select(vec!["x-a", "X-B", "x-c", "content-length"]);
    let pair = (name, select(vec!["1", "2", "3"]));
    let owned = pair.prop_map(|(name, value)| (name.to_owned(), value.to_owned()));
    vec(owned, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The segments of the replacement, then those that followed the prefix, each after one slash.
    #[test]
    fn a_replaced_prefix_never_doubles_or_loses_a_slash(
        prefix in segments(),
        rest in segments(),
        replacement in segments(),
        slashes in any::<[bool; 3]>(),
        is_empty in any::<bool>(),
    ) {
        let asked: Vec<_> = prefix.iter().chain(&rest).copied().collect();
        let asked = path(&asked, slashes[0]);
        let matched = path(&prefix, slashes[1]);
        let matched = matched.trim_end_matches('/').len();
        let text = match is_empty && replacement.is_empty() {
            true => String::new(),
            false => path(&replacement, slashes[2]),
        };
        let changed = changed_path(&asked, &PathChange::Prefix(text.clone()), Some(matched));

        let expected: Vec<_> = replacement.iter().chain(&rest).copied().collect();
        // Without more after the prefix, the replacement says how the path ends.
        let is_whole = asked.len() == matched;
        let slash = if is_whole { text.ends_with('/') } else { asked.ends_with('/') };
        prop_assert_eq!(&changed, &path(&expected, slash), "{} {} {}", asked, matched, text);
        prop_assert!(changed.starts_with('/') && !changed.contains("//"));
    }

    /// What is set replaces, what is added comes after, what is removed is gone, whatever the case
    /// of its letters; and the length of a body is nobody's to change.
    #[test]
    fn header_changes_are_made_in_the_order_of_the_specification(
        before in changes(),
        set in changes(),
        add in changes(),
        remove in vec(select(vec!["x-a", "X-b", "Content-Length"]), 0..2),
    ) {
        let mut headers = HeaderMap::new();
        let mut expected: Vec<(String, String)> = Vec::new();
        for (name, value) in &before {
            headers.append(HeaderName::try_from(name).unwrap(), value.try_into().unwrap());
            expected.push((name.to_ascii_lowercase(), value.clone()));
        }
        let own = |name: &str| !name.eq_ignore_ascii_case("content-length");
        for (name, value) in set.iter().filter(|(name, _)| own(name)) {
            expected.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            expected.push((name.to_ascii_lowercase(), value.clone()));
        }
        for (name, value) in add.iter().filter(|(name, _)| own(name)) {
            expected.push((name.to_ascii_lowercase(), value.clone()));
        }
        for name in remove.iter().filter(|name| own(name)) {
            expected.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        }
        let change = HeaderChange {
            set,
            add,
            remove: remove.iter().map(|name| (*name).to_owned()).collect(),
        };
        Headers::new(&change).unwrap().apply(&mut headers);
        // Only the order of values of one name means anything.
        let mut got: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        got.sort_by(|(one, _), (other, _)| one.cmp(other));
        expected.sort_by(|(one, _), (other, _)| one.cmp(other));
        prop_assert_eq!(got, expected);
    }
}
