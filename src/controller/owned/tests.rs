use super::*;
use serde_json::{Value, json};

fn pod(status: Value) -> PodState {
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "web-0"}, "status": status})).unwrap();
    let mut workload = Workload::default();
    PodState::put(&pod, &mut workload);
    workload.pods.remove("web-0").unwrap()
}

fn container(state: Value) -> Value {
    let container = json!({
        "name": "proxy", "image": "tailway", "imageID": "", "ready": false, "restartCount": 0,
        "state": state,
    });
    json!({"containerStatuses": [container]})
}

#[test]
fn a_pod_that_is_not_ready_has_a_reason_a_person_can_act_on() {
    let unscheduled = json!({"conditions": [{
        "type": "PodScheduled", "status": "False", "message": "0/3 nodes are available",
    }]});
    let pulling = container(json!({"waiting": {
        "reason": "ImagePullBackOff", "message": "no such image",
    }}));
    let ended = container(json!({"terminated": {"exitCode": 137, "message": "out of memory"}}));
    let running = container(json!({"running": {}}));
    let cases = [
        (unscheduled, "it is not scheduled: 0/3 nodes are available"),
        (pulling, "ImagePullBackOff no such image"),
        (ended, "it ended with code 137 out of memory"),
        (running, NOT_READY),
        (json!({}), "it has not started"),
    ];
    for (status, problem) in cases {
        let expected = PodState {
            problem: problem.into(),
            ..PodState::default()
        };
        assert_eq!(pod(status), expected);
    }
    let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    let expected = PodState {
        ready: true,
        ..PodState::default()
    };
    assert_eq!(pod(ready), expected);
}

/// A workload whose pod and report are these.
fn workload(pod: Option<PodState>, report: Option<NodeReport>) -> Workload {
    Workload {
        stateful_set: Some(Set::default()),
        pods: pod.map(|pod| ("web-0".into(), pod)).into_iter().collect(),
        secret: Some(StateSecret {
            report,
            ..StateSecret::default()
        }),
    }
}

fn programmed(workload: &Workload) -> Programmed {
    workload.report().unwrap().programmed
}

fn pending(message: &str) -> Programmed {
    Programmed::No {
        reason: Unready::Pending,
        message: message.into(),
    }
}

#[test]
fn what_a_pod_said_counts_while_a_pod_is_ready() {
    let report = NodeReport {
        programmed: Programmed::Generation(3),
        ..NodeReport::default()
    };
    let ready = PodState {
        ready: true,
        ..PodState::default()
    };
    let with = |pod| programmed(&workload(pod, Some(report.clone())));
    assert_eq!(with(Some(ready.clone())), Programmed::Generation(3));
    let ending = PodState {
        ending: true,
        ..ready
    };
    assert_eq!(with(Some(ending)), pending("pod web-0 is ending"));
    assert_eq!(with(None), pending("its pod has not been created"));
}

#[test]
fn a_pod_that_runs_knows_better_than_kubernetes_why_it_is_not_ready() {
    let own = Programmed::No {
        reason: Unready::AddressNotAssigned,
        message: "waiting for approval".into(),
    };
    let report = NodeReport {
        programmed: own.clone(),
        ..NodeReport::default()
    };
    let running = PodState {
        problem: NOT_READY.into(),
        ..PodState::default()
    };
    let crashing = PodState {
        problem: "CrashLoopBackOff".into(),
        ..PodState::default()
    };
    let with = |pod| programmed(&workload(Some(pod), Some(report.clone())));
    assert_eq!(with(running), own);
    assert_eq!(with(crashing), pending("pod web-0: CrashLoopBackOff"));
}

#[test]
fn a_pod_that_is_not_ready_is_asked_and_believed_before_an_older_report() {
    let running = json!({
        "podIP": "10.0.0.7",
        "containerStatuses": container(json!({"running": {}}))["containerStatuses"],
    });
    let report = |programmed| NodeReport {
        programmed,
        ..NodeReport::default()
    };
    let mut silent = workload(Some(pod(running)), Some(report(Programmed::Generation(3))));
    let name = ObjectName::new("web", "web");
    let owned = |workload: &Workload| Owned {
        workloads: [(name.clone(), workload.clone())].into_iter().collect(),
        listed: true,
    };
    let address: SocketAddr = "10.0.0.7:9090".parse().unwrap();
    let asked = BTreeMap::from([((name.clone(), "web-0".to_owned()), address)]);
    assert_eq!(owned(&silent).unready(), asked);
    silent.pods.get_mut("web-0").unwrap().says = "no way to write".into();
    assert_eq!(programmed(&silent), pending("pod web-0: no way to write"));

    let own = Programmed::No {
        reason: Unready::AddressNotAssigned,
        message: "waiting for approval".into(),
    };
    silent.secret.as_mut().unwrap().report = Some(report(own.clone()));
    assert_eq!(programmed(&silent), pending("pod web-0: no way to write"));
    silent.pods.get_mut("web-0").unwrap().says = "waiting for approval".into();
    assert_eq!(programmed(&silent), own);

    let newer = json!({"metadata": {"name": "web-state"}});
    StateSecret::put(&serde_json::from_value(newer).unwrap(), &mut silent);
    assert_eq!(silent.pods["web-0"].says, "");
}

#[test]
fn there_is_no_node_without_a_stateful_set() {
    let mut workload = workload(None, Some(NodeReport::default()));
    workload.stateful_set = None;
    assert_eq!(workload.report(), None);
}

#[test]
fn all_nodes_that_were_recorded_anywhere_are_known() {
    let ids = |ids: &str| BTreeMap::from([(labels::NODE_IDS.to_owned(), ids.to_owned())]);
    let report = NodeReport {
        node_id: "n3".into(),
        ..NodeReport::default()
    };
    let mut workload = workload(None, Some(report));
    workload.stateful_set.as_mut().unwrap().annotations = ids("n1");
    workload.secret.as_mut().unwrap().annotations = ids("n1,n2,");
    let expected = ["n1", "n2", "n3"].map(str::to_owned);
    assert_eq!(workload.node_ids(), BTreeSet::from(expected));
}

#[test]
fn a_report_that_cannot_be_read_is_as_none() {
    let secret = json!({
        "metadata": {"name": "web-state"},
        "data": {STATE_REPORT: "bm8ganNvbg=="},
    });
    let secret: Secret = serde_json::from_value(secret).unwrap();
    assert_eq!(StateSecret::of(&secret).report, None);
}
