//! Envoy Gateway, its Envoys, and the extension beside them.

use super::{
    client::{self, Answer},
    lab::{Namespaces, Program, programs},
    upstream::{Names, Service},
};
use crate::{cluster::network::Network, tailnet::world::eventually};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU16, Ordering},
    },
};
use tailway::api::upstream::{
    Protocol, Target, Upstream,
    egress::{GatewayRef, RoutedService, TailscaleEgressSet, TailscaleEgressSetSpec},
};
use tokio::sync::OnceCell;

/// How Envoy Gateway and the extension are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// There is no extension.
    Alone,
    /// As `envoy-gateway-config.yaml` has it, but for a socket: each call brings all that it is
    /// about.
    Policies,
    /// As `hooks-only.yaml` has it: the extension holds what it adds.
    Held,
}

/// What names lead to in the namespaces of a scene.
const HOSTS: &str = "127.0.0.1 localhost
127.0.0.1 tailscale-gateway-extension-server.tailscale-gateway-system.svc.cluster.local
";

const CLASS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: eg}
spec:
  controllerName: gateway.envoyproxy.io/gatewayclass-controller
  parametersRef: {group: gateway.envoyproxy.io, kind: EnvoyProxy, name: host, namespace: default}
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyProxy
metadata: {name: host, namespace: default}
spec:
  # It does not find the version by itself.
  provider: {type: Host, host: {envoyVersion: 1.39.1}}
  # A second Envoy would not start otherwise.
  extraArgs: [--disable-hot-restart, --concurrency, "1"]
"#;

pub struct Scene {
    pub wiring: Wiring,
    pub names: Names,
    extension: Mutex<Option<Program>>,
    gateway: Program,
    // Last, as the others live in it.
    namespaces: Namespaces,
}

impl Scene {
    /// Envoy Gateway with an extension, unless there is none in this wiring.
    pub async fn start(wiring: Wiring) -> Self {
        let scene = Self::start_without_extension(wiring, "64M").await;
        scene.start_extension().await;
        scene
    }

    /// The same without the extension, and with a limit of what Envoy Gateway takes.
    pub async fn start_without_extension(wiring: Wiring, limit: &str) -> Self {
        let namespaces = Namespaces::new(HOSTS);
        let home = namespaces.directory();
        for directory in ["objects", "sets", "envoys/envoy-versions/1.39.1/bin"] {
            fs::create_dir_all(home.join(directory)).unwrap();
        }
        std::os::unix::fs::symlink(
            programs().join("envoy"),
            home.join("envoys/envoy-versions/1.39.1/bin/envoy"),
        )
        .unwrap();
        fs::write(home.join("objects/class.yaml"), CLASS).unwrap();
        let config = home.join("gateway.yaml");
        fs::write(&config, configuration(wiring, home, limit).to_string()).unwrap();

        let program = programs().join("envoy-gateway");
        namespaces
            .start("certificates", &program, |command| {
                let arguments = ["certgen", "--local", "--config-home"];
                command.args(arguments).arg(home.join("config"));
            })
            .finish();
        let gateway = namespaces.start("envoy-gateway", &program, |command| {
            command.args(["server", "--config-path"]).arg(&config);
        });
        Self {
            wiring,
            names: Names::start(namespaces.network()).await,
            extension: Mutex::default(),
            gateway,
            namespaces,
        }
    }

    /// The scene that tests share when they need none of their own.
    pub async fn shared(wiring: Wiring) -> Shared {
        static SCENES: [OnceCell<Scene>; 3] = [const { OnceCell::const_new() }; 3];
        Shared(
            SCENES[wiring as usize]
                .get_or_init(|| Self::start(wiring))
                .await,
        )
    }

    pub fn network(&self) -> &Network {
        self.namespaces.network()
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        self.namespaces.directory()
    }

    /// A service in the network of the scene.
    pub async fn service(&self, name: &str) -> Service {
        Service::start(self.network(), name).await
    }

    /// What Envoy Gateway has logged.
    pub fn log(&self) -> String {
        self.gateway.log()
    }

    /// Waits until Envoy Gateway has logged `text` after the first `from` bytes.
    pub async fn says(&self, text: &str, from: usize) {
        self.gateway.says(text, from).await;
    }

    /// Starts the extension, if there is one in this wiring.
    pub async fn start_extension(&self) {
        let home = self.directory();
        let configure = |command: &mut std::process::Command| {
            command.args(["extension", "--admin-addr", "127.0.0.1:0"]);
            match self.wiring {
                Wiring::Alone | Wiring::Policies => {
                    command.arg("--policies-only");
                    command.arg("--socket").arg(home.join("extension.sock"))
                }
                Wiring::Held => command.arg("-f").arg(home.join("sets")),
            };
        };
        if self.wiring != Wiring::Alone {
            let program = Path::new(env!("CARGO_BIN_EXE_tailway"));
            let started = self.namespaces.start("extension", program, configure);
            *self.extension.lock().unwrap() = Some(started);
        }
    }

    /// Kills the extension.
    pub fn kill_extension(&self) {
        self.extension.lock().unwrap().take();
    }

    /// Sends the extension a signal, such as `STOP`.
    pub async fn signal_extension(&self, name: &str) {
        let extension = self.extension.lock().unwrap().take().unwrap();
        extension.signal(name).await;
        *self.extension.lock().unwrap() = Some(extension);
    }

    /// A Gateway with a listener for HTTP on a port of its own, and the further objects of `yaml`.
    pub fn site(&self, name: &str, yaml: &str) -> Site<'_> {
        static PORTS: AtomicU16 = AtomicU16::new(7000);
        let port = PORTS.fetch_add(1, Ordering::Relaxed);
        self.site_on(port, name, yaml)
    }

    pub fn site_on(&self, port: u16, name: &str, yaml: &str) -> Site<'_> {
        let site = Site {
            scene: self,
            name: name.to_owned(),
            port,
            objects: RefCell::default(),
        };
        site.write(yaml);
        site
    }

    fn explain(&self) {
        self.namespaces.explain();
    }
}

/// The scene that tests share.
pub struct Shared(&'static Scene);

impl Shared {
    pub fn scene(&self) -> &'static Scene {
        self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.explain();
        }
    }
}

/// The configuration of Envoy Gateway. JSON is YAML.
fn configuration(wiring: Wiring, home: &Path, limit: &str) -> Value {
    let mut config = json!({
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyGateway",
        "gateway": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
        "provider": {
            "type": "Custom",
            "custom": {
                "resource": {"type": "File", "file": {"paths": [home.join("objects")]}},
                "infrastructure": {
                    "type": "Host",
                    "host": {
                        "configHome": home.join("config"),
                        "dataHome": home.join("envoys"),
                        "stateHome": home.join("log"),
                        "runtimeDir": home.join("running"),
                    },
                },
            },
        },
        "extensionApis": {"enableBackend": true},
    });
    match wiring {
        Wiring::Alone => return config,
        Wiring::Policies => {
            let mut manager = shipped("envoy-gateway-config.yaml");
            manager["maxMessageSize"] = limit.into();
            manager["service"] = json!({"unix": {"path": home.join("extension.sock")}});
            config["extensionManager"] = manager;
        }
        Wiring::Held => config["extensionManager"] = shipped("hooks-only.yaml"),
    }
    config
}

/// What a manifest of ours tells Envoy Gateway of the extension.
fn shipped(name: &str) -> Value {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/envoy-gateway");
    let text = fs::read_to_string(manifests.join(name)).unwrap();
    let map: Value = serde_saphyr::from_str(&text).unwrap();
    let config = map["data"]["envoy-gateway.yaml"].as_str().unwrap();
    let config: Value = serde_saphyr::from_str(config).unwrap();
    config["extensionManager"].clone()
}

/// A Gateway of a test's own in a scene. Its objects go with it.
pub struct Site<'a> {
    pub scene: &'a Scene,
    pub name: String,
    pub port: u16,
    objects: RefCell<String>,
}

impl Site<'_> {
    /// Replaces its objects by the Gateway and `yaml`, where `SITE` stands for its name.
    pub fn write(&self, yaml: &str) {
        let port = self.port;
        let listeners = format!("[{{name: http, port: {port}, protocol: HTTP}}]");
        self.write_with(&listeners, yaml);
    }

    /// The same with other listeners.
    pub fn write_with(&self, listeners: &str, yaml: &str) {
        let name = &self.name;
        let gateway = format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: default}}
spec: {{gatewayClassName: eg, listeners: {listeners}}}
---
{}",
            yaml.replace("SITE", name)
        );
        put(&self.file("objects"), &gateway);
        *self.objects.borrow_mut() = gateway;
    }

    /// Replaces the services that the extension adds to it.
    pub fn set(&self, services: &[RoutedService]) {
        self.set_anew(services, 0);
    }

    /// The same, with a count that has it translated anew.
    pub fn set_anew(&self, services: &[RoutedService], resync: i64) {
        self.set_as_is(serde_json::to_value(services).unwrap(), resync);
    }

    /// The same for services that may be none.
    pub fn set_as_is(&self, services: Value, resync: i64) {
        let spec = TailscaleEgressSetSpec {
            target_refs: vec![GatewayRef {
                group: "gateway.networking.k8s.io".into(),
                kind: "Gateway".into(),
                name: self.name.clone(),
            }],
            revision: "1".into(),
            resync,
            services: Vec::new(),
        };
        let mut set = TailscaleEgressSet::new(&self.name, spec);
        set.metadata.namespace = Some("default".into());
        let mut set = serde_json::to_value(set).unwrap();
        set["spec"]["services"] = services;
        put(&self.set_file(), &set.to_string());
    }

    pub fn remove_set(&self) {
        fs::remove_file(self.set_file()).unwrap();
    }

    fn file(&self, directory: &str) -> PathBuf {
        let name = format!("{}.yaml", self.name);
        self.scene.directory().join(directory).join(name)
    }

    fn set_file(&self) -> PathBuf {
        match self.scene.wiring {
            Wiring::Held => self.file("sets"),
            Wiring::Alone | Wiring::Policies => {
                let name = format!("{}-set.yaml", self.name);
                self.scene.directory().join("objects").join(name)
            }
        }
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub async fn try_get(&self, target: &str) -> io::Result<Answer> {
        client::get(self.scene.network(), self.address(), &self.name, target).await
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.try_get(target).await.unwrap()
    }

    /// Status and body of the answer.
    pub async fn answer(&self, target: &str) -> (u16, String) {
        let answer = self.get(target).await;
        (answer.status, answer.body)
    }

    /// Waits until `target` answers so.
    pub async fn until(&self, target: &str, status: u16, body: &str) {
        let what = format!("{} answers {target} with {status} {body:?}", self.name);
        eventually(&what, || async {
            let answer = self.try_get(target).await.ok()?;
            (answer.status == status && answer.body == body).then_some(())
        })
        .await;
    }

    /// Waits until `target` answers with this status.
    pub async fn until_status(&self, target: &str, status: u16) {
        let what = format!("{} answers {target} with {status}", self.name);
        eventually(&what, || async {
            let answer = self.try_get(target).await.ok()?;
            (answer.status == status).then_some(())
        })
        .await;
    }

    /// Waits until Envoy has the route of this service. Where the extension cannot ask for that,
    /// an unrelated change has Envoy Gateway translate again.
    pub async fn added(&self, service: &str) {
        let names = ["tailscale-egress", "external-backend"];
        let names = names.map(|name| format!("\"name\":\"{name}-{service}\""));
        let mut look = 0;
        eventually(&format!("{} has {service}", self.name), || {
            if self.scene.wiring == Wiring::Held && look % 40 == 0 {
                let unrelated = route("unrelated", &format!("/{look}"), self.address());
                let unrelated = unrelated.replace("SITE", &self.name);
                let objects = format!("{}{unrelated}", self.objects.borrow());
                put(&self.file("objects"), &objects);
            }
            look += 1;
            async {
                let dump = self.admin("/config_dump").await?.to_string();
                names.iter().all(|name| dump.contains(name)).then_some(())
            }
        })
        .await;
    }

    /// What its Envoy has counted.
    pub async fn counter(&self, name: &str) -> u64 {
        let page = format!("/stats?format=json&filter=^{name}$");
        let counted = self.admin(&page).await.unwrap();
        counted["stats"][0]["value"].as_u64().expect(name)
    }

    /// A page of its Envoy's admin interface; `None` while there is no Envoy.
    pub async fn admin(&self, page: &str) -> Option<Value> {
        let service_cluster = json!(format!("default/{}", self.name));
        let runs = fs::read_dir(self.scene.directory().join("running")).ok()?;
        for run in runs {
            let address = run.ok()?.path().join("admin-address.txt");
            // Those of Envoys that have ended are left behind.
            let Ok(address) = fs::read_to_string(address) else {
                continue;
            };
            let address = address.trim().parse().ok()?;
            let get = |page| client::get(self.scene.network(), address, "localhost", page);
            let Ok(info) = get("/server_info").await else {
                continue;
            };
            let info: Value = serde_json::from_str(&info.body).unwrap();
            if info["command_line_options"]["service_cluster"] == service_cluster {
                let answer = get(page).await.ok()?;
                return Some(serde_json::from_str(&answer.body).unwrap());
            }
        }
        None
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        for file in [self.file("objects"), self.set_file()] {
            // There may be no set.
            let _ = fs::remove_file(file);
        }
    }
}

/// Puts a file where it is watched, whole at once.
fn put(path: &Path, text: &str) {
    // A name that begins so is passed over.
    let fresh = path.with_file_name(".fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, path).unwrap();
}

/// A `Backend` of Envoy Gateway and an HTTPRoute that sends requests below `prefix` there.
pub fn route(name: &str, prefix: &str, to: SocketAddr) -> String {
    let (ip, port) = (to.ip(), to.port());
    format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: {{name: SITE-{name}, namespace: default}}
spec: {{endpoints: [{{ip: {{address: {ip}, port: {port}}}}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: SITE-{name}, namespace: default}}
spec:
  parentRefs: [{{name: SITE}}]
  rules:
    - matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]
      backendRefs: [{{group: gateway.envoyproxy.io, kind: Backend, name: SITE-{name}, port: {port}}}]
"
    )
}

/// A service for HTTP below `/api/<name>`.
pub fn routed(name: &str, host: &str, to: SocketAddr) -> RoutedService {
    RoutedService {
        name: name.into(),
        source: "default/example-endpoints".into(),
        route: format!("tailscale-egress-{name}"),
        path_prefix: format!("/api/{name}"),
        cluster: format!("external-backend-{name}"),
        upstream: Upstream {
            protocol: Protocol::Http,
            host: host.into(),
            targets: vec![Target {
                host: to.ip().to_string(),
                port: to.port(),
                weight: 1,
            }],
            tls: None,
            health_check: None,
        },
    }
}
