//! ListenerSets: listeners that others add to a Gateway.

use super::{
    Index, Key, Kind,
    changes::replace,
    gateways::Known,
    links::{Stage, in_namespace},
    listeners::{Allowed, Listener},
    objects::{Objects, Precedence, generation, precedence},
    routes::Route,
    status::{Condition, Finding, ListenerSetStatus},
};
use crate::{
    api::{
        GATEWAY_GROUP, conditions as c,
        gateway_api::{
            gateways::{Gateway, GatewayAllowedListenersNamespacesFrom as From, GatewayListeners},
            listenersets::ListenerSet,
        },
    },
    model::ObjectName,
};
use std::{collections::BTreeSet, sync::Arc};

/// The object that a listener is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Gateway,
    Set(ObjectName),
}

/// What is read of a ListenerSet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Set {
    precedence: Precedence,
    generation: i64,
    /// The Gateway that it means, or the kind that is none.
    parent: Result<ObjectName, String>,
    pub(super) listeners: Vec<GatewayListeners>,
}

/// A ListenerSet of a Gateway of ours.
#[derive(Clone, Debug)]
pub(super) struct Member {
    name: ObjectName,
    generation: i64,
    /// Why the Gateway does not let it in.
    refused: Option<Finding>,
}

// === impl Origin ===

impl Origin {
    /// A name that no other listener of the Gateway has.
    pub(super) fn unique(&self, section: &str) -> String {
        match self {
            Self::Gateway => section.into(),
            Self::Set(set) => format!("{set}/{section}"),
        }
    }

    /// Kind and namespace of the object, as a listener of this Gateway has it.
    pub(super) fn home<'a>(&'a self, gateway: &'a ObjectName) -> (Kind, &'a str) {
        match self {
            Self::Gateway => (Kind::Gateway, &gateway.namespace),
            Self::Set(set) => (Kind::ListenerSet, &set.namespace),
        }
    }
}

// === impl Set ===

impl Set {
    pub(super) fn of(name: &ObjectName, set: &ListenerSet) -> Self {
        let parent = &set.spec.parent_ref;
        let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        let namespace = parent.namespace.as_ref().unwrap_or(&name.namespace);
        let is_gateway = (group, kind) == (GATEWAY_GROUP, "Gateway");
        Self {
            precedence: precedence(&set.metadata, name),
            generation: generation(&set.metadata),
            parent: match is_gateway {
                true => Ok(ObjectName::new(namespace, &parent.name)),
                false => Err(super::qualified(kind, group)),
            },
            // The same words, of another type.
            listeners: super::same(Some(&set.spec.listeners)).unwrap_or_default(),
        }
    }

    fn gateway(&self) -> Option<&ObjectName> {
        self.parent.as_ref().ok()
    }

    /// The Secrets that its listeners refer to.
    fn secrets(&self, name: &ObjectName) -> Vec<ObjectName> {
        let tls = self.listeners.iter().flat_map(|listener| &listener.tls);
        let references = tls.flat_map(|tls| tls.certificate_refs.iter().flatten());
        references
            .map(|reference| {
                let namespace = reference.namespace.as_ref().unwrap_or(&name.namespace);
                ObjectName::new(namespace, &reference.name)
            })
            .collect()
    }
}

impl Objects {
    /// The ListenerSets that mean a Gateway, in the order of their precedence: the oldest first,
    /// then by name (Gateway API `ListenerSetSpec.listeners`).
    pub(super) fn sets_of(&self, name: &ObjectName) -> Vec<(&ObjectName, &Set)> {
        let names = self.sets_of_gateway.of(name);
        let mut sets: Vec<_> = names
            .filter_map(|set| self.sets.get_key_value(set))
            .collect();
        sets.sort_by_key(|(_, set)| &set.precedence);
        sets
    }

    /// The ListenerSets of a Gateway, and whether it lets them in.
    pub(super) fn members(&self, name: &ObjectName, gateway: &Gateway) -> Vec<Member> {
        let sets = self.sets_of(name).into_iter();
        let member = |(set, read): (&ObjectName, &Set)| {
            Member {
            name: set.clone(),
            generation: read.generation,
            refused: (!self.lets_in(name, gateway, &set.namespace)).then(|| {
                let message = format!(
                    "Gateway {name} takes no ListenerSets of namespace {}: see its spec.allowedListeners",
                    set.namespace
                );
                Finding::new(c::NOT_ALLOWED, message)
            }),
        }
        };
        sets.map(member).collect()
    }

    /// Whether ListenerSets of a namespace may add listeners; by default none may.
    fn lets_in(&self, name: &ObjectName, gateway: &Gateway, namespace: &str) -> bool {
        let allowed = gateway.spec.allowed_listeners.as_ref();
        let Some(namespaces) = allowed.and_then(|allowed| allowed.namespaces.as_ref()) else {
            return false;
        };
        match namespaces.from {
            None | Some(From::None) => false,
            Some(From::All) => true,
            Some(From::Same) => name.namespace == namespace,
            Some(From::Selector) => {
                // The same words, of another type.
                let selector = super::same(namespaces.selector.as_ref());
                let allowed = selector.map_or(Allowed::None, Allowed::Selector);
                allowed.lets_in(self, &name.namespace, namespace)
            }
        }
    }

    /// The Gateways that the parentRefs of a route mean, themselves or by a ListenerSet, with the
    /// number of each parentRef.
    pub(super) fn gateways_of(&self, key: &Key, route: &Route) -> Vec<(usize, ObjectName)> {
        let by_set = route.listener_sets(key).filter_map(|(at, set)| {
            let gateway = self.sets.get(&set)?.gateway()?;
            Some((at, gateway.clone()))
        });
        let mut gateways: Vec<_> = route.gateways(key).chain(by_set).collect();
        gateways.sort();
        gateways
    }
}

// === impl Member ===

impl Member {
    pub(super) fn name(&self) -> &ObjectName {
        &self.name
    }

    pub(super) fn is_let_in(&self) -> bool {
        self.refused.is_none()
    }

    pub(super) fn is_origin_of(&self, listener: &Listener) -> bool {
        matches!(&listener.origin, Origin::Set(set) if *set == self.name)
    }

    /// Why it is not accepted. It is when one of its listeners is served.
    pub(super) fn unaccepted(
        &self,
        listeners: &[Listener],
        gateway: Option<&Finding>,
    ) -> Option<Finding> {
        if let Some(refused) = &self.refused {
            return Some(refused.clone());
        }
        if let Some(finding) = gateway {
            let message = format!("its Gateway is not accepted: {}", finding.message);
            return Some(Finding::new(c::PARENT_NOT_ACCEPTED, message));
        }
        let mut own = listeners
            .iter()
            .filter(|listener| self.is_origin_of(listener));
        (!own.any(Listener::is_valid))
            .then(|| Finding::new(c::LISTENERS_NOT_VALID, "no listener is valid"))
    }
}

impl Known<'_> {
    /// The status of a ListenerSet of this Gateway.
    pub(super) fn set_status(&self, set: &ObjectName) -> Option<ListenerSetStatus> {
        let candidate = self.candidate;
        let member = candidate
            .members
            .iter()
            .find(|member| member.name == *set)?;
        let unserved = candidate.unserved();
        let parent = self.unprogrammed(unserved.as_ref());
        let own = candidate.listeners.iter();
        let own = own.filter(|listener| member.is_origin_of(listener));
        let generation = member.generation;
        let listeners = own.clone().map(|listener| {
            let mut status = self.listener_status(listener, parent.as_ref(), generation);
            status.name.clone_from(&listener.section);
            status
        });
        let listeners = listeners.collect();
        let unaccepted = member.unaccepted(&candidate.listeners, unserved.as_ref());
        let unprogrammed = match &unaccepted {
            Some(finding) if finding.reason == c::PARENT_NOT_ACCEPTED => Some(Finding::new(
                c::PARENT_NOT_PROGRAMMED,
                finding.message.clone(),
            )),
            Some(finding) => Some(finding.clone()),
            None => parent.map(|finding| {
                let reason = match finding.reason {
                    c::PENDING | c::ADDRESS_NOT_ASSIGNED => c::PENDING,
                    _ => c::PARENT_NOT_PROGRAMMED,
                };
                Finding::new(reason, finding.message)
            }),
        };
        let invalid: Vec<_> = own
            .filter(|listener| !listener.is_valid())
            .map(|listener| listener.section.as_str())
            .collect();
        let accepted = match unaccepted {
            None if !invalid.is_empty() => {
                let message = format!(
                    "listener {} is not valid, the others are",
                    invalid.join(", ")
                );
                Condition::new(
                    c::ACCEPTED,
                    true,
                    c::LISTENERS_NOT_VALID,
                    message,
                    generation,
                )
            }
            unaccepted => Condition::of(c::ACCEPTED, unaccepted, generation),
        };
        Some(ListenerSetStatus {
            name: set.clone(),
            conditions: vec![
                accepted,
                Condition::of(c::PROGRAMMED, unprogrammed, generation),
            ],
            listeners,
        })
    }
}

impl Index {
    pub(super) fn set_listener_set(&mut self, name: &ObjectName, set: Option<Arc<ListenerSet>>) {
        let new = set.as_deref().map(|set| Set::of(name, set));
        self.objects.listener_sets.set(name, set);
        let Some(old) = replace(&mut self.objects.sets, name, new.clone()) else {
            return;
        };
        let both = [old.as_ref(), new.as_ref()];
        let [before, now] = both.map(|set| set.and_then(Set::gateway).cloned());
        for gateway in before.iter().chain(&now) {
            self.pending.gateway(gateway, Stage::Listeners);
        }
        self.objects.sets_of_gateway.replace(name, before, now);
        let [before, now] = both.map(|set| set.map_or_else(Vec::new, |set| set.secrets(name)));
        self.links.sets_of_secret.replace(name, before, now);
        let routes = self.links.routes_of_listener_set.of(name).cloned();
        self.pending.route_statuses.extend(routes);
        self.pending.listener_sets.insert(name.clone());
    }

    /// Marks the Gateways of ListenerSets with certificates in a Secret, or in a namespace of it.
    pub(super) fn certificates_changed(&mut self, sets: &BTreeSet<ObjectName>) {
        for set in sets {
            let gateway = self.objects.sets.get(set).and_then(Set::gateway);
            if let Some(gateway) = gateway {
                self.pending.gateway(gateway, Stage::Listeners);
            }
        }
    }

    /// Marks the Gateways that may choose ListenerSets by the labels of a namespace.
    pub(super) fn labels_changed(&mut self, namespace: &str) {
        let sets = in_namespace(&self.objects.sets, namespace);
        for gateway in sets.filter_map(|(_, set)| set.gateway()) {
            self.pending.gateway(gateway, Stage::Listeners);
        }
    }

    /// The routes that a Gateway may have, by a ListenerSet too.
    pub(super) fn routes_of(&self, gateway: &ObjectName) -> BTreeSet<Key> {
        let own = self.links.routes_of_gateway.of(gateway);
        let sets = self.objects.sets_of_gateway.of(gateway);
        let by_set = sets.flat_map(|set| self.links.routes_of_listener_set.of(set));
        own.chain(by_set).cloned().collect()
    }

    /// The status of a ListenerSet; none when its Gateway is not ours.
    pub(super) fn conclude_listener_set(&mut self, name: &ObjectName) {
        let set = self.objects.sets.get(name);
        let known = set
            .and_then(Set::gateway)
            .and_then(|gateway| self.known(gateway));
        let status = known.and_then(|known| known.set_status(name));
        let message = set.and_then(|set| match &set.parent {
            Err(kind) => Some(format!("parentRef is a {kind}: a Gateway can be one")),
            Ok(gateway) if self.objects.gateways.contains_key(gateway) => None,
            Ok(gateway) => Some(format!("parentRef: there is no Gateway {gateway}")),
        });
        self.outcome.statuses.listener_sets.settle(name, status);
        let key = Key {
            kind: Kind::ListenerSet,
            name: name.clone(),
        };
        let messages = message.map(|message| vec![message]);
        self.outcome.statuses.unclaimed.settle(&key, messages);
    }
}
