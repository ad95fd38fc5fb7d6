//! What is written into statuses, and what is left alone.

use super::world::{NODE, OBJECTS, accepted, objects, up, with_statuses, world};
use serde_json::{Value, json};
use tailway::{
    api::CONTROLLER,
    controller::{News, Note, StatusWrite, World, changed, plan},
    index::Verdict,
};

const EARLIER: &str = "2026-01-01T00:00:00Z";
const NOW: &str = "2026-01-02T00:00:00Z";

async fn planned(statuses: &[(&str, Value)], notes: Vec<Note>) -> Vec<StatusWrite> {
    let world = world(with_statuses(objects(OBJECTS), statuses), notes).await;
    let all = changed(&world, &World::default());
    plan(&world, &all, NOW.parse().unwrap())
}

fn of<'a>(writes: &'a [StatusWrite], kind: &str) -> &'a StatusWrite {
    let mut these = writes
        .iter()
        .filter(|write| write.key.kind.as_str() == kind);
    let write = these
        .next()
        .unwrap_or_else(|| panic!("no write of a {kind}"));
    assert!(these.next().is_none());
    write
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let mut conditions = status["conditions"].as_array().unwrap().iter();
    let condition = conditions.find(|condition| condition["type"] == kind);
    condition.unwrap_or_else(|| panic!("no {kind}: {status}"))
}

fn statuses(writes: &[StatusWrite]) -> Vec<(&'static str, Value)> {
    ["GatewayClass", "Gateway", "TCPRoute"]
        .map(|kind| (kind, of(writes, kind).status.clone()))
        .into()
}

#[tokio::test]
async fn what_is_new_is_written_whole_and_made_from_the_version_that_was_read() {
    let writes = planned(&[], vec![accepted(), up()]).await;
    assert_eq!(writes.len(), 3);
    let class = of(&writes, "GatewayClass");
    assert_eq!(class.resource_version, "10");
    let features = class.status["supportedFeatures"].as_array().unwrap();
    let features: Vec<_> = features
        .iter()
        .map(|of| of["name"].as_str().unwrap())
        .collect();
    assert!(features.is_sorted(), "{features:?}");
    for kind in [
        "BackendTLSPolicy",
        "GRPCRoute",
        "Gateway",
        "HTTPRoute",
        "TCPRoute",
        "TLSRoute",
        "UDPRoute",
    ] {
        assert!(features.contains(&kind), "{kind}: {features:?}");
    }
    let gateway = of(&writes, "Gateway");
    assert_eq!(gateway.resource_version, "11");
    let addresses = json!([
        {"type": "Hostname", "value": NODE},
        {"type": "IPAddress", "value": "100.64.0.1"},
    ]);
    assert_eq!(gateway.status["addresses"], addresses);
    let programmed = json!({
        "type": "Programmed",
        "status": "True",
        "reason": "Programmed",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": NOW,
    });
    assert_eq!(*condition(&gateway.status, "Programmed"), programmed);
    assert_eq!(gateway.status["listeners"][0]["attachedRoutes"], 1);
    let route = of(&writes, "TCPRoute");
    assert_eq!(route.resource_version, "12");
    assert_eq!(route.status["parents"][0]["controllerName"], CONTROLLER);
}

#[tokio::test]
async fn what_was_written_is_not_written_again() {
    let written = statuses(&planned(&[], vec![accepted(), up()]).await);
    assert_eq!(planned(&written, vec![accepted(), up()]).await, []);
}

#[tokio::test]
async fn a_condition_keeps_its_time_until_its_status_becomes_another() {
    let class = json!({"conditions": [{
        "type": "Accepted",
        "status": "False",
        "reason": "InvalidCredentials",
        "message": "wrong",
        "observedGeneration": 1,
        "lastTransitionTime": EARLIER,
    }]});
    let refused = Note::Verdict(
        "tailnet".into(),
        Verdict::Refused {
            reason: "APIUnreachable",
            message: "no answer".into(),
        },
    );
    let there = [("GatewayClass", class)];
    let writes = planned(&there, vec![refused]).await;
    let same = condition(&of(&writes, "GatewayClass").status, "Accepted");
    assert_eq!(same["reason"], "APIUnreachable");
    assert_eq!(same["lastTransitionTime"], EARLIER);
    let writes = planned(&there, vec![accepted()]).await;
    let other = condition(&of(&writes, "GatewayClass").status, "Accepted");
    assert_eq!(other["lastTransitionTime"], NOW);
}

#[tokio::test]
async fn conditions_and_parents_of_others_stay_and_stale_ones_of_ours_go() {
    let foreign = json!({
        "type": "example.com/Checked",
        "status": "True",
        "reason": "Checked",
        "message": "by hand",
        "lastTransitionTime": EARLIER,
    });
    let parent = |controller: &str, name: &str| {
        json!({
            "controllerName": controller,
            "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name},
            "conditions": [foreign],
        })
    };
    let theirs = parent("example.com/other", "nginx");
    let there = [
        ("Gateway", json!({"conditions": [foreign]})),
        (
            "TCPRoute",
            json!({"parents": [theirs, parent(CONTROLLER, "gone")]}),
        ),
    ];
    let writes = planned(&there, vec![accepted(), up()]).await;
    let gateway = &of(&writes, "Gateway").status;
    assert_eq!(*condition(gateway, "example.com/Checked"), foreign);
    let parents = of(&writes, "TCPRoute").status["parents"]
        .as_array()
        .unwrap();
    assert_eq!(parents.len(), 2);
    assert_eq!(parents[0], theirs);
    assert_eq!(parents[1]["parentRef"]["name"], "nginx");
}

#[tokio::test]
async fn a_route_that_leaves_its_gateway_takes_its_status_with_it() {
    let written = statuses(&planned(&[], vec![accepted(), up()]).await);
    let moved = OBJECTS.replace("parentRefs: [{name: nginx}]", "parentRefs: [{name: else}]");
    let world = world(
        with_statuses(objects(&moved), &written),
        vec![accepted(), up()],
    )
    .await;
    let all = changed(&world, &World::default());
    let writes = plan(&world, &all, NOW.parse().unwrap());
    assert_eq!(of(&writes, "TCPRoute").status, json!({"parents": []}));
    let gateway = &of(&writes, "Gateway").status;
    assert_eq!(gateway["listeners"][0]["attachedRoutes"], 0);
}

#[tokio::test]
async fn events_tell_what_works_or_why_not_and_nothing_of_what_is_on_its_way() {
    let news = |write: &StatusWrite| -> Vec<_> {
        let tell = |news: &News| (news.condition, news.status, news.reason);
        write.news.iter().map(tell).collect()
    };
    let coming = planned(&[], vec![accepted()]).await;
    assert_eq!(
        news(of(&coming, "Gateway")),
        [("Accepted", true, "Accepted")]
    );
    let there = statuses(&coming);
    let now = planned(&there, vec![accepted(), up()]).await;
    let gateway = news(of(&now, "Gateway"));
    assert!(
        gateway.contains(&("Programmed", true, "Programmed")),
        "{gateway:?}"
    );
    assert!(gateway.iter().all(|(_, status, _)| *status), "{gateway:?}");
}
