//! Requests to the API server that several parts make alike.

use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::fmt::Debug;

/// The answer to a request; `None` when there is no such object, which is as good as any to who
/// wants it gone.
///
/// # Errors
/// When the request failed for another reason.
pub fn unless_gone<T>(answer: kube::Result<T>) -> kube::Result<Option<T>> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        answer => answer.map(Some),
    }
}

/// Sees to it that an object has a finalizer, or that it has it no more. One that is gone is as
/// good.
///
/// # Errors
/// With status 409 when the object is not the newest: another controller's finalizer must not get
/// lost.
pub(super) async fn set_finalizer<K>(
    api: &Api<K>,
    object: &K,
    finalizer: &str,
    wanted: bool,
) -> kube::Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut finalizers = object.finalizers().to_vec();
    let before = finalizers.len();
    finalizers.retain(|there| there != finalizer);
    if (finalizers.len() < before) == wanted {
        return Ok(());
    }
    finalizers.extend(wanted.then(|| finalizer.to_owned()));
    let patch = json!({ "metadata": {
        "finalizers": finalizers,
        "resourceVersion": object.resource_version(),
    }});
    let patched = api
        .patch_metadata(
            &object.name_any(),
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await;
    unless_gone(patched).map(drop)
}
