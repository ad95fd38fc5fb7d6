//! What tests see of a scene: conditions, events, columns, and what was asked of Tailscale's API.

use super::scene::Scene;
use serde_json::Value;
use std::collections::BTreeMap;

/// An event, as `kubectl get events` tells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    /// `Normal` or `Warning`.
    pub weight: String,
    pub reason: String,
    pub message: String,
    /// How often.
    pub times: u64,
}

impl Scene {
    /// The events of an object, in order.
    pub async fn events(&self, namespace: &str, name: &str) -> Vec<Told> {
        let list = ["get", "events", "--namespace", namespace, "--output=json"];
        let selector = format!("--field-selector=involvedObject.name={name}");
        let list = self.lab.kubectl(list.into_iter().chain([&*selector])).await;
        let list: Value = serde_json::from_str(&list).unwrap();
        let events = list["items"].as_array().unwrap().iter();
        let mut told: Vec<_> = events
            .filter(|event| event["reportingComponent"] == "tailway-controller")
            .map(|event| Told {
                weight: text(&event["type"]),
                reason: text(&event["reason"]),
                message: text(&event["message"]),
                times: event["series"]["count"].as_u64().unwrap_or(1),
            })
            .collect();
        told.sort();
        told
    }

    /// How `kubectl get` shows one object: its cells by the names of their columns.
    pub async fn row(&self, namespace: &str, object: &str) -> BTreeMap<String, String> {
        let table = ["get", object, "--namespace", namespace];
        let table = self.lab.kubectl(table).await;
        let (header, row) = table.trim_end().split_once('\n').unwrap();
        // Columns are as wide as their widest cell, and three spaces apart.
        let starts = header
            .char_indices()
            .filter(|&(at, c)| c != ' ' && (at == 0 || header[..at].ends_with(' ')));
        let starts: Vec<_> = starts.map(|(at, _)| at).collect();
        let ends = starts.iter().skip(1).copied().chain([usize::MAX]);
        let cell = |line: &str, start: usize, end: usize| {
            let end = end.min(line.len());
            line.get(start..end).unwrap_or_default().trim().to_owned()
        };
        let columns = starts.iter().zip(ends);
        columns
            .map(|(&start, end)| (cell(header, start, end), cell(row, start, end)))
            .collect()
    }

    /// The calls of Tailscale's API of this method whose path holds `path`, the oldest first.
    pub async fn asked(&self, method: &str, path: &str) -> Vec<Value> {
        let calls = self.tailnet.get("/api/calls").await;
        let calls = calls.as_array().unwrap().iter();
        let fits = |call: &&Value| {
            call["method"] == method && call["path"].as_str().unwrap().contains(path)
        };
        calls.filter(fits).cloned().collect()
    }

    /// The node of this name in the tailnet.
    pub async fn node(&self, name: &str) -> Value {
        self.tailnet.get(&format!("/nodes/{name}")).await
    }

    /// A condition of an object, or of one of its listeners; null when there is none.
    pub async fn condition_now(
        &self,
        (namespace, object): (&str, &str),
        listener: Option<&str>,
        kind: &str,
    ) -> Value {
        let object = self.lab.object(namespace, object).await.unwrap();
        let conditions = match listener {
            None => object["status"]["conditions"].clone(),
            Some(name) => {
                let listeners = object["status"]["listeners"].as_array();
                let listener = listeners.into_iter().flatten().find(|l| l["name"] == name);
                listener.map_or(Value::Null, |listener| listener["conditions"].clone())
            }
        };
        let conditions = conditions.as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|c| c["type"] == kind);
        found.unwrap_or_default()
    }

    /// Waits until a listener's condition has this status and reason; its message.
    pub async fn listener_condition(
        &self,
        gateway: (&str, &str),
        listener: &str,
        (kind, status, reason): (&str, &str, &str),
    ) -> String {
        let what = format!("{listener} of {gateway:?}: {kind}={status} {reason}");
        self.lab
            .eventually(&what, || async {
                let found = self.condition_now(gateway, Some(listener), kind).await;
                let is_it = found["status"] == status && found["reason"] == reason;
                is_it.then(|| text(&found["message"]))
            })
            .await
    }

    /// Waits until a condition of a route's only parent has this status and reason; its message.
    pub async fn route_condition(
        &self,
        namespace: &str,
        route: &str,
        (kind, status, reason): (&str, &str, &str),
    ) -> String {
        let what = format!("tcproute/{route} in {namespace}: {kind}={status} {reason}");
        self.lab
            .eventually(&what, || async {
                let route = self
                    .lab
                    .object(namespace, &format!("tcproute/{route}"))
                    .await?;
                let parents = route["status"]["parents"].as_array()?;
                assert!(parents.len() < 2, "{route}");
                let conditions = parents.first()?["conditions"].as_array()?;
                let found = conditions.iter().find(|c| c["type"] == kind)?;
                let current = found["observedGeneration"] == route["metadata"]["generation"];
                let is_it = current && found["status"] == status && found["reason"] == reason;
                is_it.then(|| text(&found["message"]))
            })
            .await
    }

    /// Waits until a client of the tailnet gets no answer there.
    pub async fn closed(&self, url: &str) {
        let what = format!("{url} is not answered");
        self.lab
            .eventually(&what, || async { self.tailnet.visit(url).await.err() })
            .await;
    }

    /// Applies a merge patch.
    pub async fn patch(&self, namespace: &str, object: &str, patch: Value) {
        let patch = patch.to_string();
        let arguments = ["patch", object, "--namespace", namespace, "--type=merge"];
        let arguments = arguments.into_iter().chain(["--patch", &*patch]);
        self.lab.kubectl(arguments).await;
    }
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
