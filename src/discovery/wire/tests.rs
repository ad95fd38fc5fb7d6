mod http;

use super::*;
use crate::discovery::proto::endpoint::Host;
use crate::model::{
    Authorities, Backend, BackendId, BackendKind, BackendProtocol, BackendTls, Certificates,
    ClientValidation, Endpoint, Forward, HealthCheck, HostnamePattern, Member, NamedForward, Probe,
    ProxyProtocol, SubjectName, TcpListener, Termination, TlsMode, TlsRoutes, Transport, Trust,
    UdpListener, WeightedBackend,
};
use proptest::{collection, option, prelude::*, sample};
use prost::Message;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use std::net::IpAddr;
use std::{sync::LazyLock, time::Duration};

/// Certificates of several kinds of keys, one with a chain.
static CERTIFICATES: LazyLock<Vec<Certificate>> = LazyLock::new(|| {
    let make = |key: KeyPair, extra: Option<CertificateDer<'static>>| {
        let params = CertificateParams::new(vec!["web.example.com".into()]).unwrap();
        let mut chain = vec![params.self_signed(&key).unwrap().der().clone()];
        chain.extend(extra);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Certificate::from_der(chain, key).unwrap()
    };
    let plain = make(KeyPair::generate().unwrap(), None);
    let link = plain.chain()[0].clone();
    vec![
        plain,
        make(
            KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
            None,
        ),
        make(KeyPair::generate_for(&PKCS_ED25519).unwrap(), Some(link)),
    ]
});

fn label() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?".prop_filter("not like an address", |label| {
        !label.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn object_name() -> impl Strategy<Value = ObjectName> {
    (label(), label()).prop_map(|(namespace, name)| ObjectName::new(namespace, name))
}

fn backend_id() -> impl Strategy<Value = BackendId> {
    let transport = proptest::sample::select(vec![Transport::Tcp, Transport::Udp]);
    let kind = proptest::sample::select(vec![BackendKind::Service, BackendKind::Endpoints]);
    (kind, object_name(), any::<u16>(), transport).prop_map(|(kind, object, port, transport)| {
        BackendId {
            kind,
            object,
            port,
            transport,
        }
    })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    prop_oneof![
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| Endpoint::Address(ip, port)),
        (any::<String>(), any::<u16>()).prop_map(|(name, port)| Endpoint::Name(name, port)),
        (any::<String>(), any::<u16>()).prop_map(|(name, port)| Endpoint::Tailnet(name, port)),
    ]
}

fn forward() -> impl Strategy<Value = Forward> {
    let backend = (any::<u32>(), option::of(backend_id()))
        .prop_map(|(weight, backend)| WeightedBackend { weight, backend });
    let proxy_protocol = option::of(sample::select(vec![ProxyProtocol::V1, ProxyProtocol::V2]));
    (
        object_name(),
        collection::vec(backend, 0..3),
        proxy_protocol,
    )
        .prop_map(|(route, backends, proxy_protocol)| Forward {
            route,
            backends,
            proxy_protocol,
        })
}

fn named_forwards() -> impl Strategy<Value = Vec<NamedForward>> {
    let named = (collection::vec(hostname(), 0..3), forward());
    let named = named.prop_map(|(hostnames, forward)| NamedForward { hostnames, forward });
    collection::vec(named, 0..3)
}

fn certificate() -> impl Strategy<Value = Certificate> {
    sample::select(CERTIFICATES.clone())
}

fn authorities() -> impl Strategy<Value = Authorities> {
    collection::vec(certificate(), 0..3).prop_map(|certificates| {
        let leaves = certificates.iter().map(|one| one.chain()[0].clone());
        Authorities::from_der(leaves.collect()).unwrap()
    })
}

fn clients() -> impl Strategy<Value = ClientValidation> {
    (authorities(), any::<bool>()).prop_map(|(authorities, optional)| ClientValidation {
        authorities,
        optional,
    })
}

fn hostname() -> impl Strategy<Value = HostnamePattern> {
    (any::<bool>(), collection::vec(label(), 1..4)).prop_map(|(wildcard, labels)| {
        let name = labels.join(".");
        let text = if wildcard { format!("*.{name}") } else { name };
        HostnamePattern::parse(&text).unwrap()
    })
}

fn termination() -> impl Strategy<Value = Termination> {
    let secrets = collection::vec(certificate(), 0..3);
    let certificates =
        (any::<bool>(), secrets).prop_map(|(tailnet, secrets)| Certificates { tailnet, secrets });
    let routes = prop_oneof![
        named_forwards().prop_map(TlsRoutes::Forwards),
        http::attached().prop_map(TlsRoutes::HttpRoutes),
    ];
    (
        certificates,
        collection::vec(any::<String>(), 0..3),
        option::of(clients()),
        routes,
    )
        .prop_map(|(certificates, alpn, clients, routes)| Termination {
            certificates,
            alpn,
            clients,
            routes,
        })
}

fn tls_listener() -> impl Strategy<Value = TlsListener> {
    let mode = prop_oneof![
        termination().prop_map(TlsMode::Terminate),
        named_forwards().prop_map(TlsMode::Passthrough),
    ];
    (any::<String>(), option::of(hostname()), mode).prop_map(|(name, hostname, mode)| TlsListener {
        name,
        hostname,
        mode,
    })
}

fn port() -> impl Strategy<Value = Port> {
    prop_oneof![
        (any::<String>(), option::of(forward()))
            .prop_map(|(name, route)| Port::Tcp(TcpListener { name, route })),
        collection::vec(tls_listener(), 0..3).prop_map(Port::Tls),
        collection::vec(http::listener(), 0..3).prop_map(Port::Http),
    ]
}

fn udp_port() -> impl Strategy<Value = UdpListener> {
    (any::<String>(), option::of(forward())).prop_map(|(name, route)| UdpListener { name, route })
}

fn backend_tls() -> impl Strategy<Value = BackendTls> {
    let trust = prop_oneof![
        Just(Trust::System),
        Just(Trust::Anybody),
        authorities().prop_map(Trust::Authorities)
    ];
    let name = prop_oneof![
        any::<String>().prop_map(SubjectName::Dns),
        any::<String>().prop_map(SubjectName::Uri),
    ];
    (
        any::<String>(),
        trust,
        collection::vec(name, 0..3),
        option::of(certificate()),
    )
        .prop_map(|(hostname, trust, names, certificate)| BackendTls {
            hostname,
            trust,
            names,
            certificate,
        })
}

fn backend() -> impl Strategy<Value = Backend> {
    let protocols = vec![BackendProtocol::Http1, BackendProtocol::H2c];
    (
        sample::select(protocols),
        option::of(backend_tls()),
        collection::vec(endpoint(), 0..4),
        collection::vec(member(), 0..3),
    )
        .prop_map(|(protocol, tls, endpoints, members)| Backend {
            protocol,
            tls,
            endpoints,
            members,
        })
}

fn member() -> impl Strategy<Value = Member> {
    let milliseconds = || any::<u32>().prop_map(|time| Duration::from_millis(time.into()));
    let probe = prop_oneof![
        Just(Probe::Tcp),
        Just(Probe::Udp),
        (any::<String>(), any::<String>()).prop_map(|(path, host)| Probe::Http { path, host }),
    ];
    let check = (
        probe,
        milliseconds(),
        milliseconds(),
        any::<u32>(),
        any::<u32>(),
    );
    let check = check.prop_map(
        |(probe, interval, timeout, healthy, unhealthy)| HealthCheck {
            probe,
            interval,
            timeout,
            healthy_threshold: healthy,
            unhealthy_threshold: unhealthy,
        },
    );
    (
        any::<String>(),
        endpoint(),
        any::<u32>(),
        option::of(backend_tls()),
        option::of(check),
    )
        .prop_map(|(name, endpoint, weight, tls, check)| Member {
            name,
            endpoint,
            weight,
            tls,
            check,
        })
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let ports = (
        collection::btree_map(any::<u16>(), port(), 0..4),
        collection::btree_map(any::<u16>(), udp_port(), 0..2),
        sample::select(vec![Role::Ingress, Role::Egress]),
    );
    (
        object_name(),
        any::<i64>(),
        label(),
        ports,
        http::options(),
        collection::btree_map(http::id(), http::route(), 0..3),
        collection::btree_map(backend_id(), backend(), 0..4),
    )
        .prop_map(
            |(gateway, generation, node, ports, options, routes, backends)| Snapshot {
                gateway,
                role: ports.2,
                generation,
                node: NodeSpec {
                    name: NodeName::parse(&node).unwrap(),
                },
                ports: ports.0,
                udp_ports: ports.1,
                http_options: options,
                http_routes: routes,
                backends,
            },
        )
}

/// The keys, which equality of snapshots passes over.
fn keys(snapshot: &Snapshot) -> Vec<Vec<u8>> {
    let listeners = snapshot.ports.values().flat_map(|port| match port {
        Port::Tcp(_) | Port::Http(_) => &[],
        Port::Tls(listeners) => listeners.as_slice(),
    });
    let shown = snapshot.backends.values();
    let shown = shown.filter_map(|backend| backend.tls.as_ref()?.certificate.as_ref());
    listeners
        .filter_map(TlsListener::termination)
        .flat_map(|termination| &termination.certificates.secrets)
        .chain(shown)
        .map(|certificate| certificate.private_key().secret_der().to_vec())
        .collect()
}

/// What arrives of resources that are sent.
fn sent(resources: &Resources) -> Resources {
    let again = |one: &Arc<proto::Resource>| {
        Arc::new(proto::Resource::decode(one.encode_to_vec().as_slice()).unwrap())
    };
    resources
        .iter()
        .map(|(id, one)| (id.clone(), again(one)))
        .collect()
}

proptest! {
    #[test]
    fn any_snapshot_survives_the_wire_with_its_keys(snapshot in snapshot()) {
        let resources = encode(&snapshot);
        let arrived = sent(&resources);
        let decoded = decode(&arrived, &mut ReadCertificates::new()).unwrap();
        prop_assert_eq!(&decoded, &snapshot);
        prop_assert_eq!(keys(&decoded), keys(&snapshot));
        let again = encode(&decoded);
        prop_assert_eq!(version(&again), version(&resources));
        prop_assert_eq!(again, resources);
    }

    #[test]
    fn versions_are_equal_just_when_snapshots_are(one in snapshot(), other in snapshot()) {
        let same = version(&encode(&one)) == version(&encode(&other));
        prop_assert_eq!(same, one == other);
        prop_assert_eq!(version(&encode(&one)), version(&encode(&one.clone())));
    }

    #[test]
    fn no_bytes_from_the_wire_break_the_reader(
        parts in collection::vec(collection::vec(any::<u8>(), 0..64), 0..4)
    ) {
        let resources = parts.iter().enumerate().filter_map(|(number, bytes)| {
            let resource = proto::Resource::decode(bytes.as_slice()).ok()?;
            Some((number.to_string(), Arc::new(resource)))
        });
        // Only that it returns.
        let _ = decode(&resources.collect(), &mut ReadCertificates::new());
    }
}

/// A snapshot with one resource of each kind.
fn whole() -> Resources {
    let id = BackendId {
        kind: BackendKind::Service,
        object: ObjectName::new("default", "app"),
        port: 80,
        transport: Transport::Tcp,
    };
    let listener = TlsListener {
        name: "tls".into(),
        hostname: None,
        mode: TlsMode::Terminate(Termination::new(
            Certificates {
                tailnet: true,
                secrets: vec![CERTIFICATES[0].clone()],
            },
            TlsRoutes::all(None),
        )),
    };
    encode(&Snapshot {
        gateway: ObjectName::new("default", "web"),
        role: Role::Ingress,
        generation: 1,
        node: NodeSpec {
            name: NodeName::parse("web").unwrap(),
        },
        ports: [(443, Port::Tls(vec![listener]))].into(),
        udp_ports: BTreeMap::new(),
        http_options: HttpOptions::default(),
        http_routes: BTreeMap::new(),
        backends: [(
            id,
            Backend::new(vec![Endpoint::Name("app.example".into(), 80)]),
        )]
        .into(),
    })
}

/// What the reader says when the resource of this kind is changed.
fn said(kind: &str, change: impl Fn(&mut proto::Resource)) -> String {
    let mut resources = whole();
    let entry = resources.iter_mut().find(|(id, _)| id.starts_with(kind));
    change(Arc::make_mut(entry.unwrap().1));
    let error = decode(&resources, &mut ReadCertificates::new()).unwrap_err();
    error.to_string()
}

#[test]
fn what_is_broken_is_named_with_its_resource() {
    assert_eq!(
        said("port", |resource| resource.content = None),
        "resource port/443: the content is missing, or of a kind that came after this version of tailway"
    );
    assert_eq!(
        said("port", |resource| {
            if let Some(Content::Port(port)) = &mut resource.content {
                port.protocol = None;
            }
        }),
        "resource port/443: the protocol is missing, or of a kind that came after this version of tailway"
    );
    assert_eq!(
        said("port", |resource| {
            if let Some(Content::Port(port)) = &mut resource.content {
                port.number = 65_536;
            }
        }),
        "resource port/443: 65536 is no port number"
    );
    assert_eq!(
        said("backend", |resource| {
            if let Some(Content::Backend(backend)) = &mut resource.content {
                backend.endpoints[0].host = Some(Host::Address(vec![1, 2, 3]));
            }
        }),
        "resource backend/default/app:80: an IP address has 4 or 16 bytes, not 3"
    );
    assert_eq!(
        said("gateway", |resource| {
            if let Some(Content::Gateway(gateway)) = &mut resource.content {
                gateway.node = None;
            }
        }),
        "resource gateway: the node is missing, or of a kind that came after this version of tailway"
    );
    let certificate = certificate_id(&CERTIFICATES[0]);
    assert_eq!(
        said("certificate", |resource| {
            if let Some(Content::Certificate(certificate)) = &mut resource.content {
                certificate.private_key = CERTIFICATES[1].private_key().secret_der().to_vec();
            }
        }),
        format!("resource {certificate}: the private key does not belong to the certificate")
    );
}

#[test]
fn a_certificate_that_is_not_there_is_named() {
    let mut resources = whole();
    let id = certificate_id(&CERTIFICATES[0]);
    resources.remove(&id);
    let error = decode(&resources, &mut ReadCertificates::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("resource port/443: certificate {id} is not among the resources")
    );
}

#[test]
fn two_resources_for_one_thing_are_no_snapshot() {
    let mut resources = whole();
    resources.insert("port/0443".into(), Arc::clone(&resources["port/443"]));
    let error = decode(&resources, &mut ReadCertificates::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "resources port/0443 and port/443 say different things of port 443"
    );
    resources.clear();
    let error = decode(&resources, &mut ReadCertificates::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no resource that names the Gateway"
    );
}

#[test]
fn certificates_are_read_once_and_forgotten_when_they_are_gone() {
    let mut read = ReadCertificates::new();
    let mut resources = whole();
    decode(&resources, &mut read).unwrap();
    let id = certificate_id(&CERTIFICATES[0]);
    let first = Arc::clone(read[&id].certified_key());
    decode(&resources, &mut read).unwrap();
    assert!(Arc::ptr_eq(&first, read[&id].certified_key()));
    resources.retain(|id, _| id == "gateway");
    decode(&resources, &mut read).unwrap();
    assert!(read.is_empty());
}

#[test]
fn no_debug_output_shows_a_private_key() {
    let resources = whole();
    let key = CERTIFICATES[0].private_key().secret_der();
    let shown = format!("{resources:?} {:?}", CERTIFICATES[0]);
    assert!(!shown.contains(&format!("{key:?}")));
    assert!(!shown.contains("private_key"));
    let key = proto::AuthKey {
        key: "tskey-auth-1".into(),
    };
    assert_eq!(format!("{key:?}"), "AuthKey(redacted)");
}
