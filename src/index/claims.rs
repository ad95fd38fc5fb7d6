//! Listeners of bytes, and the routes that ask for their names: each name has one route.

use super::{
    objects::Key,
    routes::{Attachment, Named},
    status::Finding,
};
use crate::{api::conditions as c, model::HostnamePattern};
use std::collections::BTreeMap;

/// What a route asks of a listener.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) listener: String,
    pub(super) route: Key,
    /// The number of the parentRef.
    pub(super) parent: usize,
    /// A name that both have; `None`: all that nobody else asks for.
    pub(super) name: Option<HostnamePattern>,
    /// How much the route's own hostname says: the names that both have can be the same although
    /// the hostnames are not.
    pub(super) specificity: Option<(bool, usize)>,
}

/// Gives each name to the route whose hostname says most, and of several to the first; claims come
/// in the order of precedence. Those that ask in vain for what an equal of theirs has are told so
/// in `results`.
pub(super) fn settle(
    claims: &[Claim],
    results: &mut BTreeMap<(Key, usize), Attachment>,
) -> BTreeMap<String, Vec<Named>> {
    let mut owners: BTreeMap<(&str, Option<&HostnamePattern>), &Claim> = BTreeMap::new();
    for claim in claims {
        let owner = owners.entry(claim.asked_for()).or_insert(claim);
        if owner.specificity < claim.specificity {
            *owner = claim;
        }
    }
    let mut served: BTreeMap<String, Vec<Named>> = BTreeMap::new();
    let mut taken: BTreeMap<(&Key, usize), Vec<String>> = BTreeMap::new();
    for claim in claims {
        let owner = owners[&claim.asked_for()];
        if owner.route == claim.route {
            let listener = served.entry(claim.listener.clone()).or_default();
            give(listener, claim);
        } else if owner.specificity == claim.specificity {
            let of = (&claim.route, claim.parent);
            taken.entry(of).or_default().push(owner.told());
        }
    }
    for ((route, parent), owners) in taken {
        let message = format!(
            "{}, which comes first by age, then name: this route takes no connections there",
            owners.join("; ")
        );
        let finding = Finding::new(c::OLDER_ROUTE, message);
        results.insert((route.clone(), parent), Ok(Some(finding)));
    }
    served
}

fn give(listener: &mut Vec<Named>, claim: &Claim) {
    let known = listener.iter().position(|(key, _)| *key == claim.route);
    let at = known.unwrap_or_else(|| {
        listener.push((claim.route.clone(), Vec::new()));
        listener.len() - 1
    });
    let names = &mut listener[at].1;
    if let Some(name) = claim.name.as_ref().filter(|name| !names.contains(name)) {
        names.push(name.clone());
    }
}

// === impl Claim ===

impl Claim {
    fn asked_for(&self) -> (&str, Option<&HostnamePattern>) {
        (&self.listener, self.name.as_ref())
    }

    fn told(&self) -> String {
        let Self {
            listener, route, ..
        } = self;
        match &self.name {
            Some(name) => format!("listener {listener} serves {route} for {name}"),
            None => format!("listener {listener} serves {route}"),
        }
    }
}
