//! Envoy Gateway from its own chart, with what `manifests/envoy-gateway` adds to it.

use super::super::{
    lab::{DEADLINE, IMAGE, Lab, succeed},
    scene::Scene,
};
use crate::{
    envoy::{client, lab::programs},
    manifests::install::helm,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};
use tokio::sync::OnceCell;

const NAMESPACE: &str = "envoy-gateway-system";

/// Images as pods name them.
const GATEWAY_IMAGE: &str = "tailway.test/envoy-gateway:lab";
const ENVOY_IMAGE: &str = "tailway.test/envoy:lab";

/// Envoy Gateway in the lab of a scene.
pub struct EnvoyGateway<'a> {
    scene: &'a Scene,
}

/// Installs Envoy Gateway and the extension; names in `hosts` lead its Envoys to these addresses.
pub async fn install<'a>(scene: &'a Scene, hosts: &[(&str, &str)]) -> EnvoyGateway<'a> {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let lab = scene.lab;
    INSTALLED.get_or_init(|| install_once(lab)).await;
    lab.apply(&class(hosts)).await;
    EnvoyGateway { scene }
}

async fn install_once(lab: &Lab) {
    for archive in images() {
        lab.import(archive).await;
    }
    let extension = fs::read_to_string("manifests/envoy-gateway/extension.yaml").unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let extension = extension.replace(&format!("ghcr.io/tailway/tailway:{version}"), IMAGE);
    lab.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n"
    ))
    .await;
    lab.apply(&extension).await;
    let mut crds = lab.command("kubectl");
    crds.args(["apply", "--server-side", "--filename"])
        .arg(programs().join("chart/charts/crds/crds/generated"));
    succeed(crds, None).await;
    let rendered = rendered();
    lab.apply(&rendered).await;
    for (namespace, deployment) in [
        (
            "tailscale-gateway-system",
            "tailscale-gateway-extension-server",
        ),
        (NAMESPACE, "envoy-gateway"),
    ] {
        let timeout = format!("--timeout={}s", DEADLINE.as_secs());
        let deployment = format!("deployment/{deployment}");
        lab.kubectl([
            "rollout",
            "status",
            &deployment,
            "--namespace",
            namespace,
            &timeout,
        ])
        .await;
    }
}

/// What Envoy Gateway's chart makes of our values.
fn rendered() -> String {
    let helm = helm().expect("there is no Helm: `make helm` builds it");
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
    let output = Command::new(helm)
        .args(["template", "eg"])
        .arg(&chart)
        .args(["--namespace", NAMESPACE, "--skip-crds"])
        .args(["--values", "manifests/envoy-gateway/values.yaml"])
        .args(["--set", "crds.enabled=false,topologyInjector.enabled=false"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
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
