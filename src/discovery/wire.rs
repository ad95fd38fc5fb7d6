//! Snapshots as resources that are sent apart from each other, and back.

mod backends;
mod http;
mod streams;

use super::proto::{self, port::Protocol, resource::Content};
use crate::model::{
    AuthoritiesError, Certificate, CertificateError, HostnameError, HttpOptions, NodeName,
    NodeNameError, NodeSpec, ObjectName, Port, Role, Snapshot, TlsListener,
};
use aws_lc_rs::digest;
use prost::Message;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::{collections::BTreeMap, sync::Arc};

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
    #[error("{0} is no HTTP status")]
    Status(u32),
    #[error("an IP address has 4 or 16 bytes, not {0}")]
    Address(usize),
    #[error("certificate {0} is not among the resources")]
    NoCertificate(String),
    #[error("the private key is of no known encoding")]
    PrivateKey,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("the certificates of authorities: {0}")]
    Authorities(#[from] AuthoritiesError),
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
        http_options: Some(http::options_out(&snapshot.http_options)),
        role: match snapshot.role {
            Role::Ingress => proto::Role::Ingress,
            Role::Egress => proto::Role::Egress,
        }
        .into(),
    };
    add(GATEWAY.into(), Content::Gateway(gateway));
    for (&number, port) in &snapshot.ports {
        let protocol = match port {
            Port::Tcp(listener) => Protocol::Tcp(streams::tcp_out(listener)),
            Port::Http(listeners) => Protocol::Http(http::listeners_out(listeners)),
            Port::Tls(listeners) => {
                let terminated = listeners.iter().filter_map(TlsListener::termination);
                for certificate in terminated.flat_map(|one| &one.certificates.secrets) {
                    add(
                        certificate_id(certificate),
                        Content::Certificate(certificate_out(certificate)),
                    );
                }
                Protocol::Tls(proto::TlsListeners {
                    listeners: listeners.iter().map(streams::tls_out).collect(),
                })
            }
        };
        let port = proto::Port {
            number: number.into(),
            protocol: Some(protocol),
        };
        add(format!("port/{number}"), Content::Port(port));
    }
    for (id, route) in &snapshot.http_routes {
        let content = Content::HttpRoute(http::route_out(id, route));
        add(format!("route/{id}"), content);
    }
    for (&number, listener) in &snapshot.udp_ports {
        let port = proto::UdpPort {
            number: number.into(),
            listener: Some(streams::udp_out(listener)),
        };
        add(format!("udp/{number}"), Content::UdpPort(port));
    }
    for (id, backend) in &snapshot.backends {
        let members = backend.members.iter().map(|member| &member.tls);
        let tls = members.chain([&backend.tls]).flatten();
        for certificate in tls.filter_map(|tls| tls.certificate.as_ref()) {
            add(
                certificate_id(certificate),
                Content::Certificate(certificate_out(certificate)),
            );
        }
        let message = backends::backend_out(id, backend);
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
    let (mut udp_ports, mut routes) = (BTreeMap::new(), BTreeMap::new());
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
                let (number, port) = streams::port_in(message, &certificates).map_err(wrong)?;
                if let Some((first, _)) = ports.insert(number, (id, port)) {
                    return Err(twice(first, id, &format!("port {number}")));
                }
            }
            Some(Content::UdpPort(message)) => {
                let (number, listener) = streams::udp_in(message).map_err(wrong)?;
                if let Some((first, _)) = udp_ports.insert(number, (id, listener)) {
                    return Err(twice(first, id, &format!("UDP port {number}")));
                }
            }
            Some(Content::HttpRoute(message)) => {
                let (key, route) = http::route_in(message).map_err(wrong)?;
                let what = key.to_string();
                if let Some((first, _)) = routes.insert(key, (id, route)) {
                    return Err(twice(first, id, &what));
                }
            }
            Some(Content::Backend(message)) => {
                let (key, backend) = backends::backend_in(message, &certificates).map_err(wrong)?;
                let what = format!("backend {key}");
                if let Some((first, _)) = backends.insert(key, (id, backend)) {
                    return Err(twice(first, id, &what));
                }
            }
        }
    }
    *read = certificates;
    let (_, gateway) = gateway.ok_or(WireError::NoGateway)?;
    Ok(Snapshot {
        gateway: gateway.name,
        role: gateway.role,
        generation: gateway.generation,
        node: gateway.node,
        http_options: gateway.http_options,
        ports: without_ids(ports),
        udp_ports: without_ids(udp_ports),
        http_routes: without_ids(routes),
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

fn certificate_of(id: &str, certificates: &ReadCertificates) -> Result<Certificate, Malformed> {
    let certificate = certificates.get(id).cloned();
    certificate.ok_or_else(|| Malformed::NoCertificate(id.into()))
}

fn certificate_in(message: &proto::Certificate) -> Result<Certificate, Malformed> {
    let chain = message.chain.iter().cloned().map(CertificateDer::from);
    let key =
        PrivateKeyDer::try_from(message.private_key.clone()).map_err(|_| Malformed::PrivateKey)?;
    Ok(Certificate::from_der(chain.collect(), key)?)
}

/// What the resource of a Gateway says.
struct OfGateway {
    name: ObjectName,
    role: Role,
    generation: i64,
    node: NodeSpec,
    http_options: HttpOptions,
}

fn gateway_in(message: &proto::Gateway) -> Result<OfGateway, Malformed> {
    let node = message
        .node
        .as_ref()
        .ok_or(Malformed::Missing("the node"))?;
    let options = message.http_options.as_ref().map(http::options_in);
    let role = match proto::Role::try_from(message.role) {
        Ok(proto::Role::Ingress) => Role::Ingress,
        Ok(proto::Role::Egress) => Role::Egress,
        Err(_) => return Err(Malformed::Missing("the role")),
    };
    Ok(OfGateway {
        name: name_in(message.name.as_ref())?,
        role,
        generation: message.generation,
        node: NodeSpec {
            name: NodeName::parse(&node.name)?,
        },
        http_options: options.unwrap_or_default(),
    })
}

pub(super) fn name_in(message: Option<&proto::ObjectName>) -> Result<ObjectName, Malformed> {
    let message = message.ok_or(Malformed::Missing("a name"))?;
    Ok(ObjectName::new(&message.namespace, &message.name))
}

fn number_in(number: u32) -> Result<u16, Malformed> {
    u16::try_from(number).map_err(|_| Malformed::PortNumber(number))
}

#[cfg(test)]
mod tests;
