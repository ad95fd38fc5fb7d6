//! Where objects come from: YAML files.

mod document;
mod files;
mod watch;

pub use document::Problem;
pub use files::{LoadError, Loaded, load};
pub use watch::{WatchError, watch};
