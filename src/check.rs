//! What `tailway check` prints: the conditions that each object would get.

use crate::{
    api::{CONTROLLER, conditions as c},
    index::status::{Condition, GatewayStatus, Statuses},
    model::ObjectName,
};
use serde::Serialize;
use std::fmt::Write;

/// One line of the table.
struct Row {
    kind: &'static str,
    name: String,
    part: String,
    condition: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// The conditions as a table for people: what is wrong comes with its reason and message, what is
/// fine in one line per object.
pub fn table(statuses: &Statuses) -> String {
    render(&rows(statuses))
}

fn rows(statuses: &Statuses) -> Vec<Row> {
    let mut rows = Vec::new();
    for class in &statuses.classes {
        add(
            &mut rows,
            "GatewayClass",
            &class.name,
            "",
            &class.conditions,
        );
    }
    for gateway in &statuses.gateways {
        let name = gateway.name.to_string();
        add(&mut rows, "Gateway", &name, "", &gateway.conditions);
        for listener in &gateway.listeners {
            let part = format!("listener {}", listener.name);
            add(&mut rows, "Gateway", &name, &part, &listener.conditions);
        }
    }
    for route in &statuses.tcp_routes {
        let name = route.name.to_string();
        for parent in &route.parents {
            let section = parent.parent_ref.section_name.as_ref();
            let section = section
                .map(|section| format!("/{section}"))
                .unwrap_or_default();
            let part = format!("parent {}{section}", parent.parent_ref.name);
            add(&mut rows, "TCPRoute", &name, &part, &parent.conditions);
        }
    }
    rows
}

/// What is wrong, a line each.
pub fn problems(statuses: &Statuses) -> Vec<String> {
    rows(statuses)
        .into_iter()
        .filter(|row| row.status == "False" || row.condition == c::CONFLICTED)
        .map(|row| {
            format!(
                "{} {} {} {}={} {}: {}",
                row.kind, row.name, row.part, row.condition, row.status, row.reason, row.message
            )
        })
        .collect()
}

/// The Gateways that are not programmed and why, a line each.
pub fn unprogrammed(statuses: &Statuses) -> String {
    let waiting = statuses.gateways.iter().flat_map(|gateway| {
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

fn add(rows: &mut Vec<Row>, kind: &'static str, name: &str, part: &str, conditions: &[Condition]) {
    let row = |condition: &Condition| Row {
        kind,
        name: name.into(),
        part: part.into(),
        condition: condition.kind,
        status: if condition.status { "True" } else { "False" },
        reason: condition.reason,
        message: condition.message.clone(),
    };
    // Nothing is programmed by looking, and no conflict is no news.
    let told = conditions.iter().filter(|condition| match condition.kind {
        c::PROGRAMMED => false,
        c::CONFLICTED => condition.status,
        c::ACCEPTED => true,
        _ => !condition.status,
    });
    rows.extend(told.map(row));
}

fn render(rows: &[Row]) -> String {
    let header = [
        "KIND",
        "NAME",
        "PART",
        "CONDITION",
        "STATUS",
        "REASON",
        "MESSAGE",
    ]
    .map(str::to_owned);
    let cells = rows.iter().map(|row| {
        [
            row.kind.to_owned(),
            row.name.clone(),
            row.part.clone(),
            row.condition.to_owned(),
            row.status.to_owned(),
            row.reason.to_owned(),
            row.message.clone(),
        ]
    });
    let lines: Vec<_> = std::iter::once(header).chain(cells).collect();
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..6).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut printed = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(printed, "{cell:width$}  ");
        }
        printed.push_str(&line[6]);
        text.push_str(printed.trim_end());
        text.push('\n');
    }
    text
}

/// The statuses as YAML documents, each as the object would carry it.
pub fn yaml(statuses: &Statuses) -> String {
    let classes = statuses.classes.iter().map(|class| {
        document(
            "gateway.networking.k8s.io/v1",
            "GatewayClass",
            &ObjectName::new("", &class.name),
            &ClassBody {
                conditions: &class.conditions,
            },
        )
    });
    let gateways = statuses.gateways.iter().map(|gateway| {
        document(
            "gateway.networking.k8s.io/v1",
            "Gateway",
            &gateway.name,
            &GatewayBody::of(gateway),
        )
    });
    let routes = statuses.tcp_routes.iter().map(|route| {
        document(
            "gateway.networking.k8s.io/v1",
            "TCPRoute",
            &route.name,
            &RouteBody {
                parents: &route.parents,
            },
        )
    });
    classes.chain(gateways).chain(routes).collect()
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
struct GatewayBody<'a> {
    addresses: &'a [crate::index::status::Address],
    conditions: &'a [Condition],
    listeners: &'a [crate::index::status::ListenerStatus],
}

#[derive(Serialize)]
struct RouteBody<'a> {
    parents: &'a [crate::index::status::ParentStatus],
}

impl<'a> GatewayBody<'a> {
    fn of(gateway: &'a GatewayStatus) -> Self {
        Self {
            addresses: &gateway.addresses,
            conditions: &gateway.conditions,
            listeners: &gateway.listeners,
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
