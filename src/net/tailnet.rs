//! Listeners on a tailnet node.
