//! Signals that end the process.

use crate::tailnet;
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    #[error("signals cannot be handled: {0}")]
    Register(#[from] io::Error),
    #[error("signals cannot be handled beside the tailnet engine: {0}")]
    Engine(#[from] tailnet::Error),
}

impl Signals {
    pub(super) fn register() -> Result<Self, SignalError> {
        let signals = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        tailnet::patch_signal_handlers()?;
        Ok(signals)
    }

    /// The name of the next one.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
