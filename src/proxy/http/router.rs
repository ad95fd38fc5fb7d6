//! Which rule a request belongs to (Gateway API `HTTPRouteRule.matches`).
//!
//! Hostnames come first, the more specific before the less; then paths: exact ones, regular
//! expressions, and prefixes, the longest first; then the method, and how many headers and query
//! parameters are asked for; then the age of the route, and its order. A GRPCRoute's expressions
//! are for methods, which come after services, its prefixes (`GRPCRouteRule.matches`). All of that is known
//! before the first request, so that finding a rule is a few look-ups, however many there are.

use crate::model::{
    self, AttachedRoute, HostnamePattern, HttpMatch, HttpRouteKind, PathMatch, RouteId,
};
use http::{HeaderMap, HeaderName, Method};
use regex::Regex;
use std::{borrow::Cow, cmp::Reverse, collections::HashMap};

/// The rules of a listener. `R` is what is done with a request.
#[derive(Debug)]
pub struct Router<R> {
    exact: HashMap<String, Paths<R>>,
    /// By suffix.
    wildcard: HashMap<String, Paths<R>>,
    any: Paths<R>,
}

/// The rules of a hostname.
#[derive(Debug)]
struct Paths<R> {
    exact: HashMap<String, Vec<Candidate<R>>>,
    regexes: Vec<(Regex, Vec<Candidate<R>>)>,
    prefixes: HashMap<String, Vec<Candidate<R>>>,
    /// Of gRPC: before the prefix of all paths, and after all others.
    methods: Vec<(Regex, Vec<Candidate<R>>)>,
}

#[derive(Debug)]
struct Candidate<R> {
    method: Option<Method>,
    headers: Vec<(HeaderName, Value)>,
    query: Vec<(String, Value)>,
    rule: R,
}

#[derive(Debug)]
enum Value {
    Exact(String),
    Regex(Regex),
}

/// The rule of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Matched<'a, R> {
    pub rule: &'a R,
    /// Length of the path's prefix that was asked for, to be replaced; `None` when the whole path
    /// was.
    pub prefix: Option<usize>,
}

/// A request, as far as it is matched.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// In lower case, without a port.
    pub host: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
}

/// A rule that cannot be matched. The index lets none through.
#[derive(Debug, thiserror::Error)]
pub enum MatchError {
    #[error("{route}: {text:?} is no regular expression: {error}")]
    Regex {
        route: RouteId,
        text: String,
        error: Box<regex::Error>,
    },
    #[error("{route}: {text:?} is no header name")]
    Header { route: RouteId, text: String },
    #[error("{route}: {text:?} is no method")]
    Method { route: RouteId, text: String },
}

// === impl Router ===

impl<R> Default for Router<R> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            any: Paths::default(),
        }
    }
}

impl<R: Clone> Router<R> {
    /// The rules of `routes`, which come in the order of their precedence. `rules` gives for each
    /// route its rules and what is done with their requests. A match that cannot be is left out,
    /// and told.
    pub fn new<'a>(
        routes: &[AttachedRoute],
        rules: impl Fn(&RouteId) -> Vec<(&'a model::HttpRule, R)>,
    ) -> (Self, Vec<MatchError>) {
        let (mut router, mut errors) = (Self::default(), Vec::new());
        for attached in routes {
            for (rule, target) in rules(&attached.route) {
                for wanted in &rule.matches {
                    if let Err(error) = router.add(attached, wanted, &target) {
                        errors.push(error);
                    }
                }
            }
        }
        router.sort();
        (router, errors)
    }

    fn add(
        &mut self,
        attached: &AttachedRoute,
        wanted: &HttpMatch,
        target: &R,
    ) -> Result<(), MatchError> {
        let route = &attached.route;
        if attached.hostnames.is_empty() {
            return self.any.add(route, wanted, target);
        }
        for hostname in &attached.hostnames {
            let paths = match hostname {
                HostnamePattern::Exact(name) => self.exact.entry(name.clone()),
                HostnamePattern::Wildcard(suffix) => self.wildcard.entry(suffix.clone()),
            };
            paths.or_default().add(route, wanted, target)?;
        }
        Ok(())
    }

    fn sort(&mut self) {
        let named = self.exact.values_mut().chain(self.wildcard.values_mut());
        named.chain([&mut self.any]).for_each(Paths::sort);
    }
}

impl<R> Router<R> {
    /// The rule of a request; `None` when there is none.
    pub fn find(&self, asked: &Asked<'_>) -> Option<Matched<'_, R>> {
        let exact = self.exact.get(asked.host);
        let suffixes = asked.host.match_indices('.');
        let wildcard = suffixes.filter_map(|(dot, _)| self.wildcard.get(&asked.host[dot + 1..]));
        let mut paths = exact.into_iter().chain(wildcard).chain([&self.any]);
        paths.find_map(|paths| paths.find(asked))
    }
}

// === impl Paths ===

impl<R> Default for Paths<R> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            regexes: Vec::new(),
            prefixes: HashMap::new(),
            methods: Vec::new(),
        }
    }
}

impl<R: Clone> Paths<R> {
    fn add(&mut self, route: &RouteId, wanted: &HttpMatch, rule: &R) -> Result<(), MatchError> {
        let candidate = Candidate::new(route, wanted, rule)?;
        let candidates = match &wanted.path {
            PathMatch::Exact(path) => self.exact.entry(path.clone()).or_default(),
            PathMatch::Prefix(prefix) => self.prefixes.entry(prefix.clone()).or_default(),
            PathMatch::Regex(text) => {
                let regex = whole(route, text)?;
                let regexes = match route.kind {
                    HttpRouteKind::Http => &mut self.regexes,
                    HttpRouteKind::Grpc => &mut self.methods,
                };
                let mut known = regexes.iter();
                let known = known.position(|(known, _)| known.as_str() == regex.as_str());
                let index = known.unwrap_or_else(|| {
                    regexes.push((regex, Vec::new()));
                    regexes.len() - 1
                });
                &mut regexes[index].1
            }
        };
        candidates.push(candidate);
        Ok(())
    }

    fn sort(&mut self) {
        let regexes = self.regexes.iter_mut().chain(&mut self.methods);
        let regexes = regexes.map(|(_, candidates)| candidates);
        let others = self.exact.values_mut().chain(self.prefixes.values_mut());
        for candidates in others.chain(regexes) {
            candidates.sort_by_key(Candidate::precedence);
        }
        // Longer ones tend to say more; the specification leaves their order open.
        for regexes in [&mut self.regexes, &mut self.methods] {
            regexes.sort_by_key(|(regex, _)| Reverse(regex.as_str().len()));
        }
    }
}

impl<R> Paths<R> {
    fn find(&self, asked: &Asked<'_>) -> Option<Matched<'_, R>> {
        let whole = |rule| Matched { rule, prefix: None };
        let exact = self.exact.get(asked.path);
        if let Some(rule) = exact.and_then(|candidates| first(candidates, asked)) {
            return Some(whole(rule));
        }
        if let Some(rule) = fitting(&self.regexes, asked) {
            return Some(whole(rule));
        }
        if self.prefixes.is_empty() && self.methods.is_empty() {
            return None;
        }
        segments(asked.path).find_map(|prefix| {
            let method = prefix.is_empty().then(|| fitting(&self.methods, asked));
            if let Some(rule) = method.flatten() {
                return Some(whole(rule));
            }
            let rule = first(self.prefixes.get(prefix)?, asked)?;
            Some(Matched {
                rule,
                prefix: Some(prefix.len()),
            })
        })
    }
}

fn fitting<'a, R>(regexes: &'a [(Regex, Vec<Candidate<R>>)], asked: &Asked<'_>) -> Option<&'a R> {
    regexes.iter().find_map(|(regex, candidates)| {
        regex
            .is_match(asked.path)
            .then(|| first(candidates, asked))?
    })
}

/// The prefixes of a path by whole segments, longest first: `/a/b`, `/a`, and the empty one.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    let whole = path.trim_end_matches('/');
    let parents = whole.rmatch_indices('/').map(|(slash, _)| &whole[..slash]);
    std::iter::once(whole).chain(parents)
}

fn first<'a, R>(candidates: &'a [Candidate<R>], asked: &Asked<'_>) -> Option<&'a R> {
    let mut candidates = candidates.iter();
    let candidate = candidates.find(|candidate| candidate.matches(asked))?;
    Some(&candidate.rule)
}

// === impl Candidate ===

impl<R> Candidate<R> {
    fn new(route: &RouteId, wanted: &HttpMatch, rule: &R) -> Result<Self, MatchError>
    where
        R: Clone,
    {
        let method = wanted.method.as_ref().map(|text| {
            Method::from_bytes(text.as_bytes()).map_err(|_| MatchError::Method {
                route: route.clone(),
                text: text.clone(),
            })
        });
        let header = |wanted: &model::ValueMatch| {
            let name = HeaderName::try_from(&wanted.name).map_err(|_| MatchError::Header {
                route: route.clone(),
                text: wanted.name.clone(),
            })?;
            Ok((name, Value::new(route, &wanted.value)?))
        };
        let query = |wanted: &model::ValueMatch| {
            Ok((wanted.name.clone(), Value::new(route, &wanted.value)?))
        };
        Ok(Self {
            method: method.transpose()?,
            headers: wanted
                .headers
                .iter()
                .map(header)
                .collect::<Result<_, _>>()?,
            query: wanted.query.iter().map(query).collect::<Result<_, _>>()?,
            rule: rule.clone(),
        })
    }

    fn precedence(&self) -> Reverse<(bool, usize, usize)> {
        Reverse((self.method.is_some(), self.headers.len(), self.query.len()))
    }

    fn matches(&self, asked: &Asked<'_>) -> bool {
        self.method
            .as_ref()
            .is_none_or(|method| method == asked.method)
            && self.headers.iter().all(|(name, value)| {
                header(asked.headers, name).is_some_and(|text| value.matches(&text))
            })
            && self.query.iter().all(|(name, value)| {
                parameter(asked.query, name).is_some_and(|text| value.matches(&text))
            })
    }
}

/// The value of a header; several fields of a name are one with commas (RFC 9110 §5.3).
fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut values = headers.get_all(name).iter();
    let first = String::from_utf8_lossy(values.next()?.as_bytes());
    Some(values.fold(first, |all, value| {
        Cow::Owned(format!(
            "{all},{}",
            String::from_utf8_lossy(value.as_bytes())
        ))
    }))
}

/// The first value of a query parameter, decoded.
fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key) == name).then(|| decoded(value))
    })
}

/// A part of a query without its percent-encoding; `+` is a space, as forms have it.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let spaced = text.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy();
    Cow::Owned(decoded.into_owned())
}

// === impl Value ===

impl Value {
    fn new(route: &RouteId, value: &model::Value) -> Result<Self, MatchError> {
        Ok(match value {
            model::Value::Exact(text) => Self::Exact(text.clone()),
            model::Value::Regex(text) => Self::Regex(whole(route, text)?),
        })
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted == text,
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// A regular expression of a whole text.
fn whole(route: &RouteId, text: &str) -> Result<Regex, MatchError> {
    Regex::new(&format!("^(?:{text})$")).map_err(|error| MatchError::Regex {
        route: route.clone(),
        text: text.into(),
        error: Box::new(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HttpRule, ObjectName};

    /// The rule, by its name, that a call has when there is one for each of these paths.
    fn called(kind: HttpRouteKind, path: &str) -> Option<String> {
        let rule = |name: &str, path| HttpRule {
            name: name.into(),
            matches: vec![HttpMatch {
                path,
                method: None,
                headers: Vec::new(),
                query: Vec::new(),
            }],
            ..HttpRule::default()
        };
        let rules = [
            rule("all", PathMatch::prefix("/")),
            rule("method", PathMatch::Regex("/[^/]+/Get".into())),
            rule("service", PathMatch::prefix("/a.B")),
            rule("both", PathMatch::Exact("/a.B/Set".into())),
        ];
        let attached = AttachedRoute {
            route: RouteId {
                kind,
                name: ObjectName::new("default", "route"),
            },
            hostnames: Vec::new(),
        };
        let (router, errors) = Router::new(&[attached], |_| {
            rules.iter().map(|rule| (rule, rule.name.clone())).collect()
        });
        assert!(errors.is_empty(), "{errors:?}");
        let asked = Asked {
            host: "example.com",
            path,
            query: "",
            method: &Method::POST,
            headers: &HeaderMap::new(),
        };
        router.find(&asked).map(|matched| matched.rule.clone())
    }

    #[test]
    fn of_grpc_a_service_says_more_than_a_method_and_both_most() {
        for (path, expected) in [
            ("/a.B/Set", "both"),
            ("/a.B/Get", "service"),
            ("/a.C/Get", "method"),
            ("/a.C/Set", "all"),
        ] {
            let rule = called(HttpRouteKind::Grpc, path);
            assert_eq!(rule.as_deref(), Some(expected), "{path}");
        }
        let rule = called(HttpRouteKind::Http, "/a.B/Get");
        assert_eq!(rule.as_deref(), Some("method"));
    }
}
