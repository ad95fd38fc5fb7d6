//! Tailnet nodes: safe, async, owned types over `libtailscale-sys`.

mod error;

pub use error::Error;
