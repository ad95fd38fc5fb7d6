//! Envoy Gateway from its own chart, with what `manifests/envoy-gateway` adds to it.

use super::super::{
    lab::{DEADLINE, IMAGE, Lab, succeed},
    scene::Scene,
};
use crate::{
    envoy::{client, lab::programs},
    extension::secured::{Signed, sign_for},
    manifests::install::helm,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};
use tokio::sync::Mutex;

const NAMESPACE: &str = "envoy-gateway-system";

const EXTENSION_NAMESPACE: &str = "tailscale-gateway-system";

/// How Envoy Gateway is told of its side of TLS.
const TLS: &str = r#"{"certificateRef": {"name": "extension-authority"}, "clientCertificateRef": {"name": "extension-client"}}"#;

/// Images as pods name them.
const GATEWAY_IMAGE: &str = "tailway.test/envoy-gateway:lab";
const ENVOY_IMAGE: &str = "tailway.test/envoy:lab";

/// Envoy Gateway in the lab of a scene.
pub struct EnvoyGateway<'a> {
    scene: &'a Scene,
}

/// Installs Envoy Gateway and the extension as they are by default; names in `hosts` lead its Envoys
/// to these addresses.
pub async fn install<'a>(scene: &'a Scene, hosts: &[(&str, &str)]) -> EnvoyGateway<'a> {
    install_with(scene, hosts, Link::Plain).await
}

/// The same, with what they speak to each other.
pub async fn install_with<'a>(
    scene: &'a Scene,
    hosts: &[(&str, &str)],
    link: Link,
) -> EnvoyGateway<'a> {
    static INSTALLED: Mutex<Option<Link>> = Mutex::const_new(None);
    let lab = scene.lab;
    let mut installed = INSTALLED.lock().await;
    if installed.is_none() {
        prepare(lab).await;
    }
    if *installed != Some(link) {
        connect(lab, link, installed.is_some()).await;
        *installed = Some(link);
    }
    lab.apply(&class(hosts)).await;
    EnvoyGateway { scene }
}

/// What Envoy Gateway and the extension speak to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Plain,
    /// TLS; each shows a certificate.
    MutualTls,
}

async fn prepare(lab: &Lab) {
    for archive in images() {
        lab.import(archive).await;
    }
    for namespace in [NAMESPACE, EXTENSION_NAMESPACE] {
        let namespace =
            format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n");
        lab.apply(&namespace).await;
    }
    let mut crds = lab.command("kubectl");
    crds.args(["apply", "--server-side", "--filename"])
        .arg(programs().join("chart/charts/crds/crds/generated"));
    succeed(crds, None).await;
}

async fn connect(lab: &Lab, link: Link, restart: bool) {
    if link == Link::MutualTls {
        lab.apply(&certificates()).await;
    }
    lab.apply(&extension(link)).await;
    lab.apply(&envoy_gateway(link)).await;
    if restart {
        let deployment = "deployment/envoy-gateway";
        let namespace = ["--namespace", NAMESPACE];
        let restart = ["rollout", "restart", deployment].into_iter();
        lab.kubectl(restart.chain(namespace)).await;
    }
    for (namespace, deployment) in [
        (
            EXTENSION_NAMESPACE,
            "deployment/tailscale-gateway-extension-server",
        ),
        (NAMESPACE, "deployment/envoy-gateway"),
    ] {
        let timeout = format!("--timeout={}s", DEADLINE.as_secs());
        lab.kubectl([
            "rollout",
            "status",
            deployment,
            "--namespace",
            namespace,
            &timeout,
        ])
        .await;
    }
}

/// The objects of the extension.
fn extension(link: Link) -> String {
    let yaml = match link {
        Link::Plain => fs::read_to_string("manifests/envoy-gateway/extension.yaml").unwrap(),
        Link::MutualTls => template(
            Path::new("manifests/chart"),
            "tailway-system",
            &[
                "--show-only=templates/extension.yaml",
                "--set=extension.enabled=true,extension.tls.secret=served,extension.tls.clientCASecret=clients",
            ],
        ),
    };
    let version = env!("CARGO_PKG_VERSION");
    yaml.replace(&format!("ghcr.io/tailway/tailway:{version}"), IMAGE)
}

/// Secrets for both sides, each of an authority of its own.
fn certificates() -> String {
    let host =
        format!("tailscale-gateway-extension-server.{EXTENSION_NAMESPACE}.svc.cluster.local");
    let (server, client) = (sign_for(&host), sign_for("envoy-gateway"));
    let pair = |signed: &Signed| json!({ "tls.crt": signed.certificate, "tls.key": signed.key });
    let believed_by_server = json!({ "ca.crt": client.authority });
    let believed_by_client = json!({ "tls.crt": server.authority });
    let secrets = [
        (EXTENSION_NAMESPACE, "served", pair(&server)),
        (EXTENSION_NAMESPACE, "clients", believed_by_server),
        (NAMESPACE, "extension-authority", believed_by_client),
        (NAMESPACE, "extension-client", pair(&client)),
    ];
    let secrets = secrets.map(|(namespace, name, data)| {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "namespace": namespace, "name": name },
            "stringData": data,
        })
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": secrets }).to_string()
}

/// What a chart makes of these arguments.
fn template(chart: &Path, namespace: &str, arguments: &[&str]) -> String {
    let helm = helm().expect("there is no Helm: `make helm` builds it");
    let output = Command::new(helm)
        .args(["template", "made"])
        .arg(chart)
        .args(["--namespace", namespace])
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// What Envoy Gateway's chart makes of our values.
fn envoy_gateway(link: Link) -> String {
    let directory = tempfile::tempdir().unwrap();
    let chart = directory.path().join("chart");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(programs().join("chart"))
        .arg(&chart)
        .status();
    assert!(copied.unwrap().success());
    let values = fs::read_to_string(chart.join("values.tmpl.yaml")).unwrap();
    let values = values
        .replace("${GatewayImage}", GATEWAY_IMAGE)
        .replace("${GatewayImagePullPolicy}", "IfNotPresent");
    fs::write(chart.join("values.yaml"), values).unwrap();
    let mut arguments = vec![
        "--skip-crds",
        "--values=manifests/envoy-gateway/values.yaml",
        "--set=crds.enabled=false,topologyInjector.enabled=false",
    ];
    let tls = format!("--set-json=config.envoyGateway.extensionManager.service.tls={TLS}");
    if link == Link::MutualTls {
        arguments.push(&tls);
    }
    template(&chart, NAMESPACE, &arguments)
}

/// A class whose Envoys have the lab's image.
fn class(hosts: &[(&str, &str)]) -> String {
    let aliases: Vec<_> = hosts
        .iter()
        .map(|(name, address)| format!("{{ip: {address}, hostnames: ['{name}']}}"))
        .collect();
    format!(
        "apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyProxy
metadata: {{name: lab, namespace: {NAMESPACE}}}
spec:
  provider:
    type: Kubernetes
    kubernetes:
      envoyService: {{type: ClusterIP}}
      envoyDeployment:
        container: {{image: '{ENVOY_IMAGE}', resources: {{requests: {{cpu: 10m, memory: 32Mi}}}}}}
        patch: {{value: {{spec: {{template: {{spec: {{hostAliases: [{}]}}}}}}}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: eg}}
spec:
  controllerName: gateway.envoyproxy.io/gatewayclass-controller
  parametersRef: {{group: gateway.envoyproxy.io, kind: EnvoyProxy, name: lab, namespace: {NAMESPACE}}}
",
        aliases.join(", ")
    )
}

/// The images of Envoy Gateway and of Envoy, packed once.
fn images() -> &'static [PathBuf; 2] {
    static ARCHIVES: OnceLock<[PathBuf; 2]> = OnceLock::new();
    ARCHIVES.get_or_init(|| {
        [("envoy-gateway", GATEWAY_IMAGE), ("envoy", ENVOY_IMAGE)].map(|(name, image)| {
            let archive = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.tar"));
            pack(&programs().join(name), image, &archive);
            archive
        })
    })
}

/// A program with the shared libraries that it was linked with, as an image.
fn pack(program: &Path, image: &str, archive: &Path) {
    let root = tempfile::tempdir().unwrap();
    let place = |from: &Path, to: &Path| {
        let to = root.path().join(to.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    let entrypoint = Path::new("/usr/local/bin").join(program.file_name().unwrap());
    place(program, &entrypoint);
    let libraries = Command::new("ldd").arg(program).output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    let words = libraries.split_whitespace();
    for library in words.filter(|word| word.starts_with('/')) {
        place(Path::new(library), Path::new(library));
    }
    fs::create_dir_all(root.path().join("tmp")).unwrap();
    let authorities = Path::new("/etc/ssl/certs/ca-certificates.crt");
    place(authorities, authorities);
    let opened = Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(root.path())
        .status();
    assert!(opened.unwrap().success());
    let packed = Command::new("manifests/image/archive.sh")
        .args(["--plain", "--user", "65532", image])
        .args([archive, root.path(), &entrypoint])
        .status();
    assert!(packed.unwrap().success());
}

impl EnvoyGateway<'_> {
    pub fn lab(&self) -> &Lab {
        self.scene.lab
    }

    /// Namespace and name of the Service of the Gateway `eg`.
    pub async fn service(&self) -> (String, String) {
        self.lab()
            .eventually("Envoy has a Service", || async {
                let list = self
                    .lab()
                    .kubectl([
                        "get",
                        "services",
                        "--namespace",
                        NAMESPACE,
                        "--selector",
                        "gateway.envoyproxy.io/owning-gateway-name=eg",
                        "--output=json",
                    ])
                    .await;
                let list: Value = serde_json::from_str(&list).ok()?;
                let name = list["items"][0]["metadata"]["name"].as_str()?.to_owned();
                Some((NAMESPACE.to_owned(), name))
            })
            .await
    }

    /// The body of an answer with status 200, or what came instead.
    pub async fn get(&self, host: &str, path: &str) -> Result<String, String> {
        let (namespace, service) = self.service().await;
        let object = self
            .lab()
            .object(&namespace, &format!("service/{service}"))
            .await;
        let address = object.unwrap()["spec"]["clusterIP"].clone();
        let address = format!("{}:80", address.as_str().unwrap());
        let address = address.parse().unwrap();
        let answer = client::get(self.lab().network(), address, host, path).await;
        match answer {
            Ok(answer) if answer.status == 200 => Ok(answer.body),
            Ok(answer) => Err(format!("{} {}", answer.status, answer.body)),
            Err(error) => Err(error.to_string()),
        }
    }
}
