//! The controller without a cluster: what it makes of what it knows.

mod status;
mod world;
