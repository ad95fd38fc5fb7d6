//! What there is once in a process: Go's log, environment, heap and signals.

use super::{Error, ffi};
use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
};

/// Host names of the nodes of this process, for log lines.
static NAMES: LazyLock<Mutex<HashMap<ffi::NodeHandle, String>>> = LazyLock::new(Mutex::default);

/// Sends the log of Go code to `tracing`, target `tailscale`.
///
/// # Errors
/// When the library refuses.
pub fn forward_logs() -> Result<(), Error> {
    ffi::set_log(|node, level, line| {
        let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        let node = node
            .and_then(|node| names.get(&node))
            .map_or("", String::as_str);
        match level {
            ffi::LOG_INFO => tracing::info!(target: "tailscale", node, "{line}"),
            ffi::LOG_WARN => tracing::warn!(target: "tailscale", node, "{line}"),
            _ => tracing::debug!(target: "tailscale", node, "{line}"),
        }
    })
}

pub(super) fn name_node(node: ffi::NodeHandle, name: &str) {
    NAMES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(node, name.into());
}

pub(super) fn forget_node(node: ffi::NodeHandle) {
    NAMES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&node);
}

/// Makes the signal handlers of this process fit for Go's threads (SA_ONSTACK): to be called after
/// each registration of one, such as the first use of a `tokio::signal`. Without it, a signal that
/// hits a Go thread ends the process.
///
/// # Errors
/// When the system refuses to change a handler.
pub fn patch_signal_handlers() -> Result<(), Error> {
    ffi::signals_onstack()
}

/// Sets an environment variable for Go code, which does not see later changes of the process's.
///
/// # Errors
/// When name or value is not text.
pub fn set_environment(name: &str, value: &str) -> Result<(), Error> {
    ffi::set_environment(name, value)
}

/// Bounds the Go heap: a soft limit in bytes (`GOMEMLIMIT`) and its growth in percent (`GOGC`);
/// `None` leaves one as it is.
///
/// # Errors
/// When the library refuses.
pub fn set_memory(limit_bytes: Option<u64>, gc_percent: Option<u32>) -> Result<(), Error> {
    ffi::set_memory(limit_bytes, gc_percent)
}

/// Version of tailscale.com that is linked in.
pub fn tailscale_version() -> &'static str {
    ffi::version()
}

/// What is alive on the Go side of this process.
pub fn counts() -> ffi::Counts {
    ffi::counts()
}
