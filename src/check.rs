//! What `tailway check` prints: the conditions that each object would get.

use crate::{
    api::{CONTROLLER, conditions as c},
    index::status::{Condition, GatewayStatus, ParentRef, Statuses},
    model::ObjectName,
};
use serde::Serialize;
use std::fmt::Write;

/// One line of the table.
struct Row {
    mark: Mark,
    kind: String,
    name: String,
    part: String,
    condition: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// How much a line matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Fine,
    /// Something is left out, the rest is served.
    Flaw,
    /// Not served until an object is changed.
    Refusal,
}

/// The conditions as a table for people: what is wrong comes with its reason and message, what is
/// fine in one line per object.
pub fn table(statuses: &Statuses) -> String {
    render(&rows(statuses))
}

/// What is wrong, a line each.
pub fn problems(statuses: &Statuses) -> Vec<String> {
    let line = |row: Row| {
        let words = [&row.kind, &row.name, &row.part].map(String::as_str);
        let object = words.join(" ").trim_end().to_owned();
        match row.condition {
            "" => format!("{object}: {}", row.message),
            condition => format!(
                "{object} {condition}={} {}: {}",
                row.status, row.reason, row.message
            ),
        }
    };
    rows(statuses)
        .into_iter()
        .filter(|row| row.mark != Mark::Fine)
        .map(line)
        .collect()
}

fn rows(statuses: &Statuses) -> Vec<Row> {
    let mut rows = Vec::new();
    for class in statuses.classes.values() {
        rows.extend(told("GatewayClass", &class.name, "", &class.conditions));
    }
    for gateway in statuses.gateways.values() {
        let name = gateway.name.to_string();
        rows.extend(told("Gateway", &name, "", &gateway.conditions));
        for listener in &gateway.listeners {
            let part = format!("listener {}", listener.name);
            let listener = told("Gateway", &name, &part, &listener.conditions);
            // What holds the whole Gateway back is said once.
            rows.extend(listener.filter(|row| {
                row.condition != c::PROGRAMMED
                    || gateway
                        .conditions
                        .iter()
                        .all(|own| own.message != row.message)
            }));
        }
    }
    for set in statuses.listener_sets.values() {
        let name = set.name.to_string();
        rows.extend(told("ListenerSet", &name, "", &set.conditions));
        for listener in &set.listeners {
            let part = format!("listener {}", listener.name);
            let listener = told("ListenerSet", &name, &part, &listener.conditions);
            // What holds the whole set back is said once.
            rows.extend(listener.filter(|row| {
                row.condition != c::PROGRAMMED
                    || set.conditions.iter().all(|own| own.message != row.message)
            }));
        }
    }
    for (key, route) in &statuses.routes {
        let name = route.name.to_string();
        for parent in &route.parents {
            let part = part(&parent.parent_ref);
            rows.extend(told(key.kind.as_str(), &name, &part, &parent.conditions));
        }
    }
    for policy in statuses.policies.values() {
        let name = policy.name.to_string();
        for ancestor in &policy.ancestors {
            let part = part(&ancestor.ancestor_ref);
            rows.extend(told("BackendTLSPolicy", &name, &part, &ancestor.conditions));
        }
    }
    for (key, messages) in &statuses.unclaimed {
        rows.extend(messages.iter().map(|message| Row {
            mark: Mark::Refusal,
            kind: key.kind.to_string(),
            name: key.name.to_string(),
            part: String::new(),
            condition: "",
            status: "",
            reason: "",
            message: message.clone(),
        }));
    }
    rows
}

fn part(parent: &ParentRef) -> String {
    let mut part = String::from("parent ");
    if let Some(namespace) = &parent.namespace {
        part.push_str(namespace);
        part.push('/');
    }
    part.push_str(&parent.name);
    if let Some(section) = &parent.section_name {
        part.push(' ');
        part.push_str(section);
    }
    if let Some(port) = parent.port {
        let _ = write!(part, ":{port}");
    }
    part
}

/// The lines of one set of conditions.
fn told<'a>(
    kind: &'static str,
    name: &'a str,
    part: &'a str,
    conditions: &'a [Condition],
) -> impl Iterator<Item = Row> + 'a {
    let accepted = conditions
        .iter()
        .any(|condition| condition.kind == c::ACCEPTED && condition.status);
    conditions.iter().filter_map(move |condition| {
        let tells = match condition.kind {
            c::ACCEPTED => true,
            c::RESOLVED_REFS => !condition.status,
            c::PARTIALLY_INVALID
            | c::INVALID_ANNOTATIONS
            | c::INSECURE_FRONTEND_VALIDATION_MODE => condition.status,
            // What is not accepted is not programmed either, and its conflict is the reason.
            _ => accepted && condition.is_refusal(),
        };
        let mark = match (condition.is_refusal(), condition.status) {
            (true, _) => Mark::Refusal,
            (false, true) if condition.message.is_empty() => Mark::Fine,
            (false, _) => Mark::Flaw,
        };
        tells.then(|| Row {
            mark,
            kind: kind.into(),
            name: name.into(),
            part: part.into(),
            condition: condition.kind,
            status: if condition.status { "True" } else { "False" },
            reason: condition.reason,
            message: condition.message.clone(),
        })
    })
}

/// The Gateways that are not programmed and why, a line each.
pub fn unprogrammed(statuses: &Statuses) -> String {
    let waiting = statuses.gateways.values().flat_map(|gateway| {
        let programmed = gateway
            .conditions
            .iter()
            .filter(|condition| condition.kind == c::PROGRAMMED);
        programmed
            .filter(|condition| !condition.status)
            .map(move |condition| {
                format!(
                    "{}: {}: {}\n",
                    gateway.name, condition.reason, condition.message
                )
            })
    });
    waiting.collect()
}

fn render(rows: &[Row]) -> String {
    let header = [
        "",
        "KIND",
        "NAME",
        "PART",
        "CONDITION",
        "STATUS",
        "REASON",
        "MESSAGE",
    ];
    let cells = rows.iter().map(|row| {
        let mark = match row.mark {
            Mark::Fine => "✓",
            Mark::Flaw => "!",
            Mark::Refusal => "✗",
        };
        [
            mark,
            &row.kind,
            &row.name,
            &row.part,
            // The domain of a condition that is ours tells people nothing.
            row.condition.rsplit('/').next().unwrap_or_default(),
            row.status,
            row.reason,
            &row.message,
        ]
    });
    let lines: Vec<_> = std::iter::once(header).chain(cells).collect();
    let width = |column: usize| {
        let widths = lines.iter().map(|line| line[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..7).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut printed = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(printed, "{cell:width$}  ");
        }
        printed.push_str(line[7]);
        text.push_str(printed.trim_end());
        text.push('\n');
    }
    text
}

/// The statuses as YAML documents, each as the object would carry it.
pub fn yaml(statuses: &Statuses) -> String {
    let classes = statuses.classes.values().map(|class| {
        document(
            "gateway.networking.k8s.io/v1",
            "GatewayClass",
            &ObjectName::new("", &class.name),
            &ClassBody {
                conditions: &class.conditions,
            },
        )
    });
    let gateways = statuses.gateways.values().map(|gateway| {
        document(
            "gateway.networking.k8s.io/v1",
            "Gateway",
            &gateway.name,
            &GatewayBody::of(gateway),
        )
    });
    let sets = statuses.listener_sets.values().map(|set| {
        document(
            "gateway.networking.k8s.io/v1",
            "ListenerSet",
            &set.name,
            &SetBody {
                conditions: &set.conditions,
                listeners: &set.listeners,
            },
        )
    });
    let routes = statuses.routes.iter().map(|(key, route)| {
        document(
            "gateway.networking.k8s.io/v1",
            key.kind.as_str(),
            &route.name,
            &RouteBody {
                parents: &route.parents,
            },
        )
    });
    let policies = statuses.policies.values().map(|policy| {
        document(
            "gateway.networking.k8s.io/v1",
            "BackendTLSPolicy",
            &policy.name,
            &PolicyBody {
                ancestors: &policy.ancestors,
            },
        )
    });
    let unclaimed = statuses.unclaimed.iter().flat_map(|(key, messages)| {
        let messages = messages.iter();
        messages.map(move |message| format!("---\n# {} {}: {message}\n", key.kind, key.name))
    });
    classes
        .chain(gateways)
        .chain(sets)
        .chain(routes)
        .chain(policies)
        .chain(unclaimed)
        .collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a, S> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    status: &'a S,
}

#[derive(Serialize)]
struct Metadata<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
}

#[derive(Serialize)]
struct ClassBody<'a> {
    conditions: &'a [Condition],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayBody<'a> {
    addresses: &'a [crate::index::status::Address],
    conditions: &'a [Condition],
    listeners: &'a [crate::index::status::ListenerStatus],
    #[serde(skip_serializing_if = "Option::is_none")]
    attached_listener_sets: Option<i32>,
}

#[derive(Serialize)]
struct SetBody<'a> {
    conditions: &'a [Condition],
    listeners: &'a [crate::index::status::ListenerStatus],
}

#[derive(Serialize)]
struct RouteBody<'a> {
    parents: &'a [crate::index::status::ParentStatus],
}

#[derive(Serialize)]
struct PolicyBody<'a> {
    ancestors: &'a [crate::index::status::AncestorStatus],
}

impl<'a> GatewayBody<'a> {
    fn of(gateway: &'a GatewayStatus) -> Self {
        Self {
            addresses: &gateway.addresses,
            conditions: &gateway.conditions,
            listeners: &gateway.listeners,
            attached_listener_sets: Some(gateway.attached_listener_sets)
                .filter(|attached| *attached > 0),
        }
    }
}

fn document<S: Serialize>(
    api_version: &'static str,
    kind: &'static str,
    name: &ObjectName,
    status: &S,
) -> String {
    let metadata = Metadata {
        name: &name.name,
        namespace: &name.namespace,
    };
    let document = Document {
        api_version,
        kind,
        metadata,
        status,
    };
    match serde_saphyr::to_string(&document) {
        Ok(text) => format!("---\n{text}"),
        Err(error) => format!("---\n# {kind} {name} of {CONTROLLER} cannot be written: {error}\n"),
    }
}
