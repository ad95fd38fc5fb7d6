//! What is known of a Gateway to what its proxy is to serve.

use super::{
    Kind,
    gateways::Known,
    listeners::{Listener, Protocol},
    objects::Key,
    routes::Named,
};
use crate::model::{
    AttachedRoute, Backend, Forward, HostnamePattern, HttpListener, HttpRouteKind, NamedForward,
    NodeSpec, Port, RouteId, Snapshot, TcpListener, Termination, TlsListener, TlsMode, TlsRoutes,
    UdpListener,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
};

impl Known<'_> {
    /// What is served: the listeners that are accepted.
    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        let node = self.node().ok()?;
        if !self.candidate.is_served() {
            return None;
        }
        let served: BTreeSet<_> = self.attached.served().collect();
        let resolved = |route: &&Key| self.resolved.get(*route);
        let http_routes = served.iter().filter_map(|route| {
            let http = resolved(route)?.http.clone()?;
            Some((route_id(route), http))
        });
        let backends = served
            .iter()
            .filter_map(resolved)
            .flat_map(|resolved| &resolved.backends)
            .map(|(id, backend)| (id.clone(), self.showing_certificate(backend)));
        Some(Snapshot {
            gateway: self.candidate.name.clone(),
            generation: self.candidate.generation,
            node: NodeSpec {
                name: node.name.clone(),
            },
            ports: self.ports(),
            udp_ports: self.udp_ports(),
            http_options: self.candidate.http_options.clone(),
            http_routes: http_routes.collect(),
            backends: backends.collect(),
        })
    }

    /// A backend, shown the certificate of this Gateway. Without one that can be used, it decides
    /// itself what it thinks of that.
    fn showing_certificate(&self, backend: &Backend) -> Backend {
        let mut backend = backend.clone();
        if let (Some(tls), Some(Ok(certificate))) =
            (&mut backend.tls, &self.candidate.client_certificate)
        {
            tls.certificate = Some(certificate.clone());
        }
        backend
    }

    fn accepted_listeners(&self) -> impl Iterator<Item = &Listener> {
        let listeners = self.candidate.listeners.iter();
        listeners.filter(|listener| listener.is_accepted())
    }

    fn udp_ports(&self) -> BTreeMap<u16, UdpListener> {
        let udp = |listener: &&Listener| matches!(listener.protocol, Some(Protocol::Udp));
        let ports = self.accepted_listeners().filter(udp).map(|listener| {
            let udp = UdpListener {
                name: listener.name.clone(),
                route: self.forward(listener),
            };
            (listener.port, udp)
        });
        ports.collect()
    }

    /// The accepted listeners by port, the most specific hostname first.
    fn ports(&self) -> BTreeMap<u16, Port> {
        let mut ports = BTreeMap::new();
        for listener in self.accepted_listeners() {
            let Some(own) = self.port(listener) else {
                continue;
            };
            match ports.entry(listener.port) {
                Entry::Vacant(place) => drop(place.insert(own)),
                Entry::Occupied(mut there) => match (there.get_mut(), own) {
                    (Port::Http(all), Port::Http(own)) => all.extend(own),
                    (Port::Tls(all), Port::Tls(own)) => all.extend(own),
                    _ => {} // a conflict: neither is accepted
                },
            }
        }
        ports.values_mut().for_each(most_specific_first);
        ports
    }

    /// A port of TCP with one listener.
    fn port(&self, listener: &Listener) -> Option<Port> {
        let name = listener.name.clone();
        let tls = |hostname: &Option<HostnamePattern>, mode| {
            Port::Tls(vec![TlsListener {
                name: listener.name.clone(),
                hostname: hostname.clone(),
                mode,
            }])
        };
        Some(match listener.protocol.as_ref()? {
            Protocol::Udp => return None,
            Protocol::Tcp => Port::Tcp(TcpListener {
                name,
                route: self.forward(listener),
            }),
            Protocol::Passthrough { hostname } => {
                tls(hostname, TlsMode::Passthrough(self.forwards(listener)))
            }
            Protocol::Http { hostname } => Port::Http(vec![HttpListener {
                name,
                hostname: hostname.clone(),
                routes: self.http_routes(listener),
            }]),
            Protocol::Https {
                hostname,
                certificates,
            } => {
                let mode = TlsMode::Terminate(Termination {
                    certificates: certificates.clone(),
                    alpn: vec!["h2".into(), "http/1.1".into()],
                    clients: listener.clients.clone(),
                    routes: TlsRoutes::HttpRoutes(self.http_routes(listener)),
                });
                tls(hostname, mode)
            }
            Protocol::Tls {
                hostname,
                certificates,
                alpn,
            } => {
                let mode = TlsMode::Terminate(Termination {
                    certificates: certificates.clone(),
                    alpn: alpn.clone(),
                    clients: listener.clients.clone(),
                    routes: TlsRoutes::Forwards(self.forwards(listener)),
                });
                tls(hostname, mode)
            }
        })
    }

    /// Where what comes to a listener of bytes goes.
    fn forwards(&self, listener: &Listener) -> Vec<NamedForward> {
        let named = self.attached.forwards.get(&listener.name);
        let forward = |(route, hostnames): &Named| {
            let resolved = self.resolved.get(route);
            let object = self.routes.get(route);
            NamedForward {
                hostnames: hostnames.clone(),
                forward: Forward {
                    route: route.name.clone(),
                    backends: resolved.map_or_else(Vec::new, |resolved| resolved.weighted.clone()),
                    proxy_protocol: object.and_then(|route| route.proxy_protocol),
                },
            }
        };
        named.into_iter().flatten().map(forward).collect()
    }

    /// The route of a listener that tells no names apart.
    fn forward(&self, listener: &Listener) -> Option<Forward> {
        let forwards = self.forwards(listener);
        forwards.into_iter().next().map(|named| named.forward)
    }

    /// The routes of a listener of HTTP, in the order of their precedence.
    fn http_routes(&self, listener: &Listener) -> Vec<AttachedRoute> {
        let attached = self.attached.http.get(&listener.name);
        let attached = attached.into_iter().flatten();
        let route = |(key, hostnames): &Named| AttachedRoute {
            route: route_id(key),
            hostnames: hostnames.clone(),
        };
        attached.map(route).collect()
    }
}

fn most_specific_first(port: &mut Port) {
    let specificity =
        |hostname: Option<&HostnamePattern>| Reverse(hostname.map(HostnamePattern::specificity));
    match port {
        Port::Tcp(_) => {}
        Port::Http(listeners) => listeners.sort_by_key(|l| specificity(l.hostname.as_ref())),
        Port::Tls(listeners) => listeners.sort_by_key(|l| specificity(l.hostname.as_ref())),
    }
}

fn route_id(key: &Key) -> RouteId {
    RouteId {
        kind: match key.kind {
            Kind::GrpcRoute => HttpRouteKind::Grpc,
            _ => HttpRouteKind::Http,
        },
        name: key.name.clone(),
    }
}
