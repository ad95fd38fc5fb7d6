//! Raw bindings of libtailscale, the Go module in the directory above.
//!
//! What each function does, who owns what, which threads call back and what may block is written
//! in `tailscale.h`; nothing here adds to it. `gen.sh` makes the bindings anew after a change of
//! the header.

#[allow(
    missing_docs,
    non_camel_case_types,
    unreachable_pub,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]
mod bindings;

pub use bindings::*;
