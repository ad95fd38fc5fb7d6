use super::*;
use crate::{
    api::Object,
    controller::{
        owned::{Set, StateSecret},
        parameters::Defaults,
        workload::Site,
        world::tests::{self as worlds, accepted},
    },
    model::{NodeReport, TailnetReport},
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// One Gateway whose surroundings can be changed.
struct Scene {
    gateway: Value,
    class: Value,
    others: Vec<Object>,
    workload: Option<Workload>,
    known: Known,
    settings: GatewaysSettings,
}

const IDS: &str = super::super::labels::NODE_IDS;
const CLASS: &str = super::super::labels::GATEWAY_CLASS;

fn annotations(ids: &str) -> BTreeMap<String, String> {
    let all = [(IDS, ids), (CLASS, "tailnet")];
    all.map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

impl Scene {
    fn new() -> Self {
        let defaults = Defaults {
            namespace: "tailway-system".into(),
            ..Defaults::default()
        };
        Self {
            gateway: json!({
                "metadata": {
                    "name": "nginx", "namespace": "web", "generation": 1,
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    "finalizers": [FINALIZER],
                },
                "spec": {
                    "gatewayClassName": "tailnet",
                    "addresses": [{"type": "Hostname", "value": "nginx"}],
                    "listeners": [{"name": "tcp", "port": 80, "protocol": "TCP"}],
                    "infrastructure": {"labels": {"team": "web"}},
                },
            }),
            class: worlds::class("tailnet", "oauth"),
            others: vec![worlds::credentials("oauth")],
            workload: None,
            known: Known::default(),
            settings: GatewaysSettings {
                site: Site {
                    namespace: "tailway-system".into(),
                    image: "tailway".into(),
                    image_pull_policy: None,
                    discovery: "https://tailway-controller:9443".into(),
                    environment: BTreeMap::new(),
                },
                defaults,
                removal_patience: Duration::from_secs(600),
                cleanup: false,
            },
        }
    }

    /// All that was asked for is there, and its node is on record.
    fn settled() -> Self {
        let mut scene = Self::new();
        let Some(Step::Apply(input)) = scene.step() else {
            panic!("it is to be applied");
        };
        scene.known.applied = Some(Applied {
            input: *input,
            generation: Some(1),
            at: Instant::now(),
        });
        let report = NodeReport {
            node_id: "n2".into(),
            ..NodeReport::default()
        };
        scene.workload = Some(Workload {
            stateful_set: Some(Set {
                name: "nginx-web".into(),
                generation: 1,
                annotations: annotations("n1,n2"),
                ..Set::default()
            }),
            secret: Some(StateSecret {
                name: "nginx-web-state".into(),
                report: Some(report),
                annotations: annotations("n1,n2"),
            }),
            ..Workload::default()
        });
        scene
    }

    fn step(&mut self) -> Option<Step> {
        let gateway: Option<Gateway> = serde_json::from_value(self.gateway.clone()).unwrap();
        let class = Object::GatewayClass(serde_json::from_value(self.class.clone()).unwrap());
        let objects = self.others.iter().cloned().chain([class]);
        let objects = objects.chain(gateway.clone().map(|g| Object::Gateway(Box::new(g))));
        let world = worlds::world(objects, [accepted("tailnet"), accepted("theirs")]);
        let name = ObjectName::new("web", "nginx");
        let case = Case {
            settings: &self.settings,
            world: &world,
            name: &name,
            gateway: gateway.as_ref(),
            workload: self.workload.as_ref(),
        };
        case.step(&mut self.known)
    }

    fn workload(&mut self) -> &mut Workload {
        self.workload.as_mut().unwrap()
    }

    fn report(&mut self) -> &mut NodeReport {
        let secret = self.workload().secret.as_mut().unwrap();
        secret.report.as_mut().unwrap()
    }
}

fn removal(step: Option<Step>) -> Removal {
    match step {
        Some(Step::Remove(removal)) => *removal,
        other => panic!("it is to be removed: {other:?}"),
    }
}

#[test]
fn a_gateway_that_is_new_is_made_as_it_asks() {
    let Some(Step::Apply(input)) = Scene::new().step() else {
        panic!("it is to be applied");
    };
    assert_eq!(input.subject, ObjectName::new("web", "nginx"));
    assert_eq!(
        (input.class.as_str(), input.hostname.as_str()),
        ("tailnet", "nginx")
    );
    assert_eq!(
        input.labels,
        BTreeMap::from([("team".into(), "web".into())])
    );
}

#[test]
fn nothing_is_done_for_what_is_as_it_should_be() {
    let step = Scene::settled().step();
    assert!(step.is_none(), "{step:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_just_applied_has_time_to_be_seen() {
    let mut scene = Scene::settled();
    scene.workload = None;
    assert!(scene.step().is_none());
    let look_at = scene.known.look_at.expect("it is looked at again");
    tokio::time::advance(look_at - Instant::now()).await;
    assert!(matches!(scene.step(), Some(Step::Apply(_))));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_changed_or_removed_is_applied_again() {
    type Harm = fn(&mut Scene);
    let harms: [Harm; 4] = [
        |scene| scene.workload().stateful_set.as_mut().unwrap().generation = 2,
        |scene| scene.workload().stateful_set = None,
        |scene| scene.workload().secret = None,
        |scene| scene.gateway["metadata"]["finalizers"] = json!([]),
    ];
    for harm in harms {
        let mut scene = Scene::settled();
        tokio::time::advance(SETTLED).await;
        assert!(scene.step().is_none());
        harm(&mut scene);
        assert!(matches!(scene.step(), Some(Step::Apply(_))));
    }
}

#[test]
fn a_change_of_the_gateway_or_its_class_is_applied_at_once() {
    let mut scene = Scene::settled();
    scene.gateway["spec"]["infrastructure"]["labels"]["team"] = json!("shop");
    assert!(matches!(scene.step(), Some(Step::Apply(_))));
}

#[test]
fn without_credentials_nothing_is_made_and_what_is_there_stays() {
    let mut scene = Scene::new();
    scene.others.clear();
    assert!(scene.step().is_none());
    let mut scene = Scene::settled();
    scene.others.clear();
    assert!(scene.step().is_none());
}

#[test]
fn a_gateway_that_is_deleted_is_removed_since_then() {
    let mut scene = Scene::settled();
    scene.gateway["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
    let removal = removal(scene.step());
    assert_eq!(removal.since, "2026-01-02T03:04:05Z".parse().unwrap());
    assert_eq!(removal.class.as_deref(), Some("tailnet"));
    let ids = removal.workload.node_ids();
    assert_eq!(ids, BTreeSet::from(["n1".into(), "n2".into()]));
}

#[test]
fn a_gateway_of_which_nothing_is_left_is_let_alone() {
    let mut scene = Scene::new();
    scene.gateway["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
    assert!(removal(scene.step()).workload.node_ids().is_empty());
    scene.gateway["metadata"]["finalizers"] = json!(["example.com/other"]);
    assert!(scene.step().is_none());
}

#[test]
fn what_is_left_of_a_gateway_that_is_gone_is_removed_since_that_was_seen() {
    let mut scene = Scene::settled();
    scene.gateway = Value::Null;
    let first = removal(scene.step());
    assert_eq!(first.class.as_deref(), Some("tailnet"));
    assert!(first.parameters.is_some());
    assert_eq!(removal(scene.step()).since, first.since);
    scene.workload = None;
    assert!(scene.step().is_none());
}

#[test]
fn a_gateway_that_goes_to_another_class_is_removed_with_the_credentials_of_its_own() {
    let mut scene = Scene::settled();
    let theirs =
        json!({"metadata": {"name": "theirs"}, "spec": {"controllerName": "example.com/c"}});
    let theirs = Object::GatewayClass(serde_json::from_value(theirs).unwrap());
    scene.others.push(theirs);
    scene.gateway["spec"]["gatewayClassName"] = json!("theirs");
    let removal = removal(scene.step());
    assert_eq!(removal.class.as_deref(), Some("tailnet"));
    assert!(removal.parameters.is_some());
}

#[test]
fn cleaning_up_removes_what_is_as_it_should_be() {
    let mut scene = Scene::settled();
    scene.settings.cleanup = true;
    removal(scene.step());
}

#[test]
fn a_gateway_that_lost_its_name_is_stopped_and_keeps_its_node() {
    let older = json!({
        "metadata": {"name": "a", "namespace": "web", "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {
            "gatewayClassName": "tailnet",
            "addresses": [{"type": "Hostname", "value": "nginx"}],
            "listeners": [{"name": "tcp", "port": 80, "protocol": "TCP"}],
        },
    });
    let older = Object::Gateway(serde_json::from_value(older).unwrap());
    let mut scene = Scene::new();
    scene.others.push(older.clone());
    assert!(scene.step().is_none());
    let mut scene = Scene::settled();
    scene.others.push(older);
    let step = scene.step();
    assert!(
        matches!(&step, Some(Step::Stop(set)) if set == "nginx-web"),
        "{step:?}"
    );
}

#[test]
fn nodes_are_recorded_on_both_objects_until_both_have_them() {
    for forgetful in 0..2 {
        let mut scene = Scene::settled();
        let workload = scene.workload();
        match forgetful {
            0 => workload.stateful_set.as_mut().unwrap().annotations = annotations("n1"),
            _ => workload.secret.as_mut().unwrap().annotations = annotations(""),
        }
        match scene.step() {
            Some(Step::Record { node_ids, .. }) => assert_eq!(node_ids, "n1,n2"),
            other => panic!("its nodes are to be recorded: {other:?}"),
        }
    }
}

#[test]
fn a_name_is_taken_back_from_earlier_nodes_only_and_when_that_is_wanted() {
    let taken = TailnetReport {
        state: TailnetState::NameTaken,
        message: "nginx-1".into(),
    };
    let mut scene = Scene::settled();
    scene.report().tailnet = taken.clone();
    assert!(scene.step().is_none(), "names are kept by default");
    scene.gateway["metadata"]["annotations"] = json!({ NAME_CONFLICT: "TakeBack" });
    match scene.step() {
        Some(Step::TakeBack {
            devices,
            current,
            wanted,
        }) => {
            assert_eq!(devices, ["n1"]);
            assert_eq!((current.as_str(), wanted.as_str()), ("n2", "nginx"));
        }
        other => panic!("the name is to be taken back: {other:?}"),
    }
    let workload = scene.workload();
    workload.stateful_set.as_mut().unwrap().annotations = annotations("n2");
    workload.secret.as_mut().unwrap().annotations = annotations("n2");
    assert!(scene.step().is_none(), "somebody else's device has it");
}

#[test]
fn what_failed_is_tried_at_once_when_the_gateway_became_another() {
    let gateway = |generation: i64| -> Arc<Gateway> {
        let mut value = Scene::new().gateway;
        value["metadata"]["generation"] = json!(generation);
        Arc::new(serde_json::from_value(value).unwrap())
    };
    let mut known = Known::default();
    known.see(Some(&gateway(1)));
    known.failures = 3;
    known.retry_at = Some(Instant::now());
    known.see(Some(&gateway(1)));
    assert_eq!((known.failures, known.retry_at.is_some()), (3, true));
    known.see(Some(&gateway(2)));
    assert_eq!((known.failures, known.retry_at.is_some()), (0, false));
}
