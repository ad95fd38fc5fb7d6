//! `tailway extension` as a process, with TailscaleEgressSets of files.

use super::{
    hooks::{request, service, set},
    messages::route_names,
    serving::{connect, virtual_host},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tailway::extension::proto::envoy_gateway_extension_client::EnvoyGatewayExtensionClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::Endpoint;

struct Process {
    child: Child,
    /// Where Envoy Gateway connects, unless it is a socket.
    address: Option<SocketAddr>,
    admin: SocketAddr,
}

impl Process {
    fn start(configure: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailway"));
        command
            .args(["extension", "--admin-addr", "127.0.0.1:0"])
            .env("TAILWAY_LOG_FORMAT", "json")
            .env_remove("GRPC_PORT")
            .stderr(Stdio::piped());
        configure(&mut command);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut address = None;
        let admin = loop {
            let line = lines.next().expect("it says where its admin pages are");
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            match said(&line, "message").as_deref() {
                Some("serving Envoy Gateway") => {
                    address = said(&line, "address").map(|address| address.parse().unwrap());
                }
                Some("admin pages") => break said(&line, "address").unwrap().parse().unwrap(),
                _ => {}
            }
        };
        // What it says later must find a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            address,
            admin,
        }
    }

    /// Ends it as a cluster does.
    async fn end(mut self) -> bool {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let status = tokio::task::spawn_blocking(move || self.child.wait().unwrap());
        let status = tokio::time::timeout(Duration::from_secs(60), status).await;
        status.unwrap().unwrap().success()
    }

    async fn page(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A field of a log line.
fn said(line: &Value, field: &str) -> Option<String> {
    let value = line.get(field).or_else(|| line["fields"].get(field))?;
    value.as_str().map(str::to_owned)
}

/// Writes a file as whole, or not at all.
fn put(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(&beside, path).unwrap();
}

#[tokio::test]
async fn the_sets_of_files_reach_virtual_hosts_as_they_change_until_the_process_is_told_to_end() {
    let directory = tempfile::tempdir().unwrap();
    let sets = directory.path().join("sets");
    fs::create_dir(&sets).unwrap();
    let socket = directory.path().join("socket");
    let process = Process::start(|command| {
        command.arg("--socket").arg(&socket).arg("-f").arg(&sets);
    });
    let mut client = EnvoyGatewayExtensionClient::new(connect(&socket).await);
    let mut wait_for = async |expected: &[&str]| {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = client.post_virtual_host_modify(virtual_host()).await;
            let names = answer.map(|a| route_names(&a.into_inner().virtual_host));
            if names.as_ref().is_ok_and(|names| names == expected) {
                return;
            }
            assert!(Instant::now() < deadline, "{names:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    wait_for(&["user"]).await;
    let file = sets.join("eg.yaml");
    put(
        &file,
        &set("default", "eg", vec![service("web")]).to_string(),
    );
    wait_for(&["tailscale-egress-web/grpc", "tailscale-egress-web", "user"]).await;
    put(&sets.join("wrong.yaml"), "kind: [");
    put(
        &file,
        &set("default", "eg", vec![service("shop")]).to_string(),
    );
    // A file that cannot be read holds everything as it was, until it can.
    fs::remove_file(sets.join("wrong.yaml")).unwrap();
    wait_for(&[
        "tailscale-egress-shop/grpc",
        "tailscale-egress-shop",
        "user",
    ])
    .await;

    assert!(process.page("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(process.page("/readyz").await.starts_with("HTTP/1.1 200"));
    let metrics = process.page("/metrics").await;
    let counted = r#"tailway_extension_calls_total{hook="VirtualHost",result="changed"}"#;
    assert!(metrics.contains(counted), "{metrics}");

    assert!(process.end().await);
    assert!(!socket.exists());
}

#[tokio::test]
async fn without_an_api_server_policies_are_answered_on_the_port_of_the_environment() {
    let process = Process::start(|command| {
        command
            .arg("--kubernetes=false")
            .env("TAILWAY_EXTENSION_ADDRESS", "127.0.0.1")
            .env("GRPC_PORT", "0");
    });
    let address = process.address.expect("it says where it serves");
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut client = EnvoyGatewayExtensionClient::new(channel.connect().await.unwrap());
    assert!(process.page("/readyz").await.starts_with("HTTP/1.1 200"));
    let mut set = set("default", "eg", vec![service("web"), service("bad")]);
    set["spec"]["services"][1]["upstream"]["protocol"] = json!("UDP");
    let answer = client
        .post_translate_modify(request(&[set], Vec::new()))
        .await;
    assert_eq!(answer.unwrap().into_inner().clusters.len(), 3);
    let config = process.page("/config").await;
    for line in [
        "gateway: default/eg",
        "pathPrefix: /api/web",
        "cluster: external-backend-web",
        "reason: UnsupportedProtocol",
    ] {
        assert!(config.contains(line), "{line}: {config}");
    }
    assert!(process.end().await);
}
