//! Rules of an HTTPRoute, from how they are written to what is served.
//!
//! What a version of tailway does not understand is never passed over: a filter becomes one that
//! answers with status 500, a match leaves out its rule, and the route says why (Gateway API
//! `HTTPRouteFilter`, condition `PartiallyInvalid`).

use super::{durations::duration, routes::BackendRef, status::Finding};
use crate::{
    api::{
        GATEWAY_GROUP, conditions as c,
        gateway_api::httproutes::{
            HttpRouteRules, HttpRouteRulesFilters, HttpRouteRulesFiltersCors,
            HttpRouteRulesFiltersRequestHeaderModifier, HttpRouteRulesFiltersRequestMirror,
            HttpRouteRulesFiltersRequestMirrorBackendRef, HttpRouteRulesFiltersRequestRedirect,
            HttpRouteRulesFiltersRequestRedirectPathType as PathType,
            HttpRouteRulesFiltersRequestRedirectScheme as Scheme,
            HttpRouteRulesFiltersResponseHeaderModifier, HttpRouteRulesFiltersType as FilterType,
            HttpRouteRulesFiltersUrlRewrite, HttpRouteRulesFiltersUrlRewritePathType,
            HttpRouteRulesMatches, HttpRouteRulesMatchesHeadersType as HeaderType,
            HttpRouteRulesMatchesPathType as MatchType,
            HttpRouteRulesMatchesQueryParamsType as QueryType, HttpRouteRulesRetry,
            HttpRouteRulesTimeouts,
        },
    },
    model::{
        BackendId, Cors, HeaderChange, HttpBackend, HttpFilter, HttpMatch, HttpRule, Mirror,
        PathChange, PathMatch, Redirect, Retry, Rewrite, Timeouts, Value, ValueMatch,
    },
};
use regex::Regex;
use std::time::Duration;

/// A reference to a backend, wherever it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reference<'a> {
    pub(super) group: Option<&'a str>,
    pub(super) kind: Option<&'a str>,
    pub(super) namespace: Option<&'a str>,
    pub(super) name: &'a str,
    pub(super) port: Option<i32>,
}

impl Reference<'_> {
    pub(super) fn to_backend_ref(self) -> BackendRef {
        BackendRef {
            group: self.group.map(str::to_owned),
            kind: self.kind.map(str::to_owned),
            namespace: self.namespace.map(str::to_owned),
            name: self.name.to_owned(),
            port: self.port,
            weight: None,
        }
    }
}

/// A rule for all requests, which go nowhere.
pub(super) const EMPTY_RULE: HttpRouteRules = HttpRouteRules {
    backend_refs: None,
    filters: None,
    matches: None,
    name: None,
    retry: None,
    timeouts: None,
};

/// Reads rules; what is wrong with them is kept.
pub(super) struct Reader<'a> {
    /// Finds a backend, or keeps why there is none.
    pub(super) resolve: &'a mut dyn FnMut(Reference<'_>) -> Option<BackendId>,
    /// What else is referred to and not there.
    pub(super) unresolved: Vec<Finding>,
    /// What is wrong with the rule that is read.
    wrong: Vec<String>,
    /// Of the rules that are left out, or answer with errors: their names, and why.
    faulty: Vec<(String, String)>,
}

/// Why rules cannot be accepted at all, and why some of them are left out.
pub(super) fn faults(rules: &[HttpRouteRules]) -> (Option<Finding>, Option<Finding>) {
    if rules.iter().any(is_incompatible) {
        let message = "RequestRedirect and URLRewrite cannot be used together: leave one";
        return (Some(Finding::new(c::INCOMPATIBLE_FILTERS, message)), None);
    }
    let mut resolve = |_: Reference<'_>| None;
    let mut reader = Reader::new(&mut resolve);
    reader.rules(rules);
    let faults = reader.faulty;
    if !faults.is_empty() && faults.len() == rules.len() {
        let told = faults
            .iter()
            .map(|(name, why)| format!("rule {name}: {why}"));
        let message = told.collect::<Vec<_>>().join("; ");
        return (Some(Finding::new(c::UNSUPPORTED_VALUE, message)), None);
    }
    // As the message must begin (Gateway API, condition `PartiallyInvalid`).
    let told = faults
        .iter()
        .map(|(name, why)| format!("Dropped Rule {name}: {why}"));
    let message = told.collect::<Vec<_>>().join("; ");
    let left_out = (!faults.is_empty()).then(|| Finding::new(c::UNSUPPORTED_VALUE, message));
    (None, left_out)
}

fn is_incompatible(rule: &HttpRouteRules) -> bool {
    let own = rule.filters.iter().flatten().map(|filter| &filter.r#type);
    let own: Vec<_> = own.collect();
    let of_backends = rule.backend_refs.iter().flatten().map(|backend| {
        let filters: Option<Vec<HttpRouteRulesFilters>> = super::same(backend.filters.as_ref());
        filters.unwrap_or_default()
    });
    let both = |has: &dyn Fn(FilterType) -> bool| {
        has(FilterType::RequestRedirect) && has(FilterType::UrlRewrite)
    };
    both(&|kind| own.contains(&&kind))
        || of_backends
            .into_iter()
            .any(|filters| both(&|kind| filters.iter().any(|filter| filter.r#type == kind)))
}

/// Answers when a header name or value is none.
const BAD_HEADER: &str = "is no header";

impl<'a> Reader<'a> {
    pub(super) fn new(resolve: &'a mut dyn FnMut(Reference<'_>) -> Option<BackendId>) -> Self {
        Self {
            resolve,
            unresolved: Vec::new(),
            wrong: Vec::new(),
            faulty: Vec::new(),
        }
    }

    pub(super) fn rules(&mut self, rules: &[HttpRouteRules]) -> Vec<HttpRule> {
        let mut read = Vec::new();
        for (at, rule) in rules.iter().enumerate() {
            match self.rule(rule) {
                Ok(rule) => read.push(rule),
                Err(message) => self.wrong.push(message),
            }
            if !self.wrong.is_empty() {
                let why = std::mem::take(&mut self.wrong).join(", ");
                self.faulty.push((name_of(at, rule), why));
            }
        }
        read
    }

    fn rule(&mut self, rule: &HttpRouteRules) -> Result<HttpRule, String> {
        let wanted = rule.matches.iter().flatten().map(matched);
        let mut matches: Vec<_> = wanted.collect::<Result<_, _>>()?;
        if matches.is_empty() {
            matches.push(HttpMatch {
                path: PathMatch::prefix("/"),
                method: None,
                headers: Vec::new(),
                query: Vec::new(),
            });
        }
        let filters = rule.filters.as_deref().unwrap_or_default();
        let backends = rule.backend_refs.iter().flatten().map(|reference| {
            // The same words, of another type.
            let filters: Vec<HttpRouteRulesFilters> =
                super::same(reference.filters.as_ref()).unwrap_or_default();
            HttpBackend {
                weight: reference
                    .weight
                    .map_or(1, |weight| weight.try_into().unwrap_or(0)),
                backend: (self.resolve)(Reference {
                    group: reference.group.as_deref(),
                    kind: reference.kind.as_deref(),
                    namespace: reference.namespace.as_deref(),
                    name: &reference.name,
                    port: reference.port,
                }),
                filters: self.filters(&filters),
            }
        });
        let backends = backends.collect();
        Ok(HttpRule {
            name: rule.name.clone().unwrap_or_default(),
            matches,
            filters: self.filters(filters),
            backends,
            timeouts: timeouts(rule.timeouts.as_ref())?,
            retry: rule.retry.as_ref().map(retry).transpose()?,
        })
    }

    fn filters(&mut self, filters: &[HttpRouteRulesFilters]) -> Vec<HttpFilter> {
        filters.iter().map(|filter| self.filter(filter)).collect()
    }

    fn filter(&mut self, filter: &HttpRouteRulesFilters) -> HttpFilter {
        let read = match filter.r#type {
            FilterType::RequestHeaderModifier => filter
                .request_header_modifier
                .as_ref()
                .map(|change| Ok(HttpFilter::RequestHeaders(request_headers(change)))),
            FilterType::ResponseHeaderModifier => filter
                .response_header_modifier
                .as_ref()
                .map(|change| Ok(HttpFilter::ResponseHeaders(response_headers(change)))),
            FilterType::RequestRedirect => filter
                .request_redirect
                .as_ref()
                .map(|filter| redirect(filter).map(HttpFilter::Redirect)),
            FilterType::UrlRewrite => filter
                .url_rewrite
                .as_ref()
                .map(|filter| Ok(HttpFilter::Rewrite(rewrite(filter)))),
            FilterType::RequestMirror => filter
                .request_mirror
                .as_ref()
                .map(|filter| Ok(HttpFilter::Mirror(self.mirror(filter)))),
            FilterType::Cors => filter
                .cors
                .as_ref()
                .map(|filter| Ok(HttpFilter::Cors(cors(filter)))),
            FilterType::ExtensionRef => Some(match unknown(filter) {
                Some(kind) => Err(format!("there are no filters of type {kind}")),
                None => {
                    self.unresolved.push(extension(filter));
                    Ok(HttpFilter::Broken)
                }
            }),
        };
        let message = match read {
            Some(Ok(filter)) => return filter,
            Some(Err(message)) => message,
            None => format!("a filter of type {:?} says nothing", filter.r#type),
        };
        self.wrong
            .push(format!("{message}, requests get status 500"));
        HttpFilter::Broken
    }

    fn mirror(&mut self, filter: &HttpRouteRulesFiltersRequestMirror) -> Mirror {
        let HttpRouteRulesFiltersRequestMirrorBackendRef {
            group,
            kind,
            name,
            namespace,
            port,
        } = &filter.backend_ref;
        let backend = (self.resolve)(Reference {
            group: group.as_deref(),
            kind: kind.as_deref(),
            namespace: namespace.as_deref(),
            name,
            port: *port,
        });
        let share = |part: i32| u32::try_from(part).unwrap_or(0);
        let (numerator, denominator) = match (&filter.fraction, filter.percent) {
            (Some(fraction), _) => (
                share(fraction.numerator),
                share(fraction.denominator.unwrap_or(100)),
            ),
            (None, Some(percent)) => (share(percent), 100),
            (None, None) => (1, 1),
        };
        Mirror {
            backend,
            numerator,
            denominator,
        }
    }
}

/// The type of a filter that stands for one which is not known.
fn unknown(filter: &HttpRouteRulesFilters) -> Option<&str> {
    let reference = filter.extension_ref.as_ref()?;
    (reference.group == GATEWAY_GROUP).then_some(&reference.kind)
}

/// No kind of filters is known beyond the specification's.
fn extension(filter: &HttpRouteRulesFilters) -> Finding {
    let message = match &filter.extension_ref {
        Some(reference) => format!(
            "there is no filter {} of kind {}: requests get status 500",
            reference.name,
            super::qualified(&reference.kind, &reference.group)
        ),
        None => "an ExtensionRef refers to nothing: requests get status 500".into(),
    };
    Finding::new(c::INVALID_KIND, message)
}

fn name_of(at: usize, rule: &HttpRouteRules) -> String {
    match &rule.name {
        Some(name) => name.clone(),
        None => (at + 1).to_string(),
    }
}

fn matched(wanted: &HttpRouteRulesMatches) -> Result<HttpMatch, String> {
    let path = wanted.path.as_ref();
    let value = path.and_then(|path| path.value.as_deref()).unwrap_or("/");
    let path = match path.and_then(|path| path.r#type.as_ref()) {
        Some(MatchType::Exact) => PathMatch::Exact(value.into()),
        None | Some(MatchType::PathPrefix) => PathMatch::prefix(value),
        Some(MatchType::RegularExpression) => PathMatch::Regex(expression(value)?),
    };
    let header = |wanted: &crate::api::gateway_api::httproutes::HttpRouteRulesMatchesHeaders| {
        let value = match wanted.r#type {
            None | Some(HeaderType::Exact) => Value::Exact(wanted.value.clone()),
            Some(HeaderType::RegularExpression) => Value::Regex(expression(&wanted.value)?),
        };
        let name = wanted.name.to_ascii_lowercase();
        match http::HeaderName::try_from(&name) {
            Ok(_) => Ok(ValueMatch { name, value }),
            Err(_) => Err(format!("{:?} {BAD_HEADER}", wanted.name)),
        }
    };
    let parameter =
        |wanted: &crate::api::gateway_api::httproutes::HttpRouteRulesMatchesQueryParams| {
            let value = match wanted.r#type {
                None | Some(QueryType::Exact) => Value::Exact(wanted.value.clone()),
                Some(QueryType::RegularExpression) => Value::Regex(expression(&wanted.value)?),
            };
            let name = wanted.name.clone();
            Ok::<_, String>(ValueMatch { name, value })
        };
    Ok(HttpMatch {
        path,
        method: super::same(wanted.method.as_ref()),
        headers: first_of_each(wanted.headers.iter().flatten().map(header))?,
        query: first_of_each(wanted.query_params.iter().flatten().map(parameter))?,
    })
}

/// Of several entries of one name the first counts (Gateway API `HTTPRouteMatch.headers`).
fn first_of_each(
    values: impl Iterator<Item = Result<ValueMatch, String>>,
) -> Result<Vec<ValueMatch>, String> {
    let mut kept: Vec<ValueMatch> = Vec::new();
    for value in values {
        let value = value?;
        if !kept.iter().any(|known| known.name == value.name) {
            kept.push(value);
        }
    }
    Ok(kept)
}

fn expression(text: &str) -> Result<String, String> {
    match Regex::new(text) {
        Ok(_) => Ok(text.into()),
        Err(error) => {
            // The lines before the last draw where.
            let error = error.to_string();
            let why = error.lines().next_back().unwrap_or_default();
            let why = why.trim().trim_start_matches("error: ");
            Err(format!("{text:?} is no regular expression: {why}"))
        }
    }
}

fn request_headers(change: &HttpRouteRulesFiltersRequestHeaderModifier) -> HeaderChange {
    HeaderChange {
        set: change
            .set
            .iter()
            .flatten()
            .map(|header| (header.name.clone(), header.value.clone()))
            .collect(),
        add: change
            .add
            .iter()
            .flatten()
            .map(|header| (header.name.clone(), header.value.clone()))
            .collect(),
        remove: change.remove.clone().unwrap_or_default(),
    }
}

fn response_headers(change: &HttpRouteRulesFiltersResponseHeaderModifier) -> HeaderChange {
    let change: Option<HttpRouteRulesFiltersRequestHeaderModifier> = super::same(Some(change));
    change.as_ref().map(request_headers).unwrap_or_default()
}

fn redirect(filter: &HttpRouteRulesFiltersRequestRedirect) -> Result<Redirect, String> {
    let status = filter.status_code.unwrap_or(302);
    let port = filter
        .port
        .map(|port| u16::try_from(port).map_err(|_| format!("{port} is no port to redirect to")));
    Ok(Redirect {
        scheme: filter.scheme.as_ref().map(|scheme| match scheme {
            Scheme::Http => "http".into(),
            Scheme::Https => "https".into(),
        }),
        hostname: filter.hostname.clone(),
        path: filter.path.as_ref().map(|path| match path.r#type {
            PathType::ReplaceFullPath => {
                PathChange::Full(path.replace_full_path.clone().unwrap_or_default())
            }
            PathType::ReplacePrefixMatch => {
                PathChange::Prefix(path.replace_prefix_match.clone().unwrap_or_default())
            }
        }),
        port: port.transpose()?,
        status: u16::try_from(status)
            .ok()
            .filter(|status| matches!(status, 301 | 302 | 303 | 307 | 308))
            .ok_or_else(|| format!("{status} is no status of a redirect"))?,
    })
}

fn rewrite(filter: &HttpRouteRulesFiltersUrlRewrite) -> Rewrite {
    Rewrite {
        hostname: filter.hostname.clone(),
        path: filter.path.as_ref().map(|path| match path.r#type {
            HttpRouteRulesFiltersUrlRewritePathType::ReplaceFullPath => {
                PathChange::Full(path.replace_full_path.clone().unwrap_or_default())
            }
            HttpRouteRulesFiltersUrlRewritePathType::ReplacePrefixMatch => {
                PathChange::Prefix(path.replace_prefix_match.clone().unwrap_or_default())
            }
        }),
    }
}

fn cors(filter: &HttpRouteRulesFiltersCors) -> Cors {
    let list = |names: &Option<Vec<String>>| names.clone().unwrap_or_default();
    Cors {
        allow_origins: list(&filter.allow_origins),
        allow_credentials: filter.allow_credentials.unwrap_or(false),
        allow_methods: list(&filter.allow_methods),
        allow_headers: list(&filter.allow_headers),
        expose_headers: list(&filter.expose_headers),
        max_age: filter
            .max_age
            .and_then(|seconds| seconds.try_into().ok())
            .unwrap_or(5),
    }
}

fn timeouts(timeouts: Option<&HttpRouteRulesTimeouts>) -> Result<Timeouts, String> {
    let limit = |text: Option<&String>| -> Result<Option<Duration>, String> {
        let duration = text.map(|text| duration(text)).transpose()?;
        // Zero is no limit (Gateway API `HTTPRouteTimeouts`).
        Ok(duration.filter(|duration| !duration.is_zero()))
    };
    let Some(timeouts) = timeouts else {
        return Ok(Timeouts::default());
    };
    Ok(Timeouts {
        request: limit(timeouts.request.as_ref())?,
        backend_request: limit(timeouts.backend_request.as_ref())?,
    })
}

fn retry(retry: &HttpRouteRulesRetry) -> Result<Retry, String> {
    let codes = retry.codes.iter().flatten();
    Ok(Retry {
        codes: codes.filter_map(|code| u16::try_from(*code).ok()).collect(),
        attempts: retry
            .attempts
            .map_or(1, |attempts| attempts.try_into().unwrap_or(0)),
        backoff: match &retry.backoff {
            Some(text) => duration(text)?,
            None => DEFAULT_BACKOFF,
        },
    })
}

/// How long to wait before trying again when a route does not say.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
