use super::*;
use crate::{
    api::Object,
    controller::{
        owned::{PodState, Set, StateSecret},
        parameters::Defaults,
        workload::Site,
        world::tests::{credentials, world},
    },
    model::NodeReport,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const NAME: &str = "example-egress-default-28e00c8f";

/// A TailscaleEndpoints with its world, and what is there of its egress.
struct Scene {
    spec: Value,
    tailnets: Vec<&'static str>,
    egress_namespaces: Value,
    workload: Option<Workload>,
    cleanup: bool,
    known: Known,
}

impl Scene {
    fn new() -> Self {
        Self {
            spec: json!({"endpoints": [{"name": "web", "port": 80, "tailscaleFQDN": "web"}]}),
            tailnets: vec!["tailnet"],
            egress_namespaces: json!([]),
            workload: None,
            cleanup: false,
            known: Known::default(),
        }
    }

    /// With all of it applied, and there.
    fn applied(spec: Value) -> Self {
        let mut scene = Self {
            spec,
            ..Self::new()
        };
        let Some(Step::Apply(input)) = scene.step() else {
            panic!("it is to be applied");
        };
        let secrets = input.state_secrets().into_iter();
        let workload = Workload {
            set: Some(Set {
                name: NAME.into(),
                generation: 1,
                ..Set::default()
            }),
            secrets: secrets.map(|name| (name, StateSecret::default())).collect(),
            ..Workload::default()
        };
        scene.workload = Some(workload);
        scene.known.applied = Some(Applied {
            input: *input,
            generation: Some(1),
            at: Instant::now(),
        });
        scene
    }

    fn step(&mut self) -> Option<Step> {
        let endpoints = json!({
            "metadata": {"name": "example", "namespace": "default"},
            "spec": self.spec,
        });
        let tailnets = self.tailnets.iter().map(|name| {
            let tailnet = json!({
                "metadata": {"name": name},
                "spec": {
                    "credentials": {"secretRef": {"name": "oauth"}},
                    "tags": ["tag:k8s"],
                    "egressNamespaces": self.egress_namespaces,
                },
            });
            Object::Tailnet(serde_json::from_value(tailnet).unwrap())
        });
        let endpoints = (!self.spec.is_null())
            .then(|| Object::Endpoints(serde_json::from_value(endpoints).unwrap()));
        let objects = tailnets.chain(endpoints).chain([credentials("oauth")]);
        let world = world(objects.collect::<Vec<_>>(), []);
        let settings = EgressSettings {
            site: Site {
                namespace: "tailway-system".into(),
                image: "tailway:1".into(),
                image_pull_policy: None,
                discovery: "https://controller:9443".into(),
                environment: BTreeMap::new(),
            },
            defaults: Defaults {
                namespace: "tailway-system".into(),
                ..Defaults::default()
            },
            removal_patience: Duration::from_secs(60),
            cleanup: self.cleanup,
        };
        let case = Case {
            settings: &settings,
            world: &world,
            name: &ObjectName::new("default", "example"),
            workload: self.workload.as_ref(),
        };
        case.step(&mut self.known)
    }

    fn workload(&mut self) -> &mut Workload {
        self.workload.as_mut().unwrap()
    }
}

fn two_replicas() -> Value {
    json!({"endpoints": [{"name": "web", "port": 80, "tailscaleFQDN": "web"}]})
}

fn node(id: &str, recorded: &str) -> StateSecret {
    let annotations = [(crate::controller::labels::NODE_IDS, recorded)];
    StateSecret {
        report: Some(NodeReport {
            node_id: id.into(),
            ..NodeReport::default()
        }),
        annotations: annotations
            .map(|(key, ids)| (key.to_owned(), ids.to_owned()))
            .into(),
        ..StateSecret::default()
    }
}

#[test]
fn what_is_on_the_tailnet_has_pods_made_with_a_port_for_each_endpoint() {
    let Some(Step::Apply(input)) = Scene::new().step() else {
        panic!("it is to be applied");
    };
    assert_eq!(input.name(), NAME);
    assert_eq!(
        (input.class.as_str(), input.hostname.as_str()),
        ("tailnet", "example-egress")
    );
    let port = egress::ports(["web"])["web"];
    assert_eq!(
        input.egress,
        Some(Egress {
            replicas: 2,
            ports: vec![EgressPort {
                name: "web".into(),
                number: port,
                transport: Transport::Tcp,
            }],
        })
    );
}

#[test]
fn what_everybody_reaches_needs_no_pods_unless_they_are_asked_for() {
    let mut scene = Scene::new();
    let outside = json!({"name": "web", "port": 80, "externalTarget": "example.com:80"});
    scene.spec = json!({ "endpoints": [outside] });
    assert!(scene.step().is_none());
    scene.spec = json!({ "endpoints": [outside], "egress": "Proxy" });
    assert!(matches!(scene.step(), Some(Step::Apply(_))));
}

#[test]
fn without_knowing_the_tailnet_nothing_is_made() {
    let mut scene = Scene::new();
    scene.tailnets = Vec::new();
    assert!(scene.step().is_none());
    scene.tailnets = vec!["one", "two"];
    assert!(scene.step().is_none());
    scene.spec["tailnet"] = json!("two");
    assert!(matches!(scene.step(), Some(Step::Apply(input)) if input.class == "two"));
}

#[test]
fn a_tailnet_can_be_kept_for_some_namespaces() {
    let mut scene = Scene::new();
    scene.egress_namespaces = json!(["shop"]);
    assert!(scene.step().is_none());
    scene.egress_namespaces = json!(["shop", "default"]);
    assert!(matches!(scene.step(), Some(Step::Apply(_))));
}

#[test]
fn what_is_there_as_it_should_be_is_left_alone_and_what_was_changed_is_applied_again() {
    let mut scene = Scene::applied(two_replicas());
    assert!(scene.step().is_none());
    scene.workload().set.as_mut().unwrap().generation = 2;
    // It may be on its way.
    assert!(scene.step().is_none());
    scene.known.applied.as_mut().unwrap().at -= SETTLED;
    assert!(matches!(scene.step(), Some(Step::Apply(_))));
}

#[test]
fn the_nodes_of_each_pod_are_written_down_once() {
    let mut scene = Scene::applied(two_replicas());
    let secret = format!("{NAME}-1-state");
    scene
        .workload()
        .secrets
        .insert(secret.clone(), node("n2", "n1"));
    let Some(Step::Record {
        secret: of,
        node_ids,
    }) = scene.step()
    else {
        panic!("it is to be recorded");
    };
    assert_eq!((of, node_ids.as_str()), (secret.clone(), "n1,n2"));
    scene.workload().secrets.insert(secret, node("n2", "n1,n2"));
    assert!(scene.step().is_none());
}

#[test]
fn fewer_pods_leave_no_nodes_behind() {
    let mut one = two_replicas();
    one["proxy"] = json!({"replicas": 1});
    let mut scene = Scene::applied(one);
    let secret = format!("{NAME}-1-state");
    scene
        .workload()
        .secrets
        .insert(secret.clone(), node("n2", "n2"));
    let pod = format!("{NAME}-1");
    scene
        .workload()
        .pods
        .insert(pod.clone(), PodState::default());
    assert!(scene.step().is_none(), "its pod is there yet");
    scene.workload().pods.remove(&pod);
    let Some(Step::Shrink { states, .. }) = scene.step() else {
        panic!("it is to be removed");
    };
    assert_eq!(states, [(secret, node("n2", "n2"))].into());
}

#[test]
fn an_egress_that_nobody_needs_is_removed() {
    for change in [
        |scene: &mut Scene| scene.spec = Value::Null,
        |scene: &mut Scene| scene.cleanup = true,
        |scene: &mut Scene| {
            scene.spec = json!({"endpoints": [{"name": "web", "port": 80, "externalTarget": "example.com:80"}]});
        },
    ] {
        let mut scene = Scene::applied(two_replicas());
        change(&mut scene);
        assert!(matches!(scene.step(), Some(Step::Remove(..))));
    }
}
