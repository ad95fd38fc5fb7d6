//! Listeners on sockets of this host.
