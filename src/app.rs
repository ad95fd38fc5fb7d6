//! The wiring of each verb, in the order in which things start.

mod controller;
mod extension;
mod proxy;
mod run;
mod signals;

pub use controller::{ControllerError, controller};
pub use extension::{ExtensionError, extension};
pub use proxy::{ProxyError, proxy};
pub use run::{RunError, run};
pub use signals::SignalError;

use crate::{
    args::{CheckArguments, LimitArguments, Output},
    check,
    index::Index,
    model::Snapshot,
    proxy::Limits,
    source::{self, LoadError},
};
use std::sync::Arc;

/// What `tailway check` found.
#[derive(Debug)]
pub struct Checked {
    pub text: String,
    pub warnings: Vec<String>,
    pub all_accepted: bool,
}

/// `tailway check`: what would become of the objects, without starting anything.
///
/// # Errors
/// When the files cannot be used.
pub fn check(arguments: &CheckArguments) -> Result<Checked, LoadError> {
    let loaded = source::load(&arguments.files)?;
    let mut index = Index::default();
    index.reset(loaded.objects);
    let statuses = index.evaluate().statuses;
    Ok(Checked {
        text: match arguments.output {
            Output::Table => check::table(&statuses),
            Output::Yaml => check::yaml(&statuses),
        },
        warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
        all_accepted: statuses.all_accepted(),
    })
}

/// Snapshots as the admin server shows them, secrets redacted.
fn snapshots_yaml<'a>(snapshots: impl IntoIterator<Item = &'a Arc<Snapshot>>) -> String {
    let yaml = |snapshot: &Arc<Snapshot>| match serde_saphyr::to_string(&**snapshot) {
        Ok(text) => format!("---\n{text}"),
        Err(error) => format!("---\n# {} cannot be written: {error}\n", snapshot.gateway),
    };
    snapshots.into_iter().map(yaml).collect()
}

impl From<&LimitArguments> for Limits {
    fn from(arguments: &LimitArguments) -> Self {
        Self {
            handshake_timeout: arguments.handshake_timeout,
            connect_timeout: arguments.connect_timeout,
            idle_timeout: arguments.idle_timeout,
            head_timeout: arguments.head_timeout,
            body_timeout: Some(arguments.body_timeout),
            connections: arguments.max_connections,
            connections_per_peer: arguments.max_connections_per_peer,
            udp_idle_timeout: arguments.udp_idle_timeout,
            udp_flows: arguments.max_udp_flows,
            udp_flows_per_peer: arguments.max_udp_flows_per_peer,
        }
    }
}
