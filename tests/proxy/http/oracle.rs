//! The router against one that takes the specification's precedence word by word, and looks at
//! every match of every rule.

use super::scene::{attached, is, looks_like};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::cmp::Reverse;
use tailway::{
    model::{AttachedRoute, HostnamePattern, HttpMatch, HttpRule, PathMatch, Value, ValueMatch},
    proxy::http::{Asked, Router},
};

/// A rule, by the places of its route and of itself.
type Place = (usize, usize);

#[derive(Clone, Debug)]
struct Request {
    host: String,
    path: String,
    query: Vec<(String, String)>,
    method: Method,
    headers: Vec<(String, String)>,
}

// === the specification ===

/// What decides between matches that fit, the greatest first: the hostname's characters when it is
/// none of a wildcard, its characters, an exact path, the characters of a prefix, a method, how
/// many headers, how many query parameters; then the older route and the earlier rule.
type Rank = (
    usize,
    usize,
    bool,
    usize,
    bool,
    usize,
    usize,
    Reverse<Place>,
);

fn expected(
    routes: &[(AttachedRoute, Vec<HttpRule>)],
    request: &Request,
) -> Option<(Place, Option<usize>)> {
    let mut fitting: Vec<(Rank, Option<usize>)> = Vec::new();
    for (at, (route, rules)) in routes.iter().enumerate() {
        let Some((exact, length)) = hostname(&route.hostnames, &request.host) else {
            continue;
        };
        for (number, rule) in rules.iter().enumerate() {
            for wanted in rule.matches.iter().filter(|wanted| fits(wanted, request)) {
                let (is_exact, prefix) = match &wanted.path {
                    PathMatch::Exact(_) => (true, None),
                    PathMatch::Prefix(prefix) => (false, Some(prefix.len())),
                    PathMatch::Regex(_) => unreachable!("their order is left open"),
                };
                let rank = (
                    exact,
                    length,
                    is_exact,
                    prefix.unwrap_or_default(),
                    wanted.method.is_some(),
                    wanted.headers.len(),
                    wanted.query.len(),
                    Reverse((at, number)),
                );
                fitting.push((rank, prefix));
            }
        }
    }
    let (rank, prefix) = fitting.into_iter().max_by_key(|(rank, _)| *rank)?;
    Some((rank.7.0, prefix))
}

/// The characters of the best hostname, as an exact one and as any; `None` when none fits.
fn hostname(hostnames: &[HostnamePattern], host: &str) -> Option<(usize, usize)> {
    if hostnames.is_empty() {
        return Some((0, 0));
    }
    let fitting = hostnames.iter().filter_map(|hostname| match hostname {
        HostnamePattern::Exact(name) => (name == host).then_some((name.len(), name.len())),
        HostnamePattern::Wildcard(suffix) => {
            let fits = host.ends_with(&format!(".{suffix}"));
            fits.then_some((0, suffix.len() + 2))
        }
    });
    fitting.max()
}

fn fits(wanted: &HttpMatch, request: &Request) -> bool {
    let path = match &wanted.path {
        PathMatch::Exact(path) => *path == request.path,
        PathMatch::Prefix(prefix) => {
            request.path == *prefix || request.path.starts_with(&format!("{prefix}/"))
        }
        PathMatch::Regex(_) => false,
    };
    let method = wanted.method.as_ref();
    let headers = wanted.headers.iter().all(|wanted| {
        let values = request
            .headers
            .iter()
            .filter(|(name, _)| *name == wanted.name);
        let values: Vec<_> = values.map(|(_, value)| value.as_str()).collect();
        !values.is_empty() && fits_value(wanted, &values.join(","))
    });
    let query = wanted.query.iter().all(|wanted| {
        let mut values = request.query.iter();
        let value = values.find(|(name, _)| *name == wanted.name);
        value.is_some_and(|(_, value)| fits_value(wanted, value))
    });
    path && method.is_none_or(|method| method == request.method.as_str()) && headers && query
}

fn fits_value(wanted: &ValueMatch, value: &str) -> bool {
    match &wanted.value {
        Value::Exact(text) => text == value,
        // The only one that is made below.
        Value::Regex(_) => value.len() == 1 && value.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

// === what is tried ===

const HOSTS: [&str; 5] = [
    "a.example",
    "b.a.example",
    "c.b.a.example",
    "example",
    "b.example",
];
const HOSTNAMES: [&str; 5] = [
    "a.example",
    "b.a.example",
    "*.example",
    "*.a.example",
    "b.example",
];

fn paths() -> impl Strategy<Value = String> {
    let segments = vec(select(vec!["a", "b", "ab"]), 0..4);
    (segments, any::<bool>()).prop_map(|(segments, slash)| {
        let path = format!("/{}", segments.join("/"));
        match slash && path.len() > 1 {
            true => format!("{path}/"),
            false => path,
        }
    })
}

fn values(names: [&'static str; 2]) -> impl Strategy<Value = Vec<ValueMatch>> {
    let value = prop_oneof![
        select(vec!["1", "2", "x", "1,2"]).prop_map(Some),
        Just(None)
    ];
    let wanted = |name| {
        option::of(value.clone().prop_map(move |value| match value {
            Some(value) => is(name, value),
            None => looks_like(name, "[0-9]"),
        }))
    };
    (wanted(names[0]), wanted(names[1])).prop_map(|(one, two)| one.into_iter().chain(two).collect())
}

fn matches() -> impl Strategy<Value = HttpMatch> {
    let path = prop_oneof![
        paths().prop_map(PathMatch::Exact),
        paths().prop_map(|path| PathMatch::prefix(&path)),
    ];
    let method = option::of(select(vec!["GET".to_owned(), "POST".to_owned()]));
    (
        path,
        method,
        values(["x-one", "x-two"]),
        values(["one", "two"]),
    )
        .prop_map(|(path, method, headers, query)| HttpMatch {
            path,
            method,
            headers,
            query,
        })
}

fn routes() -> impl Strategy<Value = Vec<(AttachedRoute, Vec<HttpRule>)>> {
    let rules = vec(vec(matches(), 1..4), 1..4).prop_map(|rules| {
        let rule = |matches| HttpRule {
            matches,
            ..HttpRule::default()
        };
        rules.into_iter().map(rule).collect::<Vec<_>>()
    });
    let hostnames = proptest::sample::subsequence(HOSTNAMES.to_vec(), 0..3);
    vec((hostnames, rules), 1..5).prop_map(|routes| {
        let routes = routes.into_iter().enumerate();
        routes
            .map(|(at, (hostnames, rules))| (attached(&at.to_string(), &hostnames), rules))
            .collect()
    })
}

fn requests() -> impl Strategy<Value = Request> {
    let pairs = |names: [&'static str; 2]| {
        let pair = (select(names.to_vec()), select(vec!["1", "2", "x"]));
        vec(pair, 0..4).prop_map(|pairs| {
            let owned = pairs.into_iter();
            owned
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect::<Vec<_>>()
        })
    };
    let method = select(vec![Method::GET, Method::POST]);
    let (query, headers) = (pairs(["one", "two"]), pairs(["x-one", "x-two"]));
    (select(HOSTS.to_vec()), paths(), query, method, headers).prop_map(
        |(host, path, query, method, headers)| Request {
            host: host.to_owned(),
            path,
            query,
            method,
            headers,
        },
    )
}

fn router(routes: &[(AttachedRoute, Vec<HttpRule>)]) -> Router<Place> {
    let attached: Vec<_> = routes.iter().map(|(route, _)| route.clone()).collect();
    let (router, errors) = Router::new(&attached, |id| {
        let mut places = attached.iter();
        let at = places.position(|route| route.route == *id).unwrap();
        let rules = routes[at].1.iter().enumerate();
        rules.map(|(number, rule)| (rule, (at, number))).collect()
    });
    assert!(errors.is_empty(), "{errors:?}");
    router
}

fn found(router: &Router<Place>, request: &Request) -> Option<(Place, Option<usize>)> {
    let headers: HeaderMap = request
        .headers
        .iter()
        .map(|(name, value)| {
            let name = HeaderName::try_from(name).unwrap();
            (name, HeaderValue::try_from(value).unwrap())
        })
        .fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        });
    let query: Vec<_> = request
        .query
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let matched = router.find(&Asked {
        host: &request.host,
        path: &request.path,
        query: &query.join("&"),
        method: &request.method,
        headers: &headers,
    })?;
    Some((*matched.rule, matched.prefix))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_finds_the_rule_that_the_specification_gives_it(
        routes in routes(),
        requests in vec(requests(), 1..20),
    ) {
        let router = router(&routes);
        for request in requests {
            prop_assert_eq!(found(&router, &request), expected(&routes, &request), "{:?}", request);
        }
    }
}
