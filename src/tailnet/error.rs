use std::time::Duration;

/// What can go wrong with a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The library refused the call or the operation failed; the text says why.
    #[error("{0}")]
    Engine(String),
    #[error("the tailnet node is closed")]
    Closed,
    #[error("the operation was cancelled")]
    Cancelled,
    #[error("the library answered what tailway cannot read: {0}")]
    Answer(String),
    /// No certificate was issued.
    #[error("{message}")]
    Certificate {
        message: String,
        /// How long the certificate authority asks to be left alone, when it said so.
        retry_after: Option<Duration>,
    },
}
