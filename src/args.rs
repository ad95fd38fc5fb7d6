//! The command line: strings become typed values here and nowhere else.

use crate::{api::quantity, model::ObjectName, tailnet::is_tag};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Gateways on a tailnet.
///
/// Every Gateway (Kubernetes Gateway API) becomes a tailnet node that terminates TLS with
/// certificates from the tailnet and proxies to backends.
#[derive(Debug, Parser)]
#[command(name = "tailway", version, max_term_width = 100)]
pub struct Arguments {
    #[command(flatten)]
    pub log: LogArguments,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serve the Gateways of YAML files on this host; changes of the files are applied live
    Run(Box<RunArguments>),
    /// Print the conditions that the objects of YAML files would get; exit 1 if one is not accepted
    Check(CheckArguments),
    /// Make a pod for each Gateway of a Kubernetes cluster, and its status
    Controller(Box<ControllerArguments>),
    /// Be the pod of one Gateway of a cluster; the controller makes these
    Proxy(Box<ProxyArguments>),
    /// Give Envoy Gateway routes and clusters for TailscaleEndpoints: its extension server
    Extension(Box<ExtensionArguments>),
}

#[derive(Args, Debug)]
pub struct LogArguments {
    /// How log lines are written
    #[arg(
        long,
        env = "TAILWAY_LOG_FORMAT",
        default_value = "text",
        global = true
    )]
    pub log_format: LogFormat,
    /// Which log lines are written, such as `debug` or `tailway=debug,tailscale=info`
    #[arg(
        long,
        env = "TAILWAY_LOG",
        default_value = "info",
        global = true,
        value_name = "FILTER"
    )]
    pub log_level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Args, Debug)]
pub struct CheckArguments {
    /// YAML files or directories
    #[arg(short, long = "file", required = true, num_args = 1.., value_name = "PATH")]
    pub files: Vec<PathBuf>,
    /// What is printed
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Yaml,
}

#[derive(Args, Debug)]
pub struct RunArguments {
    /// YAML files or directories
    #[arg(short, long = "file", required = true, num_args = 1.., value_name = "PATH")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub node: NodeArguments,
    #[command(flatten)]
    pub limits: LimitArguments,
    #[command(flatten)]
    pub admin: AdminArguments,
}

#[derive(Args, Debug)]
pub struct ControllerArguments {
    /// Namespace of everything that the controller makes, and of the credentials
    #[arg(
        long,
        env = "POD_NAMESPACE",
        default_value = "tailway-system",
        value_name = "NAMESPACE"
    )]
    pub namespace: String,
    /// Name of this replica
    #[arg(
        long,
        env = "POD_NAME",
        default_value = "tailway-controller",
        value_name = "NAME"
    )]
    pub pod_name: String,
    /// Image of the pods of Gateways whose class names none
    #[arg(long, env = "TAILWAY_PROXY_IMAGE", value_name = "IMAGE")]
    pub proxy_image: String,
    /// When that image is pulled: Always, IfNotPresent or Never
    #[arg(long, env = "TAILWAY_PROXY_IMAGE_PULL_POLICY", value_name = "POLICY")]
    pub proxy_image_pull_policy: Option<String>,
    /// Environment of the pods of all Gateways, such as `TAILWAY_LOG=debug,HTTPS_PROXY=http://proxy:3128`
    #[arg(long, env = "TAILWAY_PROXY_ENV", value_delimiter = ',', value_parser = variable, value_name = "NAME=VALUE")]
    pub proxy_env: Vec<(String, String)>,
    /// Where snapshots are served to the pods
    #[arg(
        long,
        env = "TAILWAY_DISCOVERY_ADDR",
        default_value = "0.0.0.0:9443",
        value_name = "ADDRESS"
    )]
    pub discovery_addr: SocketAddr,
    /// Where the pods find that: name of the Service [default: tailway-controller.NAMESPACE.svc]
    #[arg(long, env = "TAILWAY_DISCOVERY_HOST", value_name = "HOST")]
    pub discovery_host: Option<String>,
    /// Namespaces whose certificates are read [default: all]
    #[arg(
        long,
        env = "TAILWAY_SECRET_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACES"
    )]
    pub secret_namespaces: Option<Vec<String>>,
    /// Tailscale API of classes that name none
    #[arg(long, env = "TAILWAY_API_URL", value_name = "URL")]
    pub api_url: Option<String>,
    /// Control server of classes that name none
    #[arg(long, env = "TS_CONTROL_URL", value_name = "URL")]
    pub control_url: Option<String>,
    /// Domain of the names of Services
    #[arg(
        long,
        env = "TAILWAY_CLUSTER_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    pub cluster_domain: String,
    /// The extension of Envoy Gateway runs with --allow-local-targets; for statuses of TailscaleBackends
    #[arg(long, env = "TAILWAY_EXTENSION_LOCAL_TARGETS")]
    pub allow_local_targets: bool,
    /// How long the removal of a Gateway waits for a Tailscale API that is away
    #[arg(long, env = "TAILWAY_REMOVAL_PATIENCE", default_value = "10m", value_parser = duration, value_name = "DURATION")]
    pub removal_patience: Duration,
    /// Lease that elects the replica that writes
    #[arg(
        long,
        env = "TAILWAY_LEASE",
        default_value = "tailway-controller",
        value_name = "NAME"
    )]
    pub lease: String,
    #[command(flatten)]
    pub admin: AdminArguments,
    /// End the controller, remove what it made for Gateways in the cluster and in the tailnet, and end
    #[arg(long)]
    pub cleanup: bool,
    /// Name of the controller's Deployment, for --cleanup
    #[arg(
        long,
        env = "TAILWAY_DEPLOYMENT",
        default_value = "tailway-controller",
        value_name = "NAME"
    )]
    pub deployment: String,
}

#[derive(Args, Debug)]
pub struct ProxyArguments {
    /// The Gateway that is served
    #[arg(long, env = "TAILWAY_GATEWAY", value_parser = object_name, value_name = "NAMESPACE/NAME")]
    pub gateway: ObjectName,
    /// URL of the controller's snapshots
    #[arg(long, env = "TAILWAY_DISCOVERY", value_name = "URL")]
    pub discovery: String,
    /// The certificate authorities that the controller is known by
    #[arg(
        long,
        env = "TAILWAY_DISCOVERY_CA",
        default_value = "/var/run/tailway/discovery/ca.crt",
        value_name = "FILE"
    )]
    pub discovery_ca: PathBuf,
    /// The token that this pod is known by
    #[arg(
        long,
        env = "TAILWAY_DISCOVERY_TOKEN",
        default_value = "/var/run/secrets/tailway/token",
        value_name = "FILE"
    )]
    pub discovery_token: PathBuf,
    /// Secret of this namespace that keeps the node's identity and certificates
    #[arg(long, env = "TAILWAY_STATE_SECRET", value_name = "NAME")]
    pub state_secret: String,
    /// Where a copy of it and of the last snapshot is kept
    #[arg(
        long,
        env = "TAILWAY_STATE_DIR",
        default_value = "/var/lib/tailway",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,
    /// Name of this pod
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: String,
    /// Namespace of this pod
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: String,
    #[command(flatten)]
    pub engine: EngineArguments,
    #[command(flatten)]
    pub limits: LimitArguments,
    #[command(flatten)]
    pub admin: AdminArguments,
}

#[derive(Args, Debug)]
pub struct ExtensionArguments {
    /// Port that Envoy Gateway connects to
    #[arg(long, env = "GRPC_PORT", default_value_t = 5005, value_name = "PORT")]
    pub port: u16,
    /// Address of that port
    #[arg(
        long,
        env = "TAILWAY_EXTENSION_ADDRESS",
        default_value = "0.0.0.0",
        value_name = "IP"
    )]
    pub address: IpAddr,
    /// A socket in the file system instead
    #[arg(long, env = "TAILWAY_EXTENSION_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Certificate to speak TLS with, in PEM; read again when it changes
    #[arg(
        long,
        env = "TAILWAY_EXTENSION_TLS_CERT",
        requires = "tls_key",
        conflicts_with = "socket",
        value_name = "FILE"
    )]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(
        long,
        env = "TAILWAY_EXTENSION_TLS_KEY",
        requires = "tls_cert",
        value_name = "FILE"
    )]
    pub tls_key: Option<PathBuf>,
    /// Authorities one of which must have signed the certificate of Envoy Gateway, in PEM
    #[arg(
        long,
        env = "TAILWAY_EXTENSION_TLS_CLIENT_CA",
        requires = "tls_cert",
        value_name = "FILE"
    )]
    pub tls_client_ca: Option<PathBuf>,
    /// Largest request and answer: maxMessageSize of Envoy Gateway's configuration
    #[arg(long, env = "TAILWAY_EXTENSION_MAX_MESSAGE", default_value = "1000M", value_parser = size, value_name = "SIZE")]
    pub max_message: usize,
    /// What a call may take; Envoy Gateway asks again after that
    #[arg(long, env = "TAILWAY_EXTENSION_CALL_TIMEOUT", default_value = "1s", value_parser = duration, value_name = "DURATION")]
    pub call_timeout: Duration,
    /// Take services from the policies that Envoy Gateway sends alone; without, calls of the hook
    /// VirtualHost are answered from all TailscaleEgressSets there are
    #[arg(long, env = "TAILWAY_EXTENSION_POLICIES_ONLY")]
    pub policies_only: bool,
    /// YAML files or directories with TailscaleEgressSets, instead of an API server
    #[arg(short, long = "file", num_args = 1.., value_name = "PATH")]
    pub files: Vec<PathBuf>,
    /// Whether TailscaleEgressSets are read from an API server [default: when there is a way to one]
    #[arg(
        long,
        env = "TAILWAY_EXTENSION_KUBERNETES",
        conflicts_with = "files",
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub kubernetes: Option<bool>,
    /// Name of this process in what it writes
    #[arg(
        long,
        env = "POD_NAME",
        default_value = "tailway-extension",
        value_name = "NAME"
    )]
    pub pod_name: String,
    /// Where Envoy has the certificates of the authorities that are believed by default
    #[arg(
        long,
        env = "TAILWAY_EXTENSION_SYSTEM_CA",
        default_value = "/etc/ssl/certs/ca-certificates.crt",
        value_name = "FILE"
    )]
    pub system_ca: String,
    /// Let targets be on Envoy's own host, such as 127.0.0.1
    #[arg(long, env = "TAILWAY_EXTENSION_LOCAL_TARGETS")]
    pub allow_local_targets: bool,
    #[command(flatten)]
    pub admin: AdminArguments,
}

#[derive(Args, Debug)]
pub struct AdminArguments {
    /// Where /healthz, /readyz, /metrics, /config and /status are served
    #[arg(
        id = "admin_addr",
        long = "admin-addr",
        env = "TAILWAY_ADMIN_ADDR",
        default_value = "127.0.0.1:9090",
        value_name = "ADDRESS"
    )]
    pub address: SocketAddr,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Tailnet node")]
pub struct NodeArguments {
    /// Where node identities and certificates are kept, a directory for each Gateway
    /// [default: $XDG_STATE_HOME/tailway or ~/.local/state/tailway]
    #[arg(long, env = "TAILWAY_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Auth key for nodes that have no identity yet; without one a login URL is printed
    #[arg(long, env = "TS_AUTHKEY", hide_env_values = true, value_name = "KEY")]
    pub auth_key: Option<String>,
    /// OAuth client secret instead of an auth key; needs --tags
    #[arg(
        long,
        env = "TS_CLIENT_SECRET",
        hide_env_values = true,
        value_name = "SECRET",
        requires = "tags",
        conflicts_with = "auth_key"
    )]
    pub client_secret: Option<String>,
    /// Tags of the nodes, such as `tag:web,tag:prod`
    #[arg(long, env = "TS_TAGS", value_delimiter = ',', value_parser = tag, value_name = "TAGS")]
    pub tags: Vec<String>,
    #[command(flatten)]
    pub engine: EngineArguments,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Tailnet engine")]
pub struct EngineArguments {
    /// Control server, when it is not Tailscale's
    #[arg(long, env = "TS_CONTROL_URL", value_name = "URL")]
    pub control_url: Option<String>,
    /// How often certificates are looked at; each is renewed when its issuer says (ARI)
    #[arg(long, env = "TAILWAY_CERTIFICATE_CHECK", default_value = "1h", value_parser = duration, value_name = "DURATION")]
    pub certificate_check: Duration,
    /// Let the tailnet forget the nodes once they are gone
    #[arg(long, env = "TAILWAY_EPHEMERAL")]
    pub ephemeral: bool,
    /// Upper bound of a connection's TCP buffers towards the tailnet, each way, in bytes
    #[arg(long, env = "TAILWAY_TCP_BUFFER", default_value_t = 1 << 20, value_name = "BYTES",
          value_parser = clap::value_parser!(u32).range(16_384..=64 << 20))]
    pub tcp_buffer: u32,
    /// Soft limit of the tailnet engine's heap in bytes (GOMEMLIMIT) [default: none]
    #[arg(long, env = "TAILWAY_ENGINE_MEMORY", value_name = "BYTES")]
    pub engine_memory: Option<u64>,
    /// Growth of the tailnet engine's heap between collections in percent (GOGC)
    #[arg(
        long,
        env = "TAILWAY_ENGINE_GC",
        default_value_t = 75,
        value_name = "PERCENT"
    )]
    pub engine_gc: u32,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitArguments {
    /// How long open connections may go on after SIGTERM or SIGINT; a second signal ends at once
    #[arg(long, env = "TAILWAY_DRAIN_TIMEOUT", default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub drain_timeout: Duration,
    /// How long a TLS handshake may take
    #[arg(long, env = "TAILWAY_HANDSHAKE_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub handshake_timeout: Duration,
    /// How long connecting to an endpoint may take
    #[arg(long, env = "TAILWAY_CONNECT_TIMEOUT", default_value = "5s", value_parser = duration, value_name = "DURATION")]
    pub connect_timeout: Duration,
    /// End connections that moved no byte for so long [default: never]
    #[arg(long, env = "TAILWAY_IDLE_TIMEOUT", value_parser = duration, value_name = "DURATION")]
    pub idle_timeout: Option<Duration>,
    /// How long the head of a request may take
    #[arg(long, env = "TAILWAY_HEAD_TIMEOUT", default_value = "60s", value_parser = duration, value_name = "DURATION")]
    pub head_timeout: Duration,
    /// End requests whose bodies do not move for so long
    #[arg(long, env = "TAILWAY_BODY_TIMEOUT", default_value = "5m", value_parser = duration, value_name = "DURATION")]
    pub body_timeout: Duration,
    /// Open connections per listener
    #[arg(
        long,
        env = "TAILWAY_MAX_CONNECTIONS",
        default_value_t = 10_000,
        value_name = "COUNT"
    )]
    pub max_connections: usize,
    /// Open connections per listener and tailnet peer
    #[arg(
        long,
        env = "TAILWAY_MAX_CONNECTIONS_PER_PEER",
        default_value_t = 1_000,
        value_name = "COUNT"
    )]
    pub max_connections_per_peer: usize,
    /// End flows of UDP on which no datagram passed for so long
    #[arg(long, env = "TAILWAY_UDP_IDLE_TIMEOUT", default_value = "60s", value_parser = duration, value_name = "DURATION")]
    pub udp_idle_timeout: Duration,
    /// Open flows per UDP listener
    #[arg(
        long,
        env = "TAILWAY_MAX_UDP_FLOWS",
        default_value_t = 10_000,
        value_name = "COUNT"
    )]
    pub max_udp_flows: usize,
    /// Open flows per UDP listener and tailnet peer
    #[arg(
        long,
        env = "TAILWAY_MAX_UDP_FLOWS_PER_PEER",
        default_value_t = 1_000,
        value_name = "COUNT"
    )]
    pub max_udp_flows_per_peer: usize,
}

/// Parses `500ms`, `10s`, `5m`, `1h`: the units of Gateway API durations (GEP-2257), one at a time.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a duration is a whole number and ms, s, m or h, such as 30s".into()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|&millis| millis > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| "a duration is a whole number above 0 and ms, s, m or h".into())
}

/// Parses the sizes of Kubernetes: `4M` is 4,000,000 bytes, `4Mi` 4,194,304.
fn size(text: &str) -> Result<usize, String> {
    quantity::bytes(text)
        .and_then(|size| usize::try_from(size).ok())
        .filter(|&size| size > 0)
        .ok_or_else(|| {
            "a size is a whole number above 0 and perhaps k, M, G, Ki, Mi or Gi, such as 1000M"
                .into()
        })
}

/// Parses `NAME=VALUE`.
fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("an environment variable is NAME=VALUE".into()),
    }
}

fn object_name(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err("a Gateway is NAMESPACE/NAME".into()),
    }
}

fn tag(text: &str) -> Result<String, String> {
    let text = text.trim();
    match is_tag(text) {
        true => Ok(text.to_owned()),
        false => Err("a tag is `tag:` and a letter, then letters, digits and dashes".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations_have_a_unit_and_are_above_zero() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in [
            "",
            "5",
            "s",
            "0s",
            "-1s",
            "1.5s",
            "1d",
            "99999999999999999999h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes_are_those_of_kubernetes() {
        for (text, bytes) in [
            ("1", 1),
            ("4M", 4_000_000),
            ("4Mi", 4 << 20),
            ("1000M", 1_000_000_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in [
            "",
            "0",
            "M",
            "-1M",
            "1.5M",
            "4m",
            "4MB",
            "99999999999999999999G",
        ] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn tags_are_spelled_as_in_the_tailnet_policy() {
        assert_eq!(tag(" tag:web-1"), Ok("tag:web-1".into()));
        for wrong in ["web", "tag:", "tag:1a", "tag:a b", "tag:a:b"] {
            assert!(tag(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_client_secret_needs_tags() {
        let parse = |words: &[&str]| Arguments::try_parse_from(words.iter().copied());
        assert!(parse(&["tailway", "run", "-f", "x", "--client-secret", "s"]).is_err());
        assert!(
            parse(&[
                "tailway",
                "run",
                "-f",
                "x",
                "--client-secret",
                "s",
                "--tags",
                "tag:a"
            ])
            .is_ok()
        );
    }
}
