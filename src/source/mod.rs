//! Where objects come from: YAML files, or a cluster.

mod cluster;
mod document;
mod fields;
mod files;
mod generations;
mod rules;
mod watch;

pub use cluster::{Change, ClusterSettings, Watches, served, watch_cluster};
pub use document::Problem;
pub use fields::Place;
pub use files::{LoadError, Loaded, files as files_of, load};
pub use watch::{WatchError, watch};
