//! The world of these tests: a local tailnet, `tailway run`, clients and backends.

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};
use tailway::tailnet::{Auth, Connection, Node, NodeConfig, State};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, Command},
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How long anything may take before it counts as never.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Fails instead of hanging.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// The `localtailnet` program, built once unless `make` did.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(path) = env::var_os("TAILWAY_LOCALTAILNET").map(PathBuf::from)
            && path.exists()
        {
            return path;
        }
        let target = Path::new(env!("CARGO_BIN_EXE_tailway"))
            .parent()
            .unwrap()
            .join("localtailnet");
        let built = std::process::Command::new("go")
            .args([
                "build",
                "-trimpath",
                "-buildvcs=false",
                "-tags",
                "netgo,osusergo",
                "-o",
            ])
            .arg(&target)
            .arg("./cmd/localtailnet")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("vendor/libtailscale"))
            .status();
        assert!(
            built.expect("go is installed").success(),
            "localtailnet does not build"
        );
        target
    })
}

/// A tailnet of its own. Ends with its value, since its stdin does.
pub struct Tailnet {
    ready: Value,
    admin: SocketAddr,
    _child: Child,
    _stdin: ChildStdin,
}

impl Tailnet {
    pub async fn start() -> Self {
        Self::start_as(Command::new(program()), |admin| admin).await
    }

    /// The same by a command of one's own, which runs it elsewhere; `reach` says where its admin
    /// API is from here.
    pub async fn start_as(
        mut command: Command,
        reach: impl FnOnce(SocketAddr) -> SocketAddr,
    ) -> Self {
        let mut child = command
            .arg("-exit-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = soon("the local tailnet is ready", lines.next_line())
            .await
            .unwrap();
        let ready: Value = serde_json::from_str(&line.expect("a ready line")).unwrap();
        let admin = ready["admin_url"].as_str().unwrap();
        let admin = admin.trim_start_matches("http://").parse().unwrap();
        Self {
            ready,
            admin: reach(admin),
            _child: child,
            _stdin: stdin,
        }
    }

    pub fn field(&self, name: &str) -> &str {
        self.ready[name].as_str().unwrap()
    }

    /// The environment that nodes of this tailnet need.
    pub fn environment(&self) -> &serde_json::Map<String, Value> {
        self.ready["env"].as_object().unwrap()
    }

    pub fn domain(&self) -> &str {
        self.field("domain")
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ask(Method::GET, path, Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.ask(Method::POST, path, body).await
    }

    pub async fn delete(&self, path: &str) -> Value {
        self.ask(Method::DELETE, path, Value::Null).await
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> Value {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (status, text) = http(self.admin, method, path, body).await;
        assert!(status.is_success(), "{path}: {status}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// Requests a page as the tailnet client `visitor`.
    pub async fn visit(&self, url: &str) -> Result<Value, String> {
        self.post("/client/visitor", json!({})).await;
        let body = json!({ "url": url, "timeout": "20s" }).to_string();
        let (status, text) = http(self.admin, Method::POST, "/client/visitor/http", body).await;
        if status.is_success() {
            Ok(serde_json::from_str(&text).unwrap())
        } else {
            Err(text)
        }
    }

    /// A connection over the tailnet, of the client `visitor`.
    pub async fn tunnel(&self, address: &str) -> Result<TcpStream, String> {
        self.post("/client/visitor", json!({})).await;
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!(
            "GET /client/visitor/tunnel?address={address} HTTP/1.1\r\nHost: tailnet\r\nConnection: Upgrade\r\nUpgrade: tailnet-tcp\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let byte = soon("the answer to the tunnel", stream.read_u8()).await;
            answer.push(byte.map_err(|error| error.to_string())?);
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        if answer.starts_with("HTTP/1.1 101 ") {
            Ok(stream)
        } else {
            Err(answer)
        }
    }

    /// A node of this tailnet in this process.
    pub async fn node(&self, hostname: &str) -> Node {
        let node = Node::start(self.config(hostname, State::Memory))
            .await
            .unwrap();
        soon("the node is up", node.up(None)).await.unwrap();
        node
    }

    pub fn config(&self, hostname: &str, state: State) -> NodeConfig {
        NodeConfig {
            auth: Auth::Key(self.field("auth_key").into()),
            control_url: Some(self.field("control_url").into()),
            ..NodeConfig::new(hostname, state)
        }
    }

    /// A TLS connection to `address` that asks for `name` and verifies the tailnet's root.
    pub async fn tls(&self, node: &Node, address: &str, name: &str) -> TlsStream<Connection> {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.field("root_ca_pem").as_bytes()).unwrap();
        roots.add(root).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = node.dial(address, DEADLINE).await.unwrap().open().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        soon(
            "a handshake",
            TlsConnector::from(Arc::new(config)).connect(name, stream),
        )
        .await
        .unwrap()
    }
}

/// One HTTP request to a loopback address.
pub async fn http(
    to: SocketAddr,
    method: Method,
    path: &str,
    body: String,
) -> (StatusCode, String) {
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", to.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = soon(path, sender.send_request(request)).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// `tailway run` as a process. Killed with its value.
pub struct Tailway {
    pub child: Child,
    pub directory: TempDir,
    admin: SocketAddr,
    output: Arc<Mutex<Vec<String>>>,
    errors: Arc<Mutex<Vec<String>>>,
}

/// How [`Tailway`] is started.
pub struct Options<'a> {
    pub yaml: &'a str,
    pub auth_key: Option<&'a str>,
    pub arguments: &'a [&'a str],
}

impl Tailway {
    /// Runs the Gateways of `yaml` on `tailnet`, with state in a fresh directory.
    pub async fn start(tailnet: &Tailnet, yaml: &str) -> Self {
        let auth_key = Some(tailnet.field("auth_key"));
        Self::start_with(
            tailnet,
            &Options {
                yaml,
                auth_key,
                arguments: &[],
            },
        )
        .await
    }

    pub async fn start_with(tailnet: &Tailnet, options: &Options<'_>) -> Self {
        Self::start_in(tailnet, options, TempDir::new().unwrap()).await
    }

    /// The same in a directory that may hold state already.
    pub async fn start_in(tailnet: &Tailnet, options: &Options<'_>, directory: TempDir) -> Self {
        std::fs::write(directory.path().join("gateway.yaml"), options.yaml).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailway"));
        command
            .arg("run")
            .arg("-f")
            .arg(directory.path().join("gateway.yaml"))
            .arg("--state-dir")
            .arg(directory.path().join("state"))
            .args([
                "--admin-addr",
                "127.0.0.1:0",
                "--control-url",
                tailnet.field("control_url"),
            ])
            .args(["--log-level", "info,tailway::access=debug"])
            .args(options.arguments)
            .env(
                "TS_DEBUG_ACME_DIRECTORY_URL",
                tailnet.field("acme_directory_url"),
            )
            .env_remove("TS_AUTHKEY")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(key) = options.auth_key {
            command.env("TS_AUTHKEY", key);
        }
        let mut child = command.spawn().unwrap();
        let output = collect(child.stdout.take().unwrap());
        let errors = collect(child.stderr.take().unwrap());
        let admin = eventually("the admin address is logged", || async {
            let lines = errors.lock().unwrap();
            let line = lines.iter().find(|line| line.contains("admin pages"))?;
            line.rsplit_once("address=")?.1.parse().ok()
        })
        .await;
        Self {
            child,
            directory,
            admin,
            output,
            errors,
        }
    }

    pub async fn page(&self, path: &str) -> (StatusCode, String) {
        http(self.admin, Method::GET, path, String::new()).await
    }

    pub async fn ready(&self) {
        eventually("tailway is ready", || async {
            let (status, text) = self.page("/readyz").await;
            if status != StatusCode::OK && std::env::var_os("TAILWAY_TEST_VERBOSE").is_some() {
                eprintln!("{text}");
            }
            (status == StatusCode::OK).then_some(())
        })
        .await;
    }

    /// Waits until it is not ready and says something with `text`.
    pub async fn unready(&self, text: &str) -> String {
        eventually(&format!("not ready with {text:?}"), || async {
            let (status, answer) = self.page("/readyz").await;
            (status == StatusCode::SERVICE_UNAVAILABLE && answer.contains(text)).then_some(answer)
        })
        .await
    }

    /// Waits for a line on stdout that holds `text`.
    pub async fn says(&self, text: &str) -> String {
        line_with(&self.output, text).await
    }

    /// Waits for a log line that holds `text`.
    pub async fn logs(&self, text: &str) -> String {
        line_with(&self.errors, text).await
    }

    pub fn log(&self) -> String {
        self.errors.lock().unwrap().join("\n")
    }

    /// Replaces the YAML file as editors do: by renaming a new one over it.
    pub fn edit(&self, yaml: &str) {
        let fresh = self.directory.path().join("gateway.yaml.new");
        std::fs::write(&fresh, yaml).unwrap();
        std::fs::rename(fresh, self.directory.path().join("gateway.yaml")).unwrap();
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Ends it in order and gives its directory back.
    pub async fn stop(mut self) -> TempDir {
        self.signal("TERM");
        let status = soon("tailway ends", self.child.wait()).await.unwrap();
        assert!(status.success(), "{status}: {}", self.log());
        self.directory
    }
}

async fn line_with(lines: &Mutex<Vec<String>>, text: &str) -> String {
    eventually(&format!("a line with {text:?}"), || async {
        lines
            .lock()
            .unwrap()
            .iter()
            .find(|line| line.contains(text))
            .cloned()
    })
    .await
}

fn collect(stream: impl tokio::io::AsyncRead + Unpin + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    tokio::spawn(async move {
        let mut reader = BufReader::new(stream).lines();
        while let Ok(Some(line)) = reader.next_line().await {
            sink.lock().unwrap().push(line);
        }
    });
    lines
}

/// A Gateway with a TLS listener on 443 and a TCP listener on 7000, both to `port` of this host.
pub fn gateway(name: &str, port: u16) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: tailnet}}
spec: {{controllerName: tailway.michaelbeaumont.github.io/controller}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec:
  gatewayClassName: tailnet
  addresses: [{{type: Hostname, value: {name}}}]
  listeners:
    - name: https
      port: 443
      protocol: TLS
      tls: {{mode: Terminate, options: {{gateway.tailscale.com/certificate: tailnet}}}}
    - {{name: tcp, port: 7000, protocol: TCP}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: {name}}}
spec:
  parentRefs: [{{name: {name}}}]
  rules: [{{backendRefs: [{{name: {name}, port: 80}}]}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: ExternalName
  externalName: 127.0.0.1
  ports: [{{port: 80, targetPort: {port}}}]
"
    )
}

/// A backend that answers each connection with `serve`. Gives its port.
pub async fn backend<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// A backend that sends back what it gets, and FIN for FIN.
pub async fn echo() -> u16 {
    backend(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        // A client that resets ends the echo, which is what it wants.
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

/// A backend that answers any HTTP request with `text`.
pub async fn page(text: &'static str) -> u16 {
    backend(move |mut stream| async move {
        let mut request = vec![0; 4096];
        if stream.read(&mut request).await.is_ok() {
            let response = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
            let _ = stream.write_all(response.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}
