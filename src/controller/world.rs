//! What the controller knows, and what follows from it.

use super::{discovered::Discovered, names::workload_name, schedule::until};
use crate::{
    api::{CONTROLLER, Object, conditions as c, gateway_api::gatewayclasses::GatewayClass},
    index::{Index, Key, Kind, Outcome, Subjects, Verdict, egress, status::GatewayStatus},
    metrics::Metrics,
    model::{NodeReport, ObjectName, Table},
    source::Change,
    tailnet::Secret,
};
use k8s_openapi::api::core::v1 as core;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

/// The values of a Secret, by key.
pub type Values = BTreeMap<String, Secret>;

/// All that is known at one moment; replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub outcome: Outcome,
    pub subjects: Subjects,
    /// Secrets of the system namespace that may hold credentials.
    pub credentials: Arc<BTreeMap<ObjectName, Arc<Values>>>,
    /// Gateways, and egresses, by the name of their workload.
    pub workloads: Arc<BTreeMap<String, ObjectName>>,
    /// The egresses that there are.
    pub egresses: Arc<BTreeMap<ObjectName, EgressState>>,
    /// What was found in tailnets, as far as this replica has looked.
    pub discovered: Arc<BTreeMap<ObjectName, Discovered>>,
    /// Where everything is made.
    pub system_namespace: Arc<str>,
    /// Domain of the Services there.
    pub egress_domain: Arc<str>,
    /// Whether the extension of Envoy Gateway lets targets be on Envoy's own host.
    pub local_targets: bool,
    /// Whether all objects have been listed: before that, what is missing may be there.
    pub listed: bool,
    /// When the first change came that this follows from.
    pub since: Option<Instant>,
}

/// What the index is told besides the changes of objects.
#[derive(Clone, Debug)]
pub enum Note {
    /// What the node of a Gateway says; `None`: it has no node.
    Report(ObjectName, Option<NodeReport>),
    /// What became of the parameters of a GatewayClass.
    Verdict(String, Verdict),
    /// How the egress of a TailscaleEndpoints stands; `None`: it has none.
    Egress(ObjectName, Option<EgressState>),
    /// What was found for a TailscaleEndpoints; `None`: nothing is looked for.
    Discovered(ObjectName, Option<Discovered>),
    /// All reports that there are have been told.
    Listed,
}

/// How the pods of an egress stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressState {
    pub desired: i32,
    pub ready: i32,
    /// Why none is ready.
    pub problem: String,
}

/// Owns the index: takes in changes, and publishes a [`World`] after each burst of them.
#[derive(Debug)]
pub struct Engine {
    index: Index,
    system_namespace: Arc<str>,
    egress_domain: Arc<str>,
    local_targets: bool,
    metrics: Metrics,
    egresses: Arc<BTreeMap<ObjectName, EgressState>>,
    discovered: Arc<BTreeMap<ObjectName, Discovered>>,
    credentials: Arc<BTreeMap<ObjectName, Arc<Values>>>,
    workloads: Arc<BTreeMap<String, ObjectName>>,
    /// Classes whose parameters this replica has tried.
    judged: BTreeMap<String, Verdict>,
    programmed: ProgrammedCount,
    /// Gateways that have a node in their tailnet.
    nodes: BTreeSet<ObjectName>,
    objects_listed: bool,
    reports_listed: bool,
}

/// Counts the Gateways that are programmed by what changes.
#[derive(Debug, Default)]
struct ProgrammedCount {
    gateways: Table<GatewayStatus>,
    count: usize,
}

/// One evaluation is for all that happens with pauses shorter than this,
const QUIET: Duration = Duration::from_millis(20);

/// or within this.
const PATIENCE: Duration = Duration::from_millis(200);

/// Changes that are taken in at once.
const BATCH: usize = 1024;

// === impl Engine ===

impl Engine {
    /// `cluster_domain`: of the names of Services.
    pub fn new(system_namespace: &str, cluster_domain: &str, metrics: Metrics) -> Self {
        Self {
            index: Index::with_verdicts(),
            system_namespace: system_namespace.into(),
            egress_domain: format!("{system_namespace}.svc.{cluster_domain}").into(),
            local_targets: false,
            metrics,
            egresses: Arc::default(),
            discovered: Arc::default(),
            credentials: Arc::default(),
            workloads: Arc::default(),
            judged: BTreeMap::new(),
            programmed: ProgrammedCount::default(),
            nodes: BTreeSet::new(),
            objects_listed: false,
            reports_listed: false,
        }
    }

    /// As the extension of Envoy Gateway is run: whether targets may be on Envoy's own host.
    #[must_use]
    pub fn with_local_targets(mut self, allowed: bool) -> Self {
        self.local_targets = allowed;
        self
    }

    /// Runs until the changes end.
    pub async fn run(
        mut self,
        mut changes: mpsc::Receiver<Change>,
        mut notes: mpsc::Receiver<Note>,
        world: watch::Sender<Arc<World>>,
    ) {
        let (mut some_changes, mut some_notes) = (Vec::new(), Vec::new());
        let mut since = None;
        loop {
            let due = since.map(|since: Instant| (Instant::now() + QUIET).min(since + PATIENCE));
            tokio::select! {
                count = changes.recv_many(&mut some_changes, BATCH) => if count == 0 { return },
                _ = notes.recv_many(&mut some_notes, BATCH) => {}
                () = until(due) => {
                    let since = since.take();
                    if self.is_listed() {
                        world.send_replace(Arc::new(self.evaluate(since)));
                    }
                    continue;
                }
            }
            since.get_or_insert_with(Instant::now);
            some_changes
                .drain(..)
                .for_each(|change| self.change(change));
            some_notes.drain(..).for_each(|note| self.note(note));
            if since.is_some_and(|since| since.elapsed() >= PATIENCE) && self.is_listed() {
                world.send_replace(Arc::new(self.evaluate(since.take())));
            }
        }
    }

    fn is_listed(&self) -> bool {
        self.objects_listed && self.reports_listed
    }

    fn evaluate(&mut self, since: Option<Instant>) -> World {
        let started = Instant::now();
        let outcome = self.index.evaluate();
        let took = started.elapsed();
        self.programmed.follow(&outcome.statuses.gateways);
        let gateways = outcome.statuses.gateways.len();
        self.metrics
            .evaluated(took, self.programmed.count, gateways);
        self.metrics.nodes(self.nodes.len());
        World {
            outcome,
            subjects: self.index.subjects(),
            credentials: Arc::clone(&self.credentials),
            workloads: Arc::clone(&self.workloads),
            egresses: Arc::clone(&self.egresses),
            discovered: Arc::clone(&self.discovered),
            system_namespace: Arc::clone(&self.system_namespace),
            egress_domain: Arc::clone(&self.egress_domain),
            local_targets: self.local_targets,
            listed: self.is_listed(),
            since,
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Apply(object) => {
                match &object {
                    Object::Secret(secret) => {
                        self.keep_credentials(Key::of(&object).name, secret);
                    }
                    Object::GatewayClass(class) => self.recall(class),
                    Object::Gateway(_) => self.keep_workload(Key::of(&object).name),
                    Object::Endpoints(_) => {
                        self.keep_workload(egress::subject(&Key::of(&object).name));
                    }
                    _ => {}
                }
                self.index.apply(object);
            }
            Change::Delete(key) => {
                self.forget(&key);
                self.index.delete(&key);
            }
            Change::Listed => self.objects_listed = true,
        }
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Report(gateway, report) => self.report(gateway, report),
            Note::Verdict(class, verdict) => {
                self.judged.insert(class.clone(), verdict.clone());
                self.index.judge(class, verdict);
            }
            Note::Egress(name, state) => put(&mut self.egresses, name, state),
            Note::Discovered(name, found) => put(&mut self.discovered, name, found),
            Note::Listed => self.reports_listed = true,
        }
    }

    fn report(&mut self, gateway: ObjectName, report: Option<NodeReport>) {
        match &report {
            Some(report) if !report.node_id.is_empty() => {
                self.nodes.insert(gateway.clone());
            }
            _ => drop(self.nodes.remove(&gateway)),
        }
        match report {
            Some(report) => self.index.report(gateway, report),
            None => self.index.forget_report(&gateway),
        }
    }

    /// Takes over what a replica found before: this one may never try, or has not yet.
    fn recall(&mut self, class: &GatewayClass) {
        let name = class.metadata.name.clone().unwrap_or_default();
        if class.spec.controller_name != CONTROLLER || self.judged.contains_key(&name) {
            return;
        }
        let conditions = class.status.as_ref().and_then(|s| s.conditions.as_ref());
        let accepted = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition.type_ == c::ACCEPTED);
        let verdict = accepted.and_then(|condition| match condition.status.as_str() {
            "True" => Some(Verdict::Accepted),
            "False" if condition.reason != c::PENDING => Some(Verdict::Refused {
                reason: c::CLASS_REFUSALS
                    .iter()
                    .find(|reason| **reason == condition.reason)
                    .copied()
                    .unwrap_or(c::INVALID_PARAMETERS),
                message: condition.message.clone(),
            }),
            _ => None,
        });
        if let Some(verdict) = verdict {
            self.index.judge(name, verdict);
        }
    }

    fn keep_workload(&mut self, subject: ObjectName) {
        let workload = workload_name(&subject);
        if !self.workloads.contains_key(&workload) {
            Arc::make_mut(&mut self.workloads).insert(workload, subject);
        }
    }

    fn keep_credentials(&mut self, name: ObjectName, secret: &core::Secret) {
        if name.namespace != *self.system_namespace {
            return;
        }
        let values = secret.data.iter().flatten();
        let values = values.filter_map(|(key, value)| {
            let text = std::str::from_utf8(&value.0).ok()?;
            Some((key.clone(), Secret::new(text.trim())))
        });
        Arc::make_mut(&mut self.credentials).insert(name, Arc::new(values.collect()));
    }

    fn forget(&mut self, key: &Key) {
        match key.kind {
            Kind::Secret if self.credentials.contains_key(&key.name) => {
                Arc::make_mut(&mut self.credentials).remove(&key.name);
            }
            Kind::Gateway => {
                Arc::make_mut(&mut self.workloads).remove(&workload_name(&key.name));
            }
            Kind::Endpoints => {
                let subject = egress::subject(&key.name);
                Arc::make_mut(&mut self.workloads).remove(&workload_name(&subject));
            }
            Kind::GatewayClass => drop(self.judged.remove(&key.name.name)),
            _ => {}
        }
    }
}

fn put<T: Clone>(values: &mut Arc<BTreeMap<ObjectName, T>>, name: ObjectName, value: Option<T>) {
    let values = Arc::make_mut(values);
    match value {
        Some(value) => drop(values.insert(name, value)),
        None => drop(values.remove(&name)),
    }
}

// === impl ProgrammedCount ===

impl ProgrammedCount {
    fn follow(&mut self, gateways: &Table<GatewayStatus>) {
        let is_programmed = |gateways: &Table<GatewayStatus>, name: &ObjectName| {
            let status = gateways.get(name);
            usize::from(status.is_some_and(|status| status.is_programmed()))
        };
        for name in gateways.differences(&self.gateways) {
            self.count += is_programmed(gateways, name);
            self.count -= is_programmed(&self.gateways, name);
        }
        self.gateways = gateways.clone();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What follows from these.
    pub(in crate::controller) fn world(
        objects: impl IntoIterator<Item = Object>,
        notes: impl IntoIterator<Item = Note>,
    ) -> World {
        let mut engine = Engine::new("tailway-system", "cluster.local", Metrics::default());
        let changes = objects.into_iter().map(Change::Apply);
        changes.for_each(|change| engine.change(change));
        notes.into_iter().for_each(|note| engine.note(note));
        engine.change(Change::Listed);
        engine.note(Note::Listed);
        engine.evaluate(None)
    }

    pub(in crate::controller) fn accepted(class: &str) -> Note {
        Note::Verdict(class.into(), Verdict::Accepted)
    }

    /// A class of ours whose credentials are in a Secret.
    pub(in crate::controller) fn class(name: &str, secret: &str) -> Value {
        json!({
            "metadata": {
                "name": name,
                "annotations": {"tailway.michaelbeaumont.github.io/tags": "tag:web"},
            },
            "spec": {
                "controllerName": CONTROLLER,
                "parametersRef": {
                    "group": "", "kind": "Secret", "name": secret, "namespace": "tailway-system",
                },
            },
        })
    }

    pub(in crate::controller) fn credentials(name: &str) -> Object {
        let secret = json!({
            "metadata": {"name": name, "namespace": "tailway-system"},
            "data": {"client_id": "aWQ=", "client_secret": "c2VjcmV0"},
        });
        Object::Secret(serde_json::from_value(secret).unwrap())
    }
}
