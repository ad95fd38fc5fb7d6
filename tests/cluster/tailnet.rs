//! A local tailnet on a host of a lab, so that pods reach it.

use super::lab::{Host, Lab};
use crate::tailnet::world::{Tailnet, program};
use serde_json::{Value, json};
use std::ops::Deref;

/// A tailnet on a host: control server, DERP, STUN, ACME and the fake of Tailscale's API at the
/// host's address, clients in its process. What it offers is that of [`Tailnet`].
pub struct HostedTailnet<'a> {
    // First, so that it ends before its host does.
    tailnet: Tailnet,
    pub host: Host<'a>,
}

impl<'a> HostedTailnet<'a> {
    /// A tailnet on the host `name` at 10.99.0.`number`.
    pub async fn start(lab: &'a Lab, name: &str, number: u8) -> Self {
        Self::start_with(lab, name, number, &[]).await
    }

    /// The same with more arguments for `localtailnet`.
    pub async fn start_with(lab: &'a Lab, name: &str, number: u8, arguments: &[&str]) -> Self {
        let host = lab.host(name, number).await;
        let mut command = host.command(program());
        command
            .args(["-ip", &host.address.to_string()])
            .args(arguments);
        let tailnet = Tailnet::start_as(command, |admin| host.network.forward(admin)).await;
        Self { tailnet, host }
    }

    /// The `env` of a container that is a node of it.
    pub fn container_env(&self) -> Value {
        let variables = self.tailnet.environment().iter();
        variables
            .map(|(name, value)| json!({ "name": name, "value": value }))
            .collect()
    }
}

impl Deref for HostedTailnet<'_> {
    type Target = Tailnet;

    fn deref(&self) -> &Tailnet {
        &self.tailnet
    }
}
