//! What a Gateway serves, from what is known of it.

use super::{
    gateways::Known,
    listeners::{Listener, Protocol},
    objects::{Key, Kind},
    routes::Named,
};
use crate::model::{
    AttachedRoute, Backend, Certificates, Forward, HostnamePattern, HttpListener, HttpRouteKind,
    NamedForward, NodeSpec, Port, Role, RouteId, Snapshot, TcpListener, Termination, TlsListener,
    TlsMode, TlsRoutes, UdpListener,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
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
            role: Role::Ingress,
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
        if let Some(Ok(certificate)) = &self.candidate.client_certificate {
            let members = backend.members.iter_mut().map(|member| &mut member.tls);
            for tls in members.chain([&mut backend.tls]).flatten() {
                tls.certificate = Some(certificate.clone());
            }
        }
        backend
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

    fn udp_ports(&self) -> BTreeMap<u16, UdpListener> {
        let listeners = self.candidate.listeners.iter();
        let accepted = listeners.filter(|listener| listener.is_accepted());
        let udp = accepted.filter(|l| matches!(l.protocol, Some(Protocol::Udp)));
        let ports = udp.map(|listener| {
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
        let listeners = self.candidate.listeners.iter();
        for listener in listeners.filter(|listener| listener.is_accepted()) {
            let Some(port) = self.port(listener) else {
                continue;
            };
            match (ports.get_mut(&listener.port), port) {
                (None, port) => drop(ports.insert(listener.port, port)),
                (Some(Port::Http(there)), Port::Http(more)) => there.extend(more),
                (Some(Port::Tls(there)), Port::Tls(more)) => there.extend(more),
                (Some(_), _) => {} // a conflict: neither is accepted
            }
        }
        ports.values_mut().for_each(most_specific_first);
        ports
    }

    /// What a listener makes of its port; `None`: nothing of TCP.
    fn port(&self, listener: &Listener) -> Option<Port> {
        let name = listener.name.clone();
        let hostname = listener.hostname().cloned();
        let terminate = |certificates: &Certificates, alpn, routes| {
            TlsMode::Terminate(Termination {
                certificates: certificates.clone(),
                alpn,
                clients: listener.clients.clone(),
                routes,
            })
        };
        let mode = match listener.protocol.as_ref()? {
            Protocol::Udp => return None,
            Protocol::Tcp => {
                let route = self.forward(listener);
                return Some(Port::Tcp(TcpListener { name, route }));
            }
            Protocol::Http { .. } => {
                return Some(Port::Http(vec![HttpListener {
                    name,
                    hostname,
                    routes: self.http_routes(listener),
                }]));
            }
            Protocol::Https { certificates, .. } => {
                let alpn = vec!["h2".into(), "http/1.1".into()];
                let routes = TlsRoutes::HttpRoutes(self.http_routes(listener));
                terminate(certificates, alpn, routes)
            }
            Protocol::Tls {
                certificates, alpn, ..
            } => {
                let routes = TlsRoutes::Forwards(self.forwards(listener));
                terminate(certificates, alpn.clone(), routes)
            }
            Protocol::Passthrough { .. } => TlsMode::Passthrough(self.forwards(listener)),
        };
        Some(Port::Tls(vec![TlsListener {
            name,
            hostname,
            mode,
        }]))
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

fn route_id(key: &Key) -> RouteId {
    RouteId {
        kind: match key.kind {
            Kind::GrpcRoute => HttpRouteKind::Grpc,
            _ => HttpRouteKind::Http,
        },
        name: key.name.clone(),
    }
}

/// Those without a hostname come last.
fn most_specific_first(port: &mut Port) {
    let specificity = |hostname: &Option<HostnamePattern>| {
        Reverse(hostname.as_ref().map(HostnamePattern::specificity))
    };
    match port {
        Port::Tcp(_) => {}
        Port::Http(listeners) => listeners.sort_by_key(|of| specificity(&of.hostname)),
        Port::Tls(listeners) => listeners.sort_by_key(|of| specificity(&of.hostname)),
    }
}
