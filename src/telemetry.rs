//! Log lines: written to stderr, so that stdout stays what a command answers.

use crate::args::{LogArguments, LogFormat};
use std::io::{self, IsTerminal};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

#[derive(Debug, thiserror::Error)]
#[error("--log-level {filter:?} is no filter: {error}")]
pub struct FilterError {
    filter: String,
    error: tracing_subscriber::filter::ParseError,
}

/// Installs the subscriber of the process.
///
/// # Errors
/// When the filter cannot be read.
pub fn start(arguments: &LogArguments) -> Result<(), FilterError> {
    let filter = EnvFilter::try_new(&arguments.log_level).map_err(|error| FilterError {
        filter: arguments.log_level.clone(),
        error,
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    match arguments.log_format {
        LogFormat::Text => registry
            .with(
                fmt::layer()
                    .with_ansi(io::stderr().is_terminal())
                    .with_writer(io::stderr),
            )
            .init(),
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(io::stderr),
            )
            .init(),
    }
    Ok(())
}
