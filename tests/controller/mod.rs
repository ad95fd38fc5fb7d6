//! The controller without a cluster: what it makes of what it knows.

mod policies;
mod status;
mod world;
