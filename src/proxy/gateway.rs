//! One Gateway as a tailnet node: joins, obtains its certificate, serves, and says how it stands.

use super::{
    CertificateState, Limits, PortError, Proxy, Schedule, TailnetCertificate,
    renewal::{Renewal, wants_tailnet_certificate},
};
use crate::{
    drain::Drain,
    metrics::Metrics,
    model::{
        CertificateReport, Issuance, NodeReport, Programmed, Role, Snapshot, TailnetReport,
        TailnetState, Unready,
    },
    net::{Network, pod::PodNetwork},
    tailnet::{Auth, Node, NodeConfig, Status},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::watch, task::JoinHandle};

/// What the Gateways of a process have in common.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    pub limits: Limits,
    pub metrics: Metrics,
    pub schedule: Schedule,
}

/// A Gateway that is served. Dropping it ends it at once; [`Gateway::end`] does so gracefully.
#[derive(Debug)]
pub struct Gateway {
    snapshot: watch::Sender<Snapshot>,
    report: watch::Receiver<NodeReport>,
    node: watch::Receiver<Option<Node>>,
    drain: Drain,
    task: JoinHandle<()>,
}

/// How long the engine of a node may take to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait before a node is started again that could not be.
const RESTART: Duration = Duration::from_secs(5);

// === impl Gateway ===

impl Gateway {
    /// Starts to serve `snapshot` on a node of its own.
    pub fn start(
        snapshot: Snapshot,
        config: NodeConfig,
        settings: GatewaySettings,
        drain: &Drain,
    ) -> Self {
        let drain = drain.child();
        let (snapshot, snapshots) = watch::channel(snapshot);
        let (reports, report) = watch::channel(NodeReport::default());
        let (nodes, node) = watch::channel(None);
        let gateway = snapshots.borrow().gateway.to_string();
        let serving = Serving {
            gateway,
            config,
            settings,
            drain: drain.clone(),
            snapshots,
            reports,
            nodes,
            certificate: Arc::default(),
        };
        let task = tokio::spawn(serving.run());
        Self {
            snapshot,
            report,
            node,
            drain,
            task,
        }
    }

    /// Serves another snapshot of the same node from now on.
    pub fn apply(&self, snapshot: Snapshot) {
        self.snapshot.send_if_modified(|current| {
            let changed = *current != snapshot;
            *current = snapshot;
            changed
        });
    }

    /// How it stands. The sender is gone once the Gateway has ended.
    pub fn report(&self) -> watch::Receiver<NodeReport> {
        self.report.clone()
    }

    /// Open connections.
    pub fn open_connections(&self) -> usize {
        self.drain.open()
    }

    /// Stops accepting, lets connections finish until the deadline, then ends the node.
    pub async fn end(self, deadline: Duration) {
        let in_order = self.drain.end(deadline).await;
        self.task.abort();
        let node = self.node.borrow().clone();
        if let Some(node) = node {
            if in_order {
                // The last bytes and FINs are in the engine's queue still.
                node.settle().await;
            }
            if let Err(error) = node.close(CLOSE_TIMEOUT).await {
                tracing::warn!(%error, "the tailnet node did not end in time");
            }
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a node gets into its tailnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// By a key, which the control server has yet to take.
    Key,
    /// By the identity that it has.
    Identity,
}

/// The task of a Gateway.
struct Serving {
    gateway: String,
    config: NodeConfig,
    settings: GatewaySettings,
    drain: Drain,
    snapshots: watch::Receiver<Snapshot>,
    reports: watch::Sender<NodeReport>,
    nodes: watch::Sender<Option<Node>>,
    certificate: Arc<TailnetCertificate>,
}

impl Serving {
    async fn run(mut self) {
        loop {
            match Node::start(self.config.clone()).await {
                Ok(node) => {
                    self.nodes.send_replace(Some(node.clone()));
                    self.serve(node).await;
                    return;
                }
                Err(error) => {
                    tracing::error!(gateway = self.gateway, %error, "the tailnet node cannot start");
                    self.report(
                        Unready::Invalid,
                        format!("the tailnet node cannot start: {error}"),
                    );
                    tokio::time::sleep(RESTART).await;
                }
            }
        }
    }

    async fn serve(&mut self, node: Node) {
        let role = self.snapshots.borrow().role;
        match role {
            Role::Ingress => self.serve_on(node.clone(), node).await,
            Role::Egress => {
                self.settings.limits = self.settings.limits.clone().for_egress();
                self.serve_on(PodNetwork::new(node.clone()), node).await;
            }
        }
    }

    /// Serves on a network, which is the node's own unless it is an egress.
    async fn serve_on<N: Network>(&mut self, network: N, node: Node) {
        let mut proxy = Proxy::new(
            network,
            self.gateway.clone(),
            self.settings.limits.clone(),
            self.settings.metrics.clone(),
            self.drain.clone(),
            Arc::clone(&self.certificate),
        );
        let renewal = Renewal::start(
            node.clone(),
            Arc::clone(&self.certificate),
            self.settings.schedule.clone(),
        );
        let mut statuses = node.watch();
        let mut certificate = self.certificate.watch();
        let mut health = proxy.health();
        let mut errors = Vec::new();
        let mut login = String::new();
        let mut applied = None;
        let mut entry = match self.config.auth {
            Auth::Interactive => Entry::Identity,
            _ => Entry::Key,
        };
        loop {
            let snapshot = self.snapshots.borrow_and_update().clone();
            if applied.as_ref() != Some(&snapshot) {
                errors = proxy.apply(&snapshot).await;
                applied = Some(snapshot.clone());
            }
            let status = statuses.borrow_and_update().clone();
            let state = certificate.borrow_and_update().clone();
            self.tell_login(&status, &mut login);
            renewal.tell(&status, &snapshot);
            self.observe(&status, &state);
            if status.is_running() {
                entry = Entry::Identity;
            }
            let report = NodeReport {
                health: health.borrow_and_update().clone(),
                ..report_of(&snapshot, &status, entry, &state, &errors)
            };
            self.reports.send_if_modified(|current| {
                let changed = *current != report;
                *current = report;
                changed
            });
            let changed = tokio::select! {
                changed = statuses.changed() => changed,
                changed = certificate.changed() => changed,
                changed = health.changed() => changed,
                changed = self.snapshots.changed() => changed,
            };
            if changed.is_err() {
                // The node was closed, or the owner is gone.
                self.report(Unready::Pending, "the tailnet node was closed".into());
                return;
            }
        }
    }

    fn report(&self, reason: Unready, message: String) {
        self.reports
            .send_modify(|report| report.programmed = Programmed::No { reason, message });
    }

    /// Tells a person where to log in, once per URL.
    fn tell_login(&self, status: &Status, told: &mut String) {
        if !status.auth_url.is_empty() && *told != status.auth_url {
            told.clone_from(&status.auth_url);
            tracing::warn!(
                gateway = self.gateway,
                "to let this node join the tailnet, open {}",
                status.auth_url
            );
        }
    }

    fn observe(&self, status: &Status, certificate: &CertificateState) {
        let metrics = &self.settings.metrics;
        metrics.node(
            &self.gateway,
            status.is_running(),
            status.peers.direct,
            status.peers.relayed,
        );
        if let Some(expires) = certificate.expires
            && let Ok(since_epoch) = expires.duration_since(SystemTime::UNIX_EPOCH)
        {
            metrics.certificate(&self.gateway, &status.dns_name, since_epoch.as_secs_f64());
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.settings.metrics.forget_node(&self.gateway);
    }
}

/// What the node's state and the proxy's say together.
fn report_of(
    snapshot: &Snapshot,
    status: &Status,
    entry: Entry,
    certificate: &CertificateState,
    errors: &[PortError],
) -> NodeReport {
    let tailnet = tailnet_report(snapshot, status, entry);
    let unready = unready(snapshot, status, &tailnet, certificate, errors);
    NodeReport {
        dns_name: status.dns_name.clone(),
        addresses: status.ips.clone(),
        node_id: status.node_id.clone(),
        tailnet,
        certificate: certificate_report(snapshot, status, certificate),
        health: BTreeMap::new(),
        programmed: match unready {
            Some((reason, message)) => Programmed::No { reason, message },
            None => Programmed::Generation(snapshot.generation),
        },
    }
}

/// Why the snapshot is not served as it should be; the cause that has to go first.
fn unready(
    snapshot: &Snapshot,
    status: &Status,
    tailnet: &TailnetReport,
    certificate: &CertificateState,
    errors: &[PortError],
) -> Option<(Unready, String)> {
    let name = &status.dns_name;
    if !status.is_running() {
        return Some((Unready::Pending, tailnet.message.clone()));
    }
    if let Some(error) = errors.first() {
        return Some((Unready::Invalid, error.to_string()));
    }
    if wants_tailnet_certificate(snapshot, name) && certificate.expires.is_none() {
        return Some((Unready::Pending, waiting_for_certificate(name, certificate)));
    }
    (tailnet.state == TailnetState::NameTaken)
        .then(|| (Unready::AddressNotUsable, tailnet.message.clone()))
}

/// How the node stands with its tailnet.
fn tailnet_report(snapshot: &Snapshot, status: &Status, entry: Entry) -> TailnetReport {
    let name = &status.dns_name;
    let (state, message) = if status.key_expired {
        (
            TailnetState::KeyExpired,
            format!(
                "the key of node {name} has expired: log in again, or disable key expiry for it in the admin console"
            ),
        )
    } else if !status.is_running() {
        (not_running(status, entry), waiting_for(status))
    } else if name.is_empty() || status.magic_dns_off {
        (TailnetState::MagicDnsDisabled, NO_NAME.into())
    } else if status.is_renamed() && snapshot.role == Role::Ingress {
        (
            TailnetState::NameTaken,
            format!(
                "the tailnet named the node {name} because {} is taken; it serves that name: remove the other machine, or set another Hostname in spec.addresses",
                snapshot.node.name
            ),
        )
    } else {
        (TailnetState::Ready, String::new())
    };
    TailnetReport { state, message }
}

fn not_running(status: &Status, entry: Entry) -> TailnetState {
    let waits_for_server =
        entry == Entry::Key && status.auth_url.is_empty() && !status.login_refused;
    match status.state.as_str() {
        "NeedsMachineAuth" => TailnetState::ApprovalNeeded,
        // Also when a key was refused: it takes another one.
        "NeedsLogin" if !waits_for_server => TailnetState::LoginNeeded,
        _ if !status.control_error.is_empty() => TailnetState::ControlUnavailable,
        _ => TailnetState::Joining,
    }
}

/// How the node stands with the certificate of its name.
fn certificate_report(
    snapshot: &Snapshot,
    status: &Status,
    state: &CertificateState,
) -> CertificateReport {
    let name = &status.dns_name;
    if !wants_tailnet_certificate(snapshot, name) {
        return CertificateReport::default();
    }
    let issuance = if state.error.is_empty() {
        match state.expires {
            Some(_) => Issuance::Ready,
            None => Issuance::Pending,
        }
    } else if state.limited_until.is_some() {
        Issuance::RateLimited
    } else if state.disabled {
        Issuance::HttpsDisabled
    } else {
        Issuance::Failed
    };
    CertificateReport {
        issuance,
        message: match issuance {
            Issuance::Ready | Issuance::NotNeeded => String::new(),
            _ => with_time(waiting_for_certificate(name, state), state.limited_until),
        },
        expires: state.expires,
    }
}

fn with_time(message: String, until: Option<SystemTime>) -> String {
    match until.and_then(|until| jiff::Timestamp::try_from(until).ok()) {
        Some(until) => format!(
            "{message}; the next try is at {}",
            until.strftime("%Y-%m-%dT%H:%M:%SZ")
        ),
        None => message,
    }
}

const NO_NAME: &str =
    "no client finds the node by its name: enable MagicDNS in the DNS page of the admin console";

fn waiting_for_certificate(name: &str, certificate: &CertificateState) -> String {
    if !certificate.error.is_empty() {
        certificate.error.clone()
    } else if name.is_empty() {
        NO_NAME.into()
    } else {
        format!("waiting for the certificate of {name}")
    }
}

fn waiting_for(status: &Status) -> String {
    if !status.auth_url.is_empty() {
        return format!("the node needs a login at {}", status.auth_url);
    }
    if !status.control_error.is_empty() {
        let what = match status.login_refused {
            true => "does not let the node in",
            false => "cannot be reached",
        };
        return format!("the control server {what}: {}", status.control_error);
    }
    match status.state.as_str() {
        "NeedsMachineAuth" => "the node waits to be approved in the admin console".into(),
        "" | "NoState" | "Starting" | "NeedsLogin" => "the node is joining the tailnet".into(),
        other => format!("the node is {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Certificates, HostnamePattern, HttpOptions, NodeName, NodeSpec, ObjectName, Port, Role,
        Termination, TlsListener, TlsMode, TlsRoutes,
    };

    fn snapshot(hostname: Option<&str>) -> Snapshot {
        let listener = TlsListener {
            name: "https".into(),
            hostname: hostname.map(|hostname| HostnamePattern::parse(hostname).unwrap()),
            mode: TlsMode::Terminate(Termination::new(
                Certificates {
                    tailnet: true,
                    secrets: Vec::new(),
                },
                TlsRoutes::all(None),
            )),
        };
        Snapshot {
            gateway: ObjectName::new("default", "web"),
            role: Role::Ingress,
            generation: 3,
            node: NodeSpec {
                name: NodeName::parse("web").unwrap(),
            },
            ports: [(443, Port::Tls(vec![listener]))].into(),
            udp_ports: [].into(),
            http_options: HttpOptions::default(),
            http_routes: [].into(),
            backends: [].into(),
        }
    }

    fn running(name: &str) -> Status {
        Status {
            state: "Running".into(),
            hostname: "web".into(),
            dns_name: name.into(),
            ips: vec![[100, 64, 0, 1].into()],
            ..Status::default()
        }
    }

    fn issued() -> CertificateState {
        CertificateState {
            expires: Some(SystemTime::now()),
            ..CertificateState::default()
        }
    }

    #[test]
    fn a_gateway_is_programmed_when_its_node_is_up_and_its_certificate_is_there() {
        let report = report_of(
            &snapshot(None),
            &running("web.example.ts.net"),
            Entry::Identity,
            &issued(),
            &[],
        );
        assert_eq!(report.programmed, Programmed::Generation(3));
        assert_eq!(report.dns_name, "web.example.ts.net");
    }

    #[test]
    fn a_listener_for_another_name_waits_for_no_certificate_of_the_tailnet() {
        let up = running("web.example.ts.net");
        let pending = CertificateState::default();
        let report = report_of(
            &snapshot(Some("other.example.com")),
            &up,
            Entry::Identity,
            &pending,
            &[],
        );
        assert_eq!(report.programmed, Programmed::Generation(3));
    }

    #[test]
    fn what_keeps_it_from_being_programmed_is_said_with_the_fix() {
        let reason = |status: &Status, certificate: &CertificateState, hostname| {
            let snapshot = snapshot(hostname);
            let tailnet = tailnet_report(&snapshot, status, Entry::Identity);
            unready(&snapshot, status, &tailnet, certificate, &[]).unwrap()
        };
        let login = Status {
            state: "NeedsLogin".into(),
            auth_url: "https://x/y".into(),
            ..Status::default()
        };
        let expired = Status {
            key_expired: true,
            ..running("web.example.ts.net")
        };
        let up = running("web.example.ts.net");
        let error = CertificateState {
            error: "enable HTTPS".into(),
            ..CertificateState::default()
        };
        for (status, certificate, hostname, (expected, text)) in [
            (
                &login,
                &issued(),
                None,
                (Unready::Pending, "login at https://x/y"),
            ),
            (&expired, &issued(), None, (Unready::Pending, "has expired")),
            (
                &up,
                &CertificateState::default(),
                None,
                (
                    Unready::Pending,
                    "waiting for the certificate of web.example.ts.net",
                ),
            ),
            (&up, &error, None, (Unready::Pending, "enable HTTPS")),
            (
                &running("web-1.example.ts.net"),
                &issued(),
                None,
                (Unready::AddressNotUsable, "web-1.example.ts.net"),
            ),
        ] {
            let (found, message) = reason(status, certificate, hostname);
            assert_eq!(found, expected, "{message}");
            assert!(message.contains(text), "{message}");
        }
    }

    #[test]
    fn a_node_that_has_a_key_needs_no_login_before_the_server_says_so() {
        let needs_login = Status {
            state: "NeedsLogin".into(),
            ..Status::default()
        };
        let away = Status {
            control_error: "connection reset".into(),
            ..needs_login.clone()
        };
        let refused = Status {
            login_refused: true,
            ..away.clone()
        };
        let asked = Status {
            auth_url: "https://x/y".into(),
            ..needs_login.clone()
        };
        for (status, with_key) in [
            (needs_login, TailnetState::Joining),
            (away, TailnetState::ControlUnavailable),
            (refused, TailnetState::LoginNeeded),
            (asked, TailnetState::LoginNeeded),
        ] {
            let state = |entry| tailnet_report(&snapshot(None), &status, entry).state;
            assert_eq!(state(Entry::Key), with_key, "{status:?}");
            assert_eq!(state(Entry::Identity), TailnetState::LoginNeeded);
        }
    }
}
