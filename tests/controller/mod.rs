//! The controller without a cluster: what it makes of what it knows.

mod endpoints;
mod policies;
mod status;
mod world;
