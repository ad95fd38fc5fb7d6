//! `tailway extension` as a process, with TailscaleEgressSets of files.

use super::{
    hooks::{service, set},
    messages::route_names,
    serving::{connect, virtual_host},
};
use serde_json::Value;
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

struct Process {
    child: Child,
    admin: SocketAddr,
}

impl Process {
    fn start(directory: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tailway"))
            .args(["extension", "--admin-addr", "127.0.0.1:0", "--socket"])
            .arg(directory.join("socket"))
            .arg("-f")
            .arg(directory.join("sets"))
            .env("TAILWAY_LOG_FORMAT", "json")
            .env_remove("GRPC_PORT")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines.find_map(|line| {
            let line: Value = serde_json::from_str(&line.unwrap()).ok()?;
            let line = line.to_string();
            let (_, rest) = line
                .contains("admin pages")
                .then(|| line.split_once("127.0.0.1:"))??;
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            format!("127.0.0.1:{port}").parse().ok()
        });
        // What it says later must find a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            admin: address.expect("it says where its admin pages are"),
        }
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
    let mut process = Process::start(directory.path());
    let socket = directory.path().join("socket");
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

    let pid = process.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let status = tokio::task::spawn_blocking(move || process.child.wait().unwrap());
    let status = tokio::time::timeout(Duration::from_secs(60), status).await;
    assert!(status.unwrap().unwrap().success());
    assert!(!socket.exists());
}
