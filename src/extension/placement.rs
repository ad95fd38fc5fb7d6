//! Where routes are put among those that are there. Envoy takes the first that matches.

use super::{
    route::RenderedRoute,
    wire::{self, Malformed, Value},
};
use regex::{Regex, RegexBuilder};
use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
};

/// Numbers of the fields of `envoy.config.route.v3.VirtualHost`.
pub(super) const ROUTES: u32 = 3;

/// Of `envoy.config.route.v3.Route`.
const MATCH: u32 = 1;
const NAME: u32 = 14;

/// Of `envoy.config.route.v3.RouteMatch`.
const PREFIX: u32 = 1;
const PATH: u32 = 2;
const CASE_SENSITIVE: u32 = 4;
const REGEX: u32 = 10;
const CONNECT: u32 = 12;
const SEPARATED_PREFIX: u32 = 14;
const PATH_POLICY: u32 = 15;

/// Characters of an expression that do not stand for themselves.
const SPECIAL: &str = "\\^$.|?*+()[]{}";

/// Largest automaton that an expression of a route may become here.
const LARGEST_EXPRESSION: usize = 1 << 20;

/// Puts routes into a virtual host: each before the first route that leaves it nothing, and so
/// behind those that are about something more special. Routes of the same names are replaced.
///
/// # Errors
/// When the virtual host cannot be read.
pub(super) fn insert(virtual_host: &[u8], ours: &[RenderedRoute]) -> Result<Vec<u8>, Malformed> {
    let names: BTreeSet<_> = ours.iter().map(|route| route.name.as_str()).collect();
    let is_ours = |field: &wire::Field<'_>| match field.value {
        Value::Bytes(route) if field.number == ROUTES => {
            let name = wire::text(route, NAME).ok().flatten();
            name.is_some_and(|name| names.contains(name))
        }
        _ => false,
    };
    let virtual_host = wire::without(virtual_host, is_ours)?;
    let there: Vec<Catch> = wire::all(&virtual_host, ROUTES)
        .map(|route| Catch::of(route?))
        .collect::<Result<_, _>>()?;
    let mut places: BTreeMap<usize, Vec<&RenderedRoute>> = BTreeMap::new();
    for route in ours {
        let place = there
            .iter()
            .position(|catch| catch.leaves_nothing(&route.prefix));
        let place = place.unwrap_or(there.len());
        places.entry(place).or_default().push(route);
    }
    let added: usize = ours.iter().map(|route| route.bytes.len() + 16).sum();
    let mut out = Vec::with_capacity(virtual_host.len() + added);
    let mut put = |out: &mut Vec<u8>, place: usize| {
        for route in places.remove(&place).unwrap_or_default() {
            wire::put(out, ROUTES, &route.bytes);
        }
    };
    let mut at = 0;
    for field in wire::fields(&virtual_host) {
        let field = field?;
        if field.number == ROUTES && matches!(field.value, Value::Bytes(_)) {
            put(&mut out, at);
            at += 1;
        }
        out.extend_from_slice(field.whole);
    }
    put(&mut out, at);
    Ok(out)
}

/// Which paths a route takes wholly.
enum Catch {
    /// It takes only some requests of any path, or paths in a way that is not understood.
    Nothing,
    Prefix {
        prefix: String,
        folded: bool,
    },
    /// A prefix that ends where a segment does.
    Segments {
        prefix: String,
        folded: bool,
    },
    Expression(Expression),
}

/// An expression for all of the path. Users may have many: it is only compiled for paths that begin
/// like it.
struct Expression {
    text: String,
    /// What all that it matches begins with.
    beginning: String,
    /// `None` for what only Envoy understands.
    compiled: OnceCell<Option<Regex>>,
}

impl Catch {
    fn of(route: &[u8]) -> Result<Self, Malformed> {
        let Some(matches) = wire::message(route, MATCH)? else {
            return Ok(Self::Nothing);
        };
        let mut catch = Self::Nothing;
        let mut folded = false;
        for field in wire::fields(&matches) {
            let field = field?;
            let text = match field.value {
                Value::Bytes(bytes) => bytes,
                Value::Varint(_) | Value::Fixed => return Ok(Self::Nothing),
            };
            let prefix = || Ok(str::from_utf8(text).map_err(|_| Malformed)?.to_owned());
            match field.number {
                // One of several counts: the last.
                PREFIX => {
                    catch = Self::Prefix {
                        prefix: prefix()?,
                        folded: false,
                    }
                }
                SEPARATED_PREFIX => {
                    catch = Self::Segments {
                        prefix: prefix()?,
                        folded: false,
                    }
                }
                REGEX => {
                    // A RegexMatcher.
                    let text = wire::text(text, 2)?.unwrap_or_default();
                    catch = Self::Expression(Expression::new(text));
                }
                PATH | CONNECT | PATH_POLICY => catch = Self::Nothing,
                CASE_SENSITIVE => folded = !is_true(text)?,
                // A condition, known or not.
                _ => return Ok(Self::Nothing),
            }
        }
        Ok(match catch {
            Self::Prefix { prefix, .. } => Self::Prefix { prefix, folded },
            Self::Segments { prefix, .. } => Self::Segments { prefix, folded },
            other => other,
        })
    }

    /// Whether it takes all that a route for `ours` would, and that is not just what it asks for:
    /// who writes a route for the very same prefix means it.
    fn leaves_nothing(&self, ours: &str) -> bool {
        let under = |prefix: &str, folded: bool| match (folded, ours.get(..prefix.len())) {
            (false, Some(start)) => start == prefix,
            (true, Some(start)) => start.eq_ignore_ascii_case(prefix),
            (_, None) => false,
        };
        match self {
            Self::Nothing => false,
            Self::Prefix { prefix, folded } => prefix.len() < ours.len() && under(prefix, *folded),
            Self::Segments { prefix, folded } => {
                ours.as_bytes().get(prefix.len()) == Some(&b'/') && under(prefix, *folded)
            }
            Self::Expression(expression) => expression.leaves_nothing(ours),
        }
    }
}

impl Expression {
    fn new(text: &str) -> Self {
        let end = text.find(|c| SPECIAL.contains(c)).unwrap_or(text.len());
        let (mut beginning, rest) = text.split_at(end);
        if rest.starts_with(['*', '?', '{']) {
            // They are about the character before them.
            let last = beginning.char_indices().next_back();
            beginning = &beginning[..last.map_or(0, |(at, _)| at)];
        }
        if text.contains('|') {
            beginning = "";
        }
        Self {
            text: text.into(),
            beginning: beginning.into(),
            compiled: OnceCell::new(),
        }
    }

    /// Whether an expression takes everything cannot be seen; whether it takes what nobody would
    /// ask for, can.
    fn leaves_nothing(&self, ours: &str) -> bool {
        let compile = || {
            RegexBuilder::new(&format!("^(?:{})$", self.text))
                .size_limit(LARGEST_EXPRESSION)
                .build()
                .ok()
        };
        let takes = |expression: &Regex| {
            ["", "/", "/-/~/0.x", "/%41;b=c@d,e"]
                .iter()
                .all(|rest| expression.is_match(&format!("{ours}{rest}")))
        };
        ours.starts_with(&self.beginning)
            && self
                .compiled
                .get_or_init(compile)
                .as_ref()
                .is_some_and(takes)
    }
}

/// Of a `BoolValue`.
fn is_true(message: &[u8]) -> Result<bool, Malformed> {
    let mut value = false;
    for field in wire::fields(message) {
        let field = field?;
        if let (1, Value::Varint(number)) = (field.number, field.value) {
            value = number != 0;
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_leaves_nothing_when_it_takes_all_that_is_below_a_path() {
        let table = [
            (".*", true),
            ("/.*", true),
            (".+", true),
            ("/api(/.*)?", true),
            ("/api/we?b.*", true),
            ("/x*api/.*", true),
            ("/other|/api/.*", true),
            ("(?i)/API/.*", true),
            ("/api/web", false),
            ("/api/web/.*", false),
            ("/api/web/?", false),
            ("/api/web(/[a-z]*)*", false),
            ("/apis/.*", false),
            ("[0-9]+", false),
            ("", false),
            ("(", false),
        ];
        for (text, leaves_nothing) in table {
            let expression = Expression::new(text);
            assert_eq!(
                expression.leaves_nothing("/api/web"),
                leaves_nothing,
                "{text:?}"
            );
        }
    }

    #[test]
    fn an_expression_is_compiled_for_paths_that_begin_like_it_only() {
        let table = [
            ("/users/[0-9]+", "/users/"),
            ("/users?/.*", "/user"),
            ("/ü*", "/"),
            ("/a|/b", ""),
            ("/plain", "/plain"),
            ("\\/a", ""),
        ];
        for (text, beginning) in table {
            let expression = Expression::new(text);
            assert_eq!(expression.beginning, beginning, "{text:?}");
            assert!(!expression.leaves_nothing("/else"));
            assert_eq!(
                expression.compiled.get().is_some(),
                beginning.is_empty() || beginning == "/"
            );
        }
    }
}
