//! Snapshots as resources that are sent apart from each other, and back.

use super::proto::{self, endpoint::Host, port::Protocol, resource::Content};
use crate::model::{
    Backend, BackendId, Certificate, CertificateError, Certificates, Endpoint, Forward,
    HostnameError, HostnamePattern, NodeName, NodeNameError, NodeSpec, ObjectName, Port, Snapshot,
    TcpListener, TlsListener, WeightedBackend,
};
use aws_lc_rs::digest;
use prost::Message;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// The resources of one Snapshot, by id.
pub(super) type Resources = BTreeMap<String, Arc<proto::Resource>>;

/// Why resources are no Snapshot.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("resource {id}: {cause}")]
    Resource { id: String, cause: Malformed },
    #[error("there is no resource that names the Gateway")]
    NoGateway,
    #[error("resources {first} and {second} say different things of {what}")]
    Twice {
        first: String,
        second: String,
        what: String,
    },
}

/// What is wrong with a resource.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error("{0} is missing, or of a kind that came after this version of tailway")]
    Missing(&'static str),
    #[error("{0} is no port number")]
    PortNumber(u32),
    #[error("an IP address has 4 or 16 bytes, not {0}")]
    Address(usize),
    #[error("certificate {0} is not among the resources")]
    NoCertificate(String),
    #[error("the private key is of no known encoding")]
    PrivateKey,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Hostname(#[from] HostnameError),
    #[error(transparent)]
    NodeName(#[from] NodeNameError),
}

/// Certificates that were read before, by the id of their resource, which follows from their
/// content. Reading one checks its key, which takes longer than all the rest.
pub(super) type ReadCertificates = BTreeMap<String, Certificate>;

const GATEWAY: &str = "gateway";

// === to the wire ===

/// Cuts a Snapshot into resources.
pub(super) fn encode(snapshot: &Snapshot) -> Resources {
    let mut resources = Resources::new();
    let mut add = |id: String, content: Content| {
        resources.insert(id.clone(), Arc::new(resource(id, content)));
    };
    let gateway = proto::Gateway {
        name: Some(name_out(&snapshot.gateway)),
        generation: snapshot.generation,
        node: Some(proto::Node {
            name: snapshot.node.name.to_string(),
        }),
    };
    add(GATEWAY.into(), Content::Gateway(gateway));
    for (&number, port) in &snapshot.ports {
        let protocol = match port {
            Port::Tcp(listener) => Protocol::Tcp(tcp_out(listener)),
            Port::Tls(listeners) => {
                let certificates = listeners.iter().flat_map(|l| &l.certificates.secrets);
                for certificate in certificates {
                    add(
                        certificate_id(certificate),
                        Content::Certificate(certificate_out(certificate)),
                    );
                }
                Protocol::Tls(proto::TlsListeners {
                    listeners: listeners.iter().map(tls_out).collect(),
                })
            }
        };
        let port = proto::Port {
            number: number.into(),
            protocol: Some(protocol),
        };
        add(format!("port/{number}"), Content::Port(port));
    }
    for (id, backend) in &snapshot.backends {
        let message = proto::Backend {
            id: Some(backend_id_out(id)),
            endpoints: backend.endpoints.iter().map(endpoint_out).collect(),
        };
        add(format!("backend/{id}"), Content::Backend(message));
    }
    resources
}

/// The version of a state: equal for equal content, whoever works it out.
pub(super) fn version(resources: &Resources) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for (id, resource) in resources {
        for part in [id.as_bytes(), &resource.hash] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
    }
    hexadecimal(&context.finish().as_ref()[..16])
}

fn resource(id: String, content: Content) -> proto::Resource {
    let mut resource = proto::Resource {
        id,
        hash: Vec::new(),
        content: Some(content),
    };
    let hash = digest::digest(&digest::SHA256, &resource.encode_to_vec());
    resource.hash = hash.as_ref()[..16].to_vec();
    resource
}

/// Names the content: a renewed certificate is another resource, so that a port never serves a
/// certificate that it does not name.
fn certificate_id(certificate: &Certificate) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in certificate.chain() {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.update(certificate.private_key().secret_der());
    let digest = context.finish();
    format!("certificate/{}", hexadecimal(&digest.as_ref()[..16]))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn name_out(name: &ObjectName) -> proto::ObjectName {
    proto::ObjectName {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}

fn tcp_out(listener: &TcpListener) -> proto::TcpListener {
    proto::TcpListener {
        name: listener.name.clone(),
        route: listener.route.as_ref().map(forward_out),
    }
}

fn tls_out(listener: &TlsListener) -> proto::TlsListener {
    let Certificates { tailnet, secrets } = &listener.certificates;
    proto::TlsListener {
        name: listener.name.clone(),
        hostname: listener.hostname.as_ref().map(ToString::to_string),
        tailnet_certificate: *tailnet,
        certificates: secrets.iter().map(certificate_id).collect(),
        alpn: listener.alpn.clone(),
        route: listener.route.as_ref().map(forward_out),
    }
}

fn forward_out(forward: &Forward) -> proto::Forward {
    let backends = forward.backends.iter().map(|one| proto::WeightedBackend {
        weight: one.weight,
        backend: one.backend.as_ref().map(backend_id_out),
    });
    proto::Forward {
        route: Some(name_out(&forward.route)),
        backends: backends.collect(),
    }
}

fn backend_id_out(id: &BackendId) -> proto::BackendId {
    proto::BackendId {
        service: Some(name_out(&id.service)),
        port: id.port.into(),
    }
}

fn endpoint_out(endpoint: &Endpoint) -> proto::Endpoint {
    let (host, port) = match endpoint {
        Endpoint::Address(IpAddr::V4(ip), port) => (Host::Address(ip.octets().into()), *port),
        Endpoint::Address(IpAddr::V6(ip), port) => (Host::Address(ip.octets().into()), *port),
        Endpoint::Name(name, port) => (Host::Name(name.clone()), *port),
    };
    proto::Endpoint {
        host: Some(host),
        port: port.into(),
    }
}

fn certificate_out(certificate: &Certificate) -> proto::Certificate {
    proto::Certificate {
        chain: certificate.chain().iter().map(|der| der.to_vec()).collect(),
        private_key: certificate.private_key().secret_der().to_vec(),
    }
}

// === from the wire ===

/// Puts a Snapshot together. `read` has the certificates of the last time, and then of this.
///
/// # Errors
/// When something is missing, is of no known kind, or breaks a rule of the model.
pub(super) fn decode(
    resources: &Resources,
    read: &mut ReadCertificates,
) -> Result<Snapshot, WireError> {
    let certificates = certificates_in(resources, read)?;
    let mut gateway = None;
    let (mut ports, mut backends) = (BTreeMap::new(), BTreeMap::new());
    for (id, resource) in resources {
        let wrong = |cause| WireError::Resource {
            id: id.clone(),
            cause,
        };
        match &resource.content {
            None => return Err(wrong(Malformed::Missing("the content"))),
            Some(Content::Certificate(_)) => {}
            Some(Content::Gateway(message)) => {
                let value = gateway_in(message).map_err(wrong)?;
                if let Some((first, _)) = gateway.replace((id, value)) {
                    return Err(twice(first, id, "the Gateway"));
                }
            }
            Some(Content::Port(message)) => {
                let (number, port) = port_in(message, &certificates).map_err(wrong)?;
                if let Some((first, _)) = ports.insert(number, (id, port)) {
                    return Err(twice(first, id, &format!("port {number}")));
                }
            }
            Some(Content::Backend(message)) => {
                let (key, backend) = backend_in(message).map_err(wrong)?;
                let what = format!("backend {key}");
                if let Some((first, _)) = backends.insert(key, (id, backend)) {
                    return Err(twice(first, id, &what));
                }
            }
        }
    }
    *read = certificates;
    let (_, (gateway, generation, node)) = gateway.ok_or(WireError::NoGateway)?;
    Ok(Snapshot {
        gateway,
        generation,
        node,
        ports: without_ids(ports),
        backends: without_ids(backends),
    })
}

fn twice(first: &str, second: &str, what: &str) -> WireError {
    WireError::Twice {
        first: first.into(),
        second: second.into(),
        what: what.into(),
    }
}

fn without_ids<K: Ord, V>(map: BTreeMap<K, (&String, V)>) -> BTreeMap<K, V> {
    map.into_iter()
        .map(|(key, (_, value))| (key, value))
        .collect()
}

fn certificates_in(
    resources: &Resources,
    read: &ReadCertificates,
) -> Result<ReadCertificates, WireError> {
    let mut certificates = ReadCertificates::new();
    for (id, resource) in resources {
        let Some(Content::Certificate(message)) = &resource.content else {
            continue;
        };
        let certificate = match read.get(id) {
            Some(certificate) => certificate.clone(),
            None => certificate_in(message).map_err(|cause| WireError::Resource {
                id: id.clone(),
                cause,
            })?,
        };
        certificates.insert(id.clone(), certificate);
    }
    Ok(certificates)
}

fn certificate_in(message: &proto::Certificate) -> Result<Certificate, Malformed> {
    let chain = message.chain.iter().cloned().map(CertificateDer::from);
    let key =
        PrivateKeyDer::try_from(message.private_key.clone()).map_err(|_| Malformed::PrivateKey)?;
    Ok(Certificate::from_der(chain.collect(), key)?)
}

fn gateway_in(message: &proto::Gateway) -> Result<(ObjectName, i64, NodeSpec), Malformed> {
    let node = message
        .node
        .as_ref()
        .ok_or(Malformed::Missing("the node"))?;
    let node = NodeSpec {
        name: NodeName::parse(&node.name)?,
    };
    Ok((name_in(message.name.as_ref())?, message.generation, node))
}

pub(super) fn name_in(message: Option<&proto::ObjectName>) -> Result<ObjectName, Malformed> {
    let message = message.ok_or(Malformed::Missing("a name"))?;
    Ok(ObjectName::new(&message.namespace, &message.name))
}

fn number_in(number: u32) -> Result<u16, Malformed> {
    u16::try_from(number).map_err(|_| Malformed::PortNumber(number))
}

fn port_in(
    message: &proto::Port,
    certificates: &ReadCertificates,
) -> Result<(u16, Port), Malformed> {
    let port = match &message.protocol {
        None => return Err(Malformed::Missing("the protocol")),
        Some(Protocol::Tcp(listener)) => Port::Tcp(TcpListener {
            name: listener.name.clone(),
            route: listener.route.as_ref().map(forward_in).transpose()?,
        }),
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

fn tls_in(
    message: &proto::TlsListener,
    certificates: &ReadCertificates,
) -> Result<TlsListener, Malformed> {
    let hostname = message.hostname.as_deref().map(HostnamePattern::parse);
    let secrets = message.certificates.iter().map(|id| {
        let certificate = certificates.get(id).cloned();
        certificate.ok_or_else(|| Malformed::NoCertificate(id.clone()))
    });
    Ok(TlsListener {
        name: message.name.clone(),
        hostname: hostname.transpose()?,
        certificates: Certificates {
            tailnet: message.tailnet_certificate,
            secrets: secrets.collect::<Result<_, _>>()?,
        },
        alpn: message.alpn.clone(),
        route: message.route.as_ref().map(forward_in).transpose()?,
    })
}

fn forward_in(message: &proto::Forward) -> Result<Forward, Malformed> {
    let backends = message.backends.iter().map(|one| {
        let backend = one.backend.as_ref().map(backend_id_in).transpose()?;
        Ok(WeightedBackend {
            weight: one.weight,
            backend,
        })
    });
    Ok(Forward {
        route: name_in(message.route.as_ref())?,
        backends: backends.collect::<Result<_, Malformed>>()?,
    })
}

fn backend_id_in(message: &proto::BackendId) -> Result<BackendId, Malformed> {
    Ok(BackendId {
        service: name_in(message.service.as_ref())?,
        port: number_in(message.port)?,
    })
}

fn backend_in(message: &proto::Backend) -> Result<(BackendId, Backend), Malformed> {
    let id = message.id.as_ref().ok_or(Malformed::Missing("the id"))?;
    let endpoints = message.endpoints.iter().map(endpoint_in);
    let backend = Backend {
        endpoints: endpoints.collect::<Result<_, _>>()?,
    };
    Ok((backend_id_in(id)?, backend))
}

fn endpoint_in(message: &proto::Endpoint) -> Result<Endpoint, Malformed> {
    let port = number_in(message.port)?;
    match &message.host {
        None => Err(Malformed::Missing("the host")),
        Some(Host::Name(name)) => Ok(Endpoint::Name(name.clone(), port)),
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

#[cfg(test)]
mod tests;
