//! The parts of a Snapshot that concern backends.

use super::{
    Malformed, ReadCertificates, certificate_id, certificate_of, name_in, name_out, number_in,
};
use crate::{
    discovery::proto::{
        self, backend_tls, endpoint::Host, health_check::Probe as ProbeMessage, subject_name,
    },
    model::{
        Authorities, Backend, BackendId, BackendKind, BackendProtocol, BackendTls, Endpoint,
        HealthCheck, Member, Probe, SubjectName, Transport, Trust,
    },
};
use rustls::pki_types::CertificateDer;
use std::{net::IpAddr, time::Duration};

// === to the wire ===

pub(super) fn backend_id_out(id: &BackendId) -> proto::BackendId {
    proto::BackendId {
        object: Some(name_out(&id.object)),
        port: id.port.into(),
        udp: id.transport == Transport::Udp,
        kind: match id.kind {
            BackendKind::Service => proto::BackendKind::Service,
            BackendKind::Endpoints => proto::BackendKind::Endpoints,
        }
        .into(),
    }
}

pub(super) fn backend_out(id: &BackendId, backend: &Backend) -> proto::Backend {
    let protocol = match backend.protocol {
        BackendProtocol::Http1 => proto::BackendProtocol::Http1,
        BackendProtocol::H2c => proto::BackendProtocol::H2c,
    };
    proto::Backend {
        id: Some(backend_id_out(id)),
        protocol: protocol.into(),
        tls: backend.tls.as_ref().map(tls_out),
        endpoints: backend.endpoints.iter().map(endpoint_out).collect(),
        members: backend.members.iter().map(member_out).collect(),
    }
}

fn member_out(member: &Member) -> proto::Member {
    proto::Member {
        name: member.name.clone(),
        endpoint: Some(endpoint_out(&member.endpoint)),
        weight: member.weight,
        tls: member.tls.as_ref().map(tls_out),
        check: member.check.as_ref().map(check_out),
    }
}

fn check_out(check: &HealthCheck) -> proto::HealthCheck {
    let probe = match &check.probe {
        Probe::Http { path, host } => ProbeMessage::Http(proto::HttpProbe {
            path: path.clone(),
            host: host.clone(),
        }),
        Probe::Tcp => ProbeMessage::Tcp(proto::TcpProbe {}),
        Probe::Udp => ProbeMessage::Udp(proto::UdpProbe {}),
    };
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    proto::HealthCheck {
        probe: Some(probe),
        interval_milliseconds: milliseconds(check.interval),
        timeout_milliseconds: milliseconds(check.timeout),
        healthy_threshold: check.healthy_threshold,
        unhealthy_threshold: check.unhealthy_threshold,
    }
}

fn tls_out(tls: &BackendTls) -> proto::BackendTls {
    let trust = match &tls.trust {
        Trust::System => backend_tls::Trust::System(proto::SystemTrust {}),
        Trust::Authorities(authorities) => backend_tls::Trust::Authorities(proto::Authorities {
            certificates: authorities_out(authorities),
        }),
        Trust::Anybody => backend_tls::Trust::Anybody(proto::AnybodyTrusted {}),
    };
    let name = |name: &SubjectName| proto::SubjectName {
        name: Some(match name {
            SubjectName::Dns(name) => subject_name::Name::Dns(name.clone()),
            SubjectName::Uri(uri) => subject_name::Name::Uri(uri.clone()),
        }),
    };
    proto::BackendTls {
        hostname: tls.hostname.clone(),
        trust: Some(trust),
        names: tls.names.iter().map(name).collect(),
        certificate: tls.certificate.as_ref().map(certificate_id),
    }
}

pub(super) fn authorities_out(authorities: &Authorities) -> Vec<Vec<u8>> {
    let certificates = authorities.certificates().iter();
    certificates.map(|der| der.to_vec()).collect()
}

fn endpoint_out(endpoint: &Endpoint) -> proto::Endpoint {
    let (host, port) = match endpoint {
        Endpoint::Address(IpAddr::V4(ip), port) => (Host::Address(ip.octets().into()), *port),
        Endpoint::Address(IpAddr::V6(ip), port) => (Host::Address(ip.octets().into()), *port),
        Endpoint::Name(name, port) => (Host::Name(name.clone()), *port),
        Endpoint::Tailnet(host, port) => (Host::Tailnet(host.clone()), *port),
    };
    proto::Endpoint {
        host: Some(host),
        port: port.into(),
    }
}

// === from the wire ===

pub(super) fn backend_id_in(message: &proto::BackendId) -> Result<BackendId, Malformed> {
    Ok(BackendId {
        kind: match proto::BackendKind::try_from(message.kind) {
            Ok(proto::BackendKind::Service) => BackendKind::Service,
            Ok(proto::BackendKind::Endpoints) => BackendKind::Endpoints,
            Err(_) => return Err(Malformed::Missing("the kind of a backend")),
        },
        object: name_in(message.object.as_ref())?,
        port: number_in(message.port)?,
        transport: match message.udp {
            true => Transport::Udp,
            false => Transport::Tcp,
        },
    })
}

pub(super) fn backend_in(
    message: &proto::Backend,
    certificates: &ReadCertificates,
) -> Result<(BackendId, Backend), Malformed> {
    let id = message.id.as_ref().ok_or(Malformed::Missing("the id"))?;
    let endpoints = message.endpoints.iter().map(endpoint_in);
    let protocol = match proto::BackendProtocol::try_from(message.protocol) {
        Ok(proto::BackendProtocol::Http1) => BackendProtocol::Http1,
        Ok(proto::BackendProtocol::H2c) => BackendProtocol::H2c,
        Err(_) => return Err(Malformed::Missing("the protocol")),
    };
    let tls = message.tls.as_ref().map(|tls| tls_in(tls, certificates));
    let members = message.members.iter();
    let members = members.map(|member| member_in(member, certificates));
    let backend = Backend {
        protocol,
        tls: tls.transpose()?,
        endpoints: endpoints.collect::<Result<_, _>>()?,
        members: members.collect::<Result<_, _>>()?,
    };
    Ok((backend_id_in(id)?, backend))
}

fn member_in(
    message: &proto::Member,
    certificates: &ReadCertificates,
) -> Result<Member, Malformed> {
    let endpoint = message.endpoint.as_ref();
    let endpoint = endpoint.ok_or(Malformed::Missing("the endpoint"))?;
    let tls = message.tls.as_ref().map(|tls| tls_in(tls, certificates));
    Ok(Member {
        name: message.name.clone(),
        endpoint: endpoint_in(endpoint)?,
        weight: message.weight,
        tls: tls.transpose()?,
        check: message.check.as_ref().map(check_in).transpose()?,
    })
}

fn check_in(message: &proto::HealthCheck) -> Result<HealthCheck, Malformed> {
    let probe = match &message.probe {
        None => return Err(Malformed::Missing("what is tried")),
        Some(ProbeMessage::Http(http)) => Probe::Http {
            path: http.path.clone(),
            host: http.host.clone(),
        },
        Some(ProbeMessage::Tcp(_)) => Probe::Tcp,
        Some(ProbeMessage::Udp(_)) => Probe::Udp,
    };
    Ok(HealthCheck {
        probe,
        interval: Duration::from_millis(message.interval_milliseconds),
        timeout: Duration::from_millis(message.timeout_milliseconds),
        healthy_threshold: message.healthy_threshold,
        unhealthy_threshold: message.unhealthy_threshold,
    })
}

fn tls_in(
    message: &proto::BackendTls,
    certificates: &ReadCertificates,
) -> Result<BackendTls, Malformed> {
    let trust = match &message.trust {
        None => return Err(Malformed::Missing("whom to trust")),
        Some(backend_tls::Trust::System(_)) => Trust::System,
        Some(backend_tls::Trust::Anybody(_)) => Trust::Anybody,
        Some(backend_tls::Trust::Authorities(list)) => {
            Trust::Authorities(authorities_in(&list.certificates)?)
        }
    };
    let name = |message: &proto::SubjectName| match &message.name {
        None => Err(Malformed::Missing("a name")),
        Some(subject_name::Name::Dns(name)) => Ok(SubjectName::Dns(name.clone())),
        Some(subject_name::Name::Uri(uri)) => Ok(SubjectName::Uri(uri.clone())),
    };
    let certificate = message.certificate.as_deref();
    let certificate = certificate.map(|id| certificate_of(id, certificates));
    Ok(BackendTls {
        hostname: message.hostname.clone(),
        trust,
        names: message.names.iter().map(name).collect::<Result<_, _>>()?,
        certificate: certificate.transpose()?,
    })
}

pub(super) fn authorities_in(certificates: &[Vec<u8>]) -> Result<Authorities, Malformed> {
    let certificates = certificates.iter().cloned().map(CertificateDer::from);
    Ok(Authorities::from_der(certificates.collect())?)
}

fn endpoint_in(message: &proto::Endpoint) -> Result<Endpoint, Malformed> {
    let port = number_in(message.port)?;
    match &message.host {
        None => Err(Malformed::Missing("the host")),
        Some(Host::Name(name)) => Ok(Endpoint::Name(name.clone(), port)),
        Some(Host::Tailnet(host)) => Ok(Endpoint::Tailnet(host.clone(), port)),
        Some(Host::Address(bytes)) => {
            let wrong = |_| Malformed::Address(bytes.len());
            let ip = if bytes.len() == 4 {
                <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from)
            } else {
                <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)
            };
            Ok(Endpoint::Address(ip.map_err(wrong)?, port))
        }
    }
}
