//! A Kubernetes of a test's own. It ends with its value, or with the process of the tests.

use super::network::Network;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, process::Command, sync::OnceCell};

/// How long anything in a cluster may take before it counts as never.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The image of the binary under test, as pods name it.
pub const IMAGE: &str = "tailway/tailway:dev";

/// The image of `lab/probe`, as pods name it.
pub const PROBE: &str = "tailway.test/probe:lab";

/// The node, where the API server listens too.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// What of Kubernetes runs in a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// etcd, API server and controller manager
    Control,
    /// all of it, with a node that runs pods
    Node,
}

pub struct Lab {
    runner: Child,
    pid: String,
    network: Network,
    kubeconfig: OnceLock<PathBuf>,
    // Last, as the others live in it.
    directory: TempDir,
}

impl Lab {
    /// A fresh cluster, with the image of tailway when pods can run in it.
    pub async fn up(tier: Tier) -> Self {
        let (lab, archive) = tokio::join!(
            tokio::task::spawn_blocking(move || Self::boot(tier)),
            tokio::task::spawn_blocking(move || (tier == Tier::Node).then(image)),
        );
        let lab = lab.expect("the lab comes up");
        if let Some(archive) = archive.expect("the image is packed") {
            lab.import(archive).await;
        }
        lab
    }

    /// The cluster that tests share when they need none of their own. A test keeps to namespaces
    /// and names that no other test has.
    pub async fn shared() -> Shared {
        static LAB: OnceCell<Lab> = OnceCell::const_new();
        Shared(LAB.get_or_init(|| Self::up(Tier::Node)).await)
    }

    fn boot(tier: Tier) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("tailway-lab-")
            .tempdir()
            .unwrap();
        let mut runner = std::process::Command::new(script("run.sh"))
            .arg(match tier {
                Tier::Control => "control",
                Tier::Node => "node",
            })
            .env("LAB", directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(runner.stdout.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        assert_eq!(said, "ready\n", "the lab did not come up, see above");
        let pid = fs::read_to_string(directory.path().join("pid")).unwrap();
        let pid = pid.trim().to_owned();
        Self {
            network: Network::enter(Path::new(&format!("/proc/{pid}/ns/net"))),
            runner,
            pid,
            kubeconfig: OnceLock::new(),
            directory,
        }
    }

    /// Where the lab keeps its state, keys and logs.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The node's network: futures on it reach the API server, pods and Services.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// `program` with the lab's processes, files and network, and its administrator's kubeconfig.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(script("in.sh"));
        command
            .arg(program)
            .env("LAB", self.directory())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// What `kubectl` prints. Fails with what it says on stderr.
    pub async fn kubectl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        let mut command = self.command("kubectl");
        command.args(arguments);
        succeed(command, None).await
    }

    pub async fn try_kubectl<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String, String> {
        let mut command = self.command("kubectl");
        command.args(arguments);
        finish(command, None).await
    }

    /// `kubectl apply` of documents.
    pub async fn apply(&self, yaml: &str) -> String {
        match self.try_apply(yaml).await {
            Ok(text) => text,
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn try_apply(&self, yaml: &str) -> Result<String, String> {
        let mut command = self.command("kubectl");
        command.args(["apply", "--filename", "-"]);
        finish(command, Some(yaml)).await
    }

    /// `kubectl delete` of documents, which waits until they are gone.
    pub async fn delete(&self, yaml: &str) -> String {
        let mut command = self.command("kubectl");
        command.args(["delete", "--filename", "-"]);
        succeed(command, Some(yaml)).await
    }

    /// `kubectl wait`, such as for `["--for=condition=Ready", "pod/web"]`.
    pub async fn wait<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) {
        let mut command = self.command("kubectl");
        command
            .arg("wait")
            .arg(format!("--timeout={}s", DEADLINE.as_secs()))
            .args(arguments);
        succeed(command, None).await;
    }

    /// An object as JSON, `None` when there is none: `lab.object("default", "service/web")`.
    pub async fn object(&self, namespace: &str, object: &str) -> Option<Value> {
        let text = self
            .kubectl([
                "get",
                object,
                "--namespace",
                namespace,
                "--ignore-not-found",
                "--output=json",
            ])
            .await;
        (!text.is_empty()).then(|| serde_json::from_str(&text).unwrap())
    }

    /// Waits until `condition` gives a value.
    pub async fn eventually<T, F: Future<Output = Option<T>>>(
        &self,
        what: &str,
        mut condition: impl FnMut() -> F,
    ) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Runs a program in a pod: `lab.exec("default", "client", ["/probe", "get", url])`.
    pub async fn exec<A: AsRef<OsStr>>(
        &self,
        namespace: &str,
        pod: &str,
        program: impl IntoIterator<Item = A>,
    ) -> Result<String, String> {
        let mut command = self.command("kubectl");
        command
            .args(["exec", "--namespace", namespace, pod, "--"])
            .args(program);
        finish(command, None).await
    }

    /// Installs the Gateway API, standard channel.
    pub async fn install_gateway_api(&self) {
        let file = self.directory().join("build/gateway-api.yaml");
        // Too large for the annotation of a client's own apply.
        let mut command = self.command("kubectl");
        command
            .args(["apply", "--server-side", "--filename"])
            .arg(&file);
        succeed(command, None).await;
        self.wait([
            "--for=condition=Established",
            "customresourcedefinition",
            "--all",
        ])
        .await;
    }

    /// Loads an OCI image archive into the node.
    pub async fn import(&self, archive: &Path) {
        let mut command = self.command("ctr");
        command
            .args(["images", "import", "--no-unpack"])
            .arg(archive);
        succeed(command, None).await;
    }

    /// Kills a process of the cluster, such as `kube-apiserver`, until it is started again.
    pub async fn kill(&self, name: &str) {
        self.service("kill", name).await;
    }

    /// Starts what was killed.
    pub async fn start(&self, name: &str) {
        self.service("start", name).await;
    }

    async fn service(&self, verb: &str, name: &str) {
        let mut command = self.command(script("service.sh"));
        command.args([verb, name]);
        succeed(command, None).await;
    }

    /// Waits for the API server after its start.
    pub async fn api_ready(&self) {
        self.eventually("the API server is ready", || async {
            self.try_kubectl(["get", "--raw", "/readyz"]).await.ok()
        })
        .await;
    }

    /// A kubeconfig of the administrator for programs that run outside of the lab; inside, each
    /// has it already.
    pub fn kubeconfig(&self) -> &Path {
        self.kubeconfig.get_or_init(|| {
            let api = self.network.forward(SocketAddr::from((NODE, 6443)));
            let inside = fs::read_to_string(self.directory().join("admin.kubeconfig")).unwrap();
            self.write(
                "outside.kubeconfig",
                &inside.replace(&format!("{NODE}:6443"), &api.to_string()),
            )
        })
    }

    /// The same with the rights of a ServiceAccount, for an hour.
    pub async fn kubeconfig_of(&self, namespace: &str, account: &str) -> PathBuf {
        let token = self
            .kubectl(["create", "token", account, "--namespace", namespace])
            .await;
        let administrator = fs::read_to_string(self.kubeconfig()).unwrap();
        let lines = administrator.lines().map(|line| match line {
            line if line.starts_with("users:") => {
                format!("users: [{{name: admin, user: {{token: \"{token}\"}}}}]\n")
            }
            line => format!("{line}\n"),
        });
        let name = format!("{namespace}.{account}.kubeconfig");
        self.write(&name, &lines.collect::<String>())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A client of whom a kubeconfig is.
    pub async fn client(&self, kubeconfig: &Path) -> Client {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        Client::try_from(config).unwrap()
    }

    /// A host beside the node, 10.99.0.`number`, numbers from 2.
    pub async fn host(&self, name: &str, number: u8) -> Host<'_> {
        let address = Ipv4Addr::new(10, 99, 0, number);
        let mut command = self.on_host(name, address);
        command.arg("true");
        succeed(command, None).await;
        let namespace = format!("/proc/{}/root/run/netns/{name}", self.pid);
        Host {
            lab: self,
            name: name.to_owned(),
            address,
            network: Network::enter(Path::new(&namespace)),
        }
    }

    fn on_host(&self, name: &str, address: Ipv4Addr) -> Command {
        let mut command = Command::new(script("host.sh"));
        command
            .args([name, &address.to_string()])
            .env("LAB", self.directory())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Tells what a person would look at first, and keeps the logs.
    fn explain(&self) {
        for what in [
            &["pods,events"][..],
            &["gatewayclasses,gateways", "--output=yaml"],
        ] {
            let shown = std::process::Command::new(script("in.sh"))
                .args(["kubectl", "get", "--all-namespaces"])
                .args(what)
                .env("LAB", self.directory())
                .output();
            if let Ok(shown) = shown {
                eprintln!("{}", String::from_utf8_lossy(&shown.stdout));
            }
        }
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(self.directory().file_name().unwrap_or_default());
        let copied = std::process::Command::new("cp")
            .arg("--recursive")
            .arg(self.directory().join("log"))
            .arg(&kept)
            .status();
        if copied.is_ok_and(|status| status.success()) {
            eprintln!("the logs of the lab and its pods are in {}", kept.display());
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.explain();
        }
        drop(self.runner.stdin.take());
        if let Err(error) = self.runner.wait() {
            eprintln!(
                "the lab in {:?} was not waited for: {error}",
                self.directory
            );
        }
    }
}

/// The lab that tests share.
pub struct Shared(&'static Lab);

impl Shared {
    pub fn lab(&self) -> &'static Lab {
        self.0
    }
}

impl Deref for Shared {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.explain();
        }
    }
}

/// A host that is no node: it reaches the API server, pods and Services, and pods reach it.
pub struct Host<'a> {
    lab: &'a Lab,
    name: String,
    pub address: Ipv4Addr,
    /// Futures on it have their sockets on the host.
    pub network: Network,
}

impl Host<'_> {
    /// `program` on the host. It ends with its value.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.lab.on_host(&self.name, self.address);
        command.arg(program);
        command
    }
}

/// A program of the folder `lab`.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/cluster/lab")
        .join(name)
}

/// Runs `command` to its end and gives what it wrote, or how it failed.
pub async fn finish(mut command: Command, input: Option<&str>) -> Result<String, String> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().unwrap();
    if let (Some(mut stdin), Some(text)) = (child.stdin.take(), input) {
        // A program that does not want its input says why on stderr.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    // A while longer than what bounds itself, so that it can say what it waited for.
    let limit = DEADLINE + Duration::from_secs(10);
    let output = tokio::time::timeout(limit, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("not within {limit:?}: {command:?}"))
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{:?}: {}: {text}{error}",
        command.as_std().get_args(),
        output.status
    ))
}

/// The same for what must not fail.
pub async fn succeed(command: Command, input: Option<&str>) -> String {
    match finish(command, input).await {
        Ok(text) => text,
        Err(error) => panic!("{error}"),
    }
}

/// The binary under test as an image archive, packed once.
fn image() -> &'static Path {
    static ARCHIVE: OnceLock<PathBuf> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let archive = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tailway.tar");
        let packed = std::process::Command::new(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/image/tailway.sh"),
        )
        .arg("--plain")
        .arg(env!("CARGO_BIN_EXE_tailway"))
        .args([archive.as_os_str(), OsStr::new(IMAGE)])
        .stdout(Stdio::null())
        .status()
        .unwrap();
        assert!(packed.success(), "the image cannot be packed");
        archive
    })
}
