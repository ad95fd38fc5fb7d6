use super::balance::{Backends, Route};
use crate::model::{Forward, HostnamePattern, NamedForward};
use std::{cmp::Reverse, sync::Arc};

/// The routes of a listener that passes bytes on, told apart by server name.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    /// Most specific name first.
    named: Vec<(HostnamePattern, Arc<Route>)>,
    /// For all other names, and for clients that ask for none.
    rest: Option<Arc<Route>>,
}

impl Forwards {
    /// The same route for every name, or none.
    pub(super) fn all(forward: Option<&Forward>, backends: &Backends) -> Self {
        Self {
            named: Vec::new(),
            rest: forward.map(|forward| Arc::new(backends.route(forward))),
        }
    }

    /// Of two for the same name, the first.
    pub(super) fn by_name(forwards: &[NamedForward], backends: &Backends) -> Self {
        let mut ready = Self::default();
        for NamedForward { hostnames, forward } in forwards {
            let route = Arc::new(backends.route(forward));
            if hostnames.is_empty() {
                ready.rest.get_or_insert_with(|| Arc::clone(&route));
            }
            let named = hostnames
                .iter()
                .map(|hostname| (hostname.clone(), Arc::clone(&route)));
            ready.named.extend(named);
        }
        ready
            .named
            .sort_by_key(|(hostname, _)| Reverse(hostname.specificity()));
        ready
    }

    /// The route for a server name; empty when the client asked for none.
    pub(super) fn find(&self, server_name: &str) -> Option<&Arc<Route>> {
        let mut named = self.named.iter();
        named
            .find(|(hostname, _)| hostname.matches(server_name))
            .map(|(_, route)| route)
            .or(self.rest.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn forward(name: &str, hostnames: &[&str]) -> NamedForward {
        NamedForward {
            hostnames: hostnames
                .iter()
                .map(|hostname| HostnamePattern::parse(hostname).unwrap())
                .collect(),
            forward: Forward {
                route: ObjectName::new("default", name),
                backends: Vec::new(),
                proxy_protocol: None,
            },
        }
    }

    #[test]
    fn the_most_specific_hostname_of_all_routes_wins() {
        let forwards = [
            forward("wide", &["*.example.com", "*.org"]),
            forward("exact", &["web.example.com"]),
            forward("narrow", &["*.a.example.com", "b.org"]),
            forward("again", &["web.example.com"]),
        ];
        let named = Forwards::by_name(&forwards, &Backends::default());
        let rest = [&forwards[..], &[forward("rest", &[])]].concat();
        let all = Forwards::by_name(&rest, &Backends::default());
        for (name, expected) in [
            ("web.example.com", Some("default/exact")),
            ("WEB.example.com", Some("default/exact")),
            ("x.example.com", Some("default/wide")),
            ("x.a.example.com", Some("default/narrow")),
            ("b.org", Some("default/narrow")),
            ("c.org", Some("default/wide")),
            ("example.com", None),
            ("", None),
        ] {
            let found = named.find(name).map(|route| route.name.as_str());
            assert_eq!(found, expected, "{name}");
            let found = all.find(name).map(|route| route.name.as_str());
            assert_eq!(found, expected.or(Some("default/rest")), "{name}");
        }
    }
}
