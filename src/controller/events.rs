//! Kubernetes Events: what a person would want to know, once.

use crate::model::ObjectName;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Tells of things that happen to objects.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "kube's Recorder has none")]
pub struct Events {
    recorder: Recorder,
    /// What was told last, by object and reason.
    told: Arc<Mutex<HashMap<(String, &'static str), String>>>,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    Normal,
    Warning,
}

// === impl Events ===

impl Events {
    pub fn new(client: Client, pod: String) -> Self {
        let reporter = Reporter {
            controller: "tailway-controller".into(),
            instance: Some(pod),
        };
        Self {
            recorder: Recorder::new(client, reporter),
            told: Arc::default(),
        }
    }

    /// Tells it, unless it is what was told last of this object and reason: for what is found out
    /// again and again. Whether it could be told.
    pub async fn tell<K>(
        &self,
        object: &K,
        weight: Weight,
        reason: &'static str,
        note: String,
    ) -> bool
    where
        K: Resource<DynamicType = ()>,
    {
        let reference = object.object_ref(&());
        let key = (reference.uid.clone().unwrap_or_default(), reason);
        let before = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.insert(key, note.clone())
        };
        before.as_ref() == Some(&note) || self.tell_of(reference, weight, reason, note).await
    }

    /// Tells of something that happened to an object. Whether it could be told.
    pub async fn tell_of(
        &self,
        object: ObjectReference,
        weight: Weight,
        reason: &'static str,
        note: String,
    ) -> bool {
        let event = Event {
            type_: match weight {
                Weight::Normal => EventType::Normal,
                Weight::Warning => EventType::Warning,
            },
            reason: reason.into(),
            note: Some(cut(note)),
            action: "Reconcile".into(),
            secondary: None,
        };
        let published = self.recorder.publish(&event, &object).await;
        if let Err(error) = &published {
            let name = ObjectName::new(
                object.namespace.unwrap_or_default(),
                object.name.unwrap_or_default(),
            );
            tracing::debug!(object = %name, reason, %error, "the event could not be written");
        }
        published.is_ok()
    }
}

/// An event's note holds 1 kB at most (API server).
fn cut(mut note: String) -> String {
    const LONGEST: usize = 1000;
    if note.len() > LONGEST {
        note.truncate(note.floor_char_boundary(LONGEST));
        note.push('…');
    }
    note
}
