//! Fields of a document: where they stand, and which of them nobody knows.

use crate::api::{GATEWAY_GROUP, Object};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, json};
use serde_saphyr::{Location, Spanned};
use std::fmt;

/// A place in a text, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    /// In characters.
    pub column: usize,
}

/// Where the field of a path (`spec.listeners[0].port`) stands, or the nearest field around it.
/// `None` when the text is no YAML.
pub(super) fn locate(text: &str, path: &str) -> Option<Place> {
    let root: Spanned<Tree> = serde_saphyr::from_str(text).ok()?;
    let (mut tree, mut place) = (&root.value, Place::of(root.referenced));
    for step in path.split(['.', '[']) {
        let next =
            match (tree, step.strip_suffix(']')) {
                (Tree::List(items), Some(index)) => {
                    index.parse().ok().and_then(|index: usize| items.get(index))
                }
                (Tree::Map(fields), None) => fields
                    .iter()
                    .find(|(name, _)| name.value == step)
                    .map(|(name, value)| {
                        // The name says more than the value, which may be a list of many lines.
                        place = Place::of(name.referenced).or(place);
                        value
                    }),
                _ => None,
            };
        let Some(next) = next else { break };
        if matches!(tree, Tree::List(_)) {
            place = Place::of(next.referenced).or(place);
        }
        tree = &next.value;
    }
    place
}

/// The path of the outermost field whose value stands at a place.
pub(super) fn field_at(text: &str, place: Place) -> Option<String> {
    let root: Spanned<Tree> = serde_saphyr::from_str(text).ok()?;
    find(&root.value, "", place)
}

fn find(tree: &Tree, path: &str, place: Place) -> Option<String> {
    let parts: Vec<_> = match tree {
        Tree::Scalar => Vec::new(),
        Tree::List(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| (format!("{path}[{index}]"), item))
            .collect(),
        Tree::Map(fields) => fields
            .iter()
            .map(|(name, value)| (join(path, &name.value), value))
            .collect(),
    };
    parts.into_iter().find_map(|(path, part)| {
        if Place::of(part.referenced) == Some(place) {
            return Some(path);
        }
        find(&part.value, &path, place)
    })
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.into()
    } else {
        format!("{path}.{name}")
    }
}

/// Paths of the fields that were passed over when the object was read. Nobody means a field that
/// has no effect: an API server warns of it too.
pub(super) fn unknown_fields(given: &Value, object: &Object) -> Vec<String> {
    let known = match object {
        Object::GatewayClass(o) => serde_json::to_value(o),
        Object::Gateway(o) => serde_json::to_value(o),
        Object::HttpRoute(o) => serde_json::to_value(o),
        Object::GrpcRoute(o) => serde_json::to_value(o),
        Object::TlsRoute(o) => serde_json::to_value(o),
        Object::UdpRoute(o) => serde_json::to_value(o),
        Object::TcpRoute(o) => serde_json::to_value(o),
        Object::ListenerSet(o) => serde_json::to_value(o),
        Object::BackendTlsPolicy(o) => serde_json::to_value(o),
        Object::ReferenceGrant(o) => serde_json::to_value(o),
        Object::Service(o) => serde_json::to_value(o),
        Object::EndpointSlice(o) => serde_json::to_value(o),
        Object::ConfigMap(o) => serde_json::to_value(o),
        Object::Secret(o) => serde_json::to_value(o),
        Object::Namespace(o) => serde_json::to_value(o),
        Object::Tailnet(o) => serde_json::to_value(o),
        Object::Endpoints(o) => serde_json::to_value(o),
        Object::Backend(o) => serde_json::to_value(o),
        Object::EgressSet(o) => serde_json::to_value(o),
    };
    let mut unknown = Vec::new();
    if let Ok(known) = known {
        missing(given, &known, "", &mut unknown);
    }
    unknown
}

/// Adds the paths that `given` has and `known` has not, unless they hold nothing.
fn missing(given: &Value, known: &Value, path: &str, found: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (name, value) in given {
                let path = join(path, name);
                match known.get(name) {
                    Some(known) => missing(value, known, &path, found),
                    None if is_nothing(value) => {}
                    None => found.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (index, (given, known)) in given.iter().zip(known).enumerate() {
                missing(given, known, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// A TLSRoute with hostnames: before `v1` they could be left out.
pub(super) fn with_hostnames(mut route: Value) -> Value {
    if let Some(spec) = route.get_mut("spec").and_then(Value::as_object_mut) {
        spec.entry("hostnames")
            .or_insert_with(|| Value::Array(Vec::new()));
    }
    route
}

/// The types of filters that can be read.
const FILTERS: [&str; 7] = [
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "RequestRedirect",
    "URLRewrite",
    "CORS",
    "ExtensionRef",
];

/// An HTTPRoute whose filters can all be read. The API server may know types that came later: they
/// become references to a kind of the Gateway API's own group, of which none is a filter, so that
/// they are told rather than the whole route passed over.
pub(super) fn with_known_filters(mut route: Value) -> Value {
    fn each<'a>(owner: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
        let items = owner.get_mut(field).and_then(Value::as_array_mut);
        items.into_iter().flatten()
    }
    fn replace(owner: &mut Value) {
        for filter in each(owner, "filters") {
            let kind = filter["type"].as_str().unwrap_or_default().to_owned();
            if !FILTERS.contains(&kind.as_str()) {
                let reference = json!({"group": GATEWAY_GROUP, "kind": kind, "name": ""});
                *filter = json!({"type": "ExtensionRef", "extensionRef": reference});
            }
        }
    }
    let rules = route.get_mut("spec").map(|spec| each(spec, "rules"));
    for rule in rules.into_iter().flatten() {
        replace(rule);
        each(rule, "backendRefs").for_each(replace);
    }
    route
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// YAML of any shape with the places of its parts.
enum Tree {
    Scalar,
    List(Vec<Spanned<Tree>>),
    Map(Vec<(Spanned<String>, Spanned<Tree>)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Tree, A::Error> {
        let mut map = Vec::new();
        while let Some(field) = fields.next_entry()? {
            map.push(field);
        }
        Ok(Tree::Map(map))
    }
}

// === impl Place ===

impl Place {
    pub(super) const START: Self = Self { line: 1, column: 1 };

    /// `None` when the parser does not know.
    pub(super) fn of(location: Location) -> Option<Self> {
        let line = usize::try_from(location.line()).ok()?;
        let column = usize::try_from(location.column()).ok()?;
        (line > 0).then_some(Self {
            line,
            column: column.max(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_path_or_else_what_is_around_it() {
        let text = "a: 1\nspec:\n  list:\n    - name: x\n      port: 1\n    - {name: y, port: 2}\n";
        for (path, line, column) in [
            ("a", 1, 1),
            ("spec.list[0].port", 5, 7),
            ("spec.list[1].port", 6, 17),
            ("spec.list[1].other", 6, 7),
            ("spec.list[7]", 3, 3),
            ("spec.missing.deep", 2, 1),
        ] {
            assert_eq!(locate(text, path), Some(Place { line, column }), "{path}");
        }
        assert_eq!(locate("a: [", "a"), None);
        let at = |line, column| field_at(text, Place { line, column });
        assert_eq!(at(5, 13), Some("spec.list[0].port".into()));
        assert_eq!(at(4, 7), Some("spec.list[0]".into()));
        assert_eq!(at(9, 9), None);
    }
}
