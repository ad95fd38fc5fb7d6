//! Objects as they are written, and the world that the controller makes of them.

use serde_json::Value;
use std::{fs, sync::Arc, time::Duration};
use tailway::{
    api::Object,
    controller::{Engine, Note, World},
    index::Verdict,
    metrics::Metrics,
    model::{NodeReport, ObjectName, Programmed, TailnetReport, TailnetState},
    source::{Change, load},
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

pub const NODE: &str = "nginx.tail1234.ts.net";

/// A GatewayClass, a Gateway of generation 1, a route of it, and their parts.
pub const OBJECTS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: tailnet, generation: 1, resourceVersion: "10", uid: class}
spec:
  controllerName: tailway.michaelbeaumont.github.io/controller
  parametersRef: {group: "", kind: Secret, name: oauth, namespace: tailway-system}
---
apiVersion: v1
kind: Secret
metadata: {name: oauth, namespace: tailway-system}
stringData: {client_id: id, client_secret: secret}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: nginx, namespace: web, generation: 1, resourceVersion: "11", uid: gateway}
spec:
  gatewayClassName: tailnet
  addresses: [{type: Hostname, value: nginx}]
  listeners: [{name: tcp, port: 80, protocol: TCP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: nginx, namespace: web, generation: 1, resourceVersion: "12", uid: route}
spec:
  parentRefs: [{name: nginx}]
  rules: [{backendRefs: [{name: nginx, port: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: nginx, namespace: web}
spec: {ports: [{port: 80}]}
"#;

/// Objects as an API server gives them: with what it added to their metadata, and statuses.
pub fn objects(yaml: &str) -> Vec<Object> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("objects.yaml");
    fs::write(&file, yaml).unwrap();
    load(&[file]).unwrap().objects
}

/// The same, with each status as written.
pub fn with_statuses(mut objects: Vec<Object>, statuses: &[(&str, Value)]) -> Vec<Object> {
    for object in &mut objects {
        for (kind, status) in statuses {
            let status = status.clone();
            match object {
                Object::GatewayClass(class) if *kind == "GatewayClass" => {
                    class.status = serde_json::from_value(status).unwrap();
                }
                Object::Gateway(gateway) if *kind == "Gateway" => {
                    gateway.status = serde_json::from_value(status).unwrap();
                }
                Object::TcpRoute(route) if *kind == "TCPRoute" => {
                    route.status = serde_json::from_value(status).unwrap();
                }
                Object::HttpRoute(route) if *kind == "HTTPRoute" => {
                    route.status = serde_json::from_value(status).unwrap();
                }
                Object::ListenerSet(set) if *kind == "ListenerSet" => {
                    set.status = serde_json::from_value(status).unwrap();
                }
                Object::BackendTlsPolicy(policy) if *kind == "BackendTLSPolicy" => {
                    policy.status = serde_json::from_value(status).unwrap();
                }
                _ => {}
            }
        }
    }
    objects
}

/// What the node of the Gateway says when all is well.
pub fn up() -> Note {
    let report = NodeReport {
        dns_name: NODE.into(),
        addresses: vec!["100.64.0.1".parse().unwrap()],
        node_id: "n1".into(),
        programmed: Programmed::Generation(1),
        tailnet: TailnetReport {
            state: TailnetState::Ready,
            message: String::new(),
        },
        ..NodeReport::default()
    };
    Note::Report(ObjectName::new("web", "nginx"), Some(report))
}

pub fn accepted() -> Note {
    Note::Verdict("tailnet".into(), Verdict::Accepted)
}

pub fn engine() -> Engine {
    Engine::new("tailway-system", "cluster.local", Metrics::default())
}

/// The first world, of all of these.
pub async fn world(objects: Vec<Object>, notes: Vec<Note>) -> Arc<World> {
    world_by(engine(), objects, notes).await
}

pub async fn world_by(engine: Engine, objects: Vec<Object>, notes: Vec<Note>) -> Arc<World> {
    let (change_sender, changes) = mpsc::channel(1024);
    let (note_sender, incoming) = mpsc::channel(1024);
    let (world_sender, mut worlds) = watch::channel(Arc::default());
    let engine = tokio::spawn(engine.run(changes, incoming, world_sender));
    for object in objects {
        change_sender.send(Change::Apply(object)).await.unwrap();
    }
    for note in notes {
        note_sender.send(note).await.unwrap();
    }
    change_sender.send(Change::Listed).await.unwrap();
    note_sender.send(Note::Listed).await.unwrap();
    let changed = timeout(Duration::from_secs(30), worlds.changed()).await;
    changed.expect("a world").unwrap();
    let world = worlds.borrow().clone();
    engine.abort();
    world
}
