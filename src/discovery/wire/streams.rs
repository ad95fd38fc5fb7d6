//! The parts of a Snapshot that concern listeners of bytes and datagrams.

use super::{
    Malformed, ReadCertificates,
    backends::{authorities_in, authorities_out, backend_id_in, backend_id_out},
    certificate_id, certificate_of, http, name_in, name_out, number_in,
};
use crate::{
    discovery::proto::{self, port::Protocol, termination::Routes, tls_listener::Mode},
    model::{
        Certificates, ClientValidation, Forward, HostnamePattern, NamedForward, Port,
        ProxyProtocol, TcpListener, Termination, TlsListener, TlsMode, TlsRoutes, UdpListener,
        WeightedBackend,
    },
};

// === to the wire ===

pub(super) fn tcp_out(listener: &TcpListener) -> proto::TcpListener {
    proto::TcpListener {
        name: listener.name.clone(),
        route: listener.route.as_ref().map(forward_out),
    }
}

pub(super) fn udp_out(listener: &UdpListener) -> proto::UdpListener {
    proto::UdpListener {
        name: listener.name.clone(),
        route: listener.route.as_ref().map(forward_out),
    }
}

pub(super) fn tls_out(listener: &TlsListener) -> proto::TlsListener {
    let mode = match &listener.mode {
        TlsMode::Terminate(termination) => Mode::Terminate(termination_out(termination)),
        TlsMode::Passthrough(forwards) => Mode::Passthrough(named_out(forwards)),
    };
    proto::TlsListener {
        name: listener.name.clone(),
        hostname: listener.hostname.as_ref().map(ToString::to_string),
        mode: Some(mode),
    }
}

fn termination_out(termination: &Termination) -> proto::Termination {
    let Certificates { tailnet, secrets } = &termination.certificates;
    let routes = match &termination.routes {
        TlsRoutes::Forwards(forwards) => Routes::Forwards(named_out(forwards)),
        TlsRoutes::HttpRoutes(routes) => Routes::Http(http::attached_out(routes)),
    };
    let clients = termination.clients.as_ref();
    proto::Termination {
        tailnet_certificate: *tailnet,
        certificates: secrets.iter().map(certificate_id).collect(),
        alpn: termination.alpn.clone(),
        clients: clients.map(|clients| proto::ClientValidation {
            authorities: authorities_out(&clients.authorities),
            optional: clients.optional,
        }),
        routes: Some(routes),
    }
}

fn named_out(forwards: &[NamedForward]) -> proto::NamedForwards {
    let forwards = forwards.iter().map(|named| proto::NamedForward {
        hostnames: named.hostnames.iter().map(ToString::to_string).collect(),
        forward: Some(forward_out(&named.forward)),
    });
    proto::NamedForwards {
        forwards: forwards.collect(),
    }
}

fn forward_out(forward: &Forward) -> proto::Forward {
    let backends = forward.backends.iter().map(|one| proto::WeightedBackend {
        weight: one.weight,
        backend: one.backend.as_ref().map(backend_id_out),
    });
    let proxy_protocol = match forward.proxy_protocol {
        None => proto::ProxyProtocol::None,
        Some(ProxyProtocol::V1) => proto::ProxyProtocol::V1,
        Some(ProxyProtocol::V2) => proto::ProxyProtocol::V2,
    };
    proto::Forward {
        route: Some(name_out(&forward.route)),
        backends: backends.collect(),
        proxy_protocol: proxy_protocol.into(),
    }
}

// === from the wire ===

pub(super) fn port_in(
    message: &proto::Port,
    certificates: &ReadCertificates,
) -> Result<(u16, Port), Malformed> {
    let port = match &message.protocol {
        None => return Err(Malformed::Missing("the protocol")),
        Some(Protocol::Tcp(listener)) => Port::Tcp(TcpListener {
            name: listener.name.clone(),
            route: listener.route.as_ref().map(forward_in).transpose()?,
        }),
        Some(Protocol::Http(listeners)) => Port::Http(http::listeners_in(listeners)?),
        Some(Protocol::Tls(listeners)) => Port::Tls(
            listeners
                .listeners
                .iter()
                .map(|listener| tls_in(listener, certificates))
                .collect::<Result<_, _>>()?,
        ),
    };
    Ok((number_in(message.number)?, port))
}

pub(super) fn udp_in(message: &proto::UdpPort) -> Result<(u16, UdpListener), Malformed> {
    let listener = message.listener.as_ref();
    let listener = listener.ok_or(Malformed::Missing("the listener"))?;
    let listener = UdpListener {
        name: listener.name.clone(),
        route: listener.route.as_ref().map(forward_in).transpose()?,
    };
    Ok((number_in(message.number)?, listener))
}

fn tls_in(
    message: &proto::TlsListener,
    certificates: &ReadCertificates,
) -> Result<TlsListener, Malformed> {
    let hostname = message.hostname.as_deref().map(HostnamePattern::parse);
    let mode = match &message.mode {
        None => return Err(Malformed::Missing("the mode")),
        Some(Mode::Terminate(message)) => {
            TlsMode::Terminate(termination_in(message, certificates)?)
        }
        Some(Mode::Passthrough(forwards)) => TlsMode::Passthrough(named_in(forwards)?),
    };
    Ok(TlsListener {
        name: message.name.clone(),
        hostname: hostname.transpose()?,
        mode,
    })
}

fn termination_in(
    message: &proto::Termination,
    certificates: &ReadCertificates,
) -> Result<Termination, Malformed> {
    let routes = match &message.routes {
        None => return Err(Malformed::Missing("the routes")),
        Some(Routes::Forwards(forwards)) => TlsRoutes::Forwards(named_in(forwards)?),
        Some(Routes::Http(routes)) => TlsRoutes::HttpRoutes(http::attached_in(Some(routes))?),
    };
    let clients = message.clients.as_ref().map(|clients| {
        Ok::<_, Malformed>(ClientValidation {
            authorities: authorities_in(&clients.authorities)?,
            optional: clients.optional,
        })
    });
    let ids = message.certificates.iter();
    let secrets = ids.map(|id| certificate_of(id, certificates));
    Ok(Termination {
        certificates: Certificates {
            tailnet: message.tailnet_certificate,
            secrets: secrets.collect::<Result<_, _>>()?,
        },
        alpn: message.alpn.clone(),
        clients: clients.transpose()?,
        routes,
    })
}

fn named_in(message: &proto::NamedForwards) -> Result<Vec<NamedForward>, Malformed> {
    let named = |message: &proto::NamedForward| {
        let hostnames = message.hostnames.iter();
        let hostnames = hostnames.map(|text| HostnamePattern::parse(text));
        let forward = message.forward.as_ref();
        Ok(NamedForward {
            hostnames: hostnames.collect::<Result<_, _>>()?,
            forward: forward_in(forward.ok_or(Malformed::Missing("the backends"))?)?,
        })
    };
    message.forwards.iter().map(named).collect()
}

fn forward_in(message: &proto::Forward) -> Result<Forward, Malformed> {
    let backends = message.backends.iter().map(|one| {
        let backend = one.backend.as_ref().map(backend_id_in).transpose()?;
        Ok(WeightedBackend {
            weight: one.weight,
            backend,
        })
    });
    let proxy_protocol = match proto::ProxyProtocol::try_from(message.proxy_protocol) {
        Ok(proto::ProxyProtocol::None) => None,
        Ok(proto::ProxyProtocol::V1) => Some(ProxyProtocol::V1),
        Ok(proto::ProxyProtocol::V2) => Some(ProxyProtocol::V2),
        Err(_) => return Err(Malformed::Missing("the PROXY protocol")),
    };
    Ok(Forward {
        route: name_in(message.route.as_ref())?,
        backends: backends.collect::<Result<_, Malformed>>()?,
        proxy_protocol,
    })
}
