//! The state of nodes, and what may not be found anywhere.

use super::{
    hands::{bare_gateway, echo, echo_site},
    scene::{SYSTEM, Scene, site},
};
use serde_json::Value;

const ECHO: &str = "{name: echo, port: 7, protocol: TCP}";

#[tokio::test]
#[ignore = "make cluster"]
async fn a_state_secret_that_was_lost_is_made_again_and_filled() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("refill")).await;
    lab.apply(&site("refill", "refill")).await;
    scene.programmed("refill", "refill").await;
    let (device, secret) = (scene.device("refill").await, "secret/refill-refill-state");
    let keys = |secret: Option<Value>| -> Option<Vec<String>> {
        let data = secret?["data"].as_object()?.clone();
        Some(data.keys().cloned().collect())
    };
    let before = keys(lab.object(SYSTEM, secret).await);
    assert!(
        before
            .as_ref()
            .is_some_and(|keys| keys.contains(&"_current-profile".to_owned()))
    );

    scene.system(["delete", secret]).await;
    lab.eventually("the Secret has all that it had", || async {
        (keys(lab.object(SYSTEM, secret).await) == before).then_some(())
    })
    .await;
    scene.system(["delete", "pod/refill-refill-0"]).await;
    lab.eventually("the next pod is ready", || async {
        let pod = lab.object(SYSTEM, "pod/refill-refill-0").await?;
        pod["status"]["containerStatuses"][0]["ready"]
            .as_bool()?
            .then_some(())
    })
    .await;
    scene.programmed("refill", "refill").await;
    assert_eq!(scene.device("refill").await, device);
    assert_eq!(scene.keys_minted().await, 1);
    assert_eq!(scene.certificates().await, 1);
    scene.end(&["refill"], "refill").await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_state_secret_lost_with_its_pod_is_a_new_node_by_a_new_key() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("anew")).await;
    lab.apply("{apiVersion: v1, kind: Namespace, metadata: {name: anew}}")
        .await;
    lab.apply(&bare_gateway("anew", "anew", "anew", ECHO)).await;
    scene.programmed("anew", "anew").await;
    let device = scene.device("anew").await;

    // So that the pod that ends does not fill the new Secret once more.
    scene.scale(0).await;
    scene.system(["delete", "secret/anew-anew-state"]).await;
    scene.system(["delete", "pod/anew-anew-0"]).await;
    scene.scale(2).await;
    let other = lab
        .eventually("there is another node", || async {
            let nodes = scene.tailnet.get("/nodes").await;
            let nodes = nodes.as_array()?.iter();
            let mut ids = nodes
                .filter(|node| node["name"].as_str().unwrap().starts_with("anew"))
                .map(|node| node["stable_id"].as_str().unwrap().to_owned());
            ids.find(|id| *id != device)
        })
        .await;
    let what = "the workload has both nodes on record";
    lab.eventually(what, || async {
        let set = lab.object(SYSTEM, "statefulset/anew-anew").await?;
        let annotations = set["metadata"]["annotations"].to_string();
        (annotations.contains(&device) && annotations.contains(&other)).then_some(())
    })
    .await;
    assert_eq!(scene.keys_minted().await, 2);
    scene.end(&["anew"], "anew").await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_key_is_minted_once_for_a_node_and_no_secret_is_found_anywhere() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("keys")).await;
    lab.apply("{apiVersion: v1, kind: Namespace, metadata: {name: keys}}")
        .await;
    for name in ["one", "two"] {
        lab.apply(&bare_gateway("keys", name, "keys", ECHO)).await;
    }
    for name in ["one", "two"] {
        scene.programmed("keys", name).await;
    }
    assert_eq!(scene.keys_minted().await, 2);
    // Of those that minted, which end now.
    no_log_has_a_secret(&scene).await;

    scene
        .system(["rollout", "restart", "deployment/tailway-controller"])
        .await;
    scene.rolled_out("deployment/tailway-controller").await;
    let pod = scene.uid("pod/one-keys-0").await;
    scene.system(["delete", "pod/one-keys-0"]).await;
    lab.eventually("its successor is ready", || async {
        let pod_now = lab.object(SYSTEM, "pod/one-keys-0").await?;
        let is_ready = pod_now["status"]["containerStatuses"][0]["ready"].as_bool()?;
        (is_ready && pod_now["metadata"]["uid"].as_str() != pod.as_deref()).then_some(())
    })
    .await;
    scene.leader().await;
    for name in ["one", "two"] {
        scene.programmed("keys", name).await;
    }
    assert_eq!(scene.keys_minted().await, 2);

    nothing_secret_is_found(&scene).await;
    scene.end(&["keys"], "keys").await;
}

/// In any object or log of tailway and of its Gateways, but for the Secrets of credentials.
async fn nothing_secret_is_found(scene: &Scene) {
    let secrets = [scene.tailnet.field("oauth_client_secret"), "tskey-"];
    for kind in [
        "secrets",
        "configmaps",
        "events",
        "pods",
        "statefulsets",
        "gateways",
    ] {
        let list = ["get", kind, "--all-namespaces", "--output=json"];
        let list: Value = serde_json::from_str(&scene.lab.kubectl(list).await).unwrap();
        for object in list["items"].as_array().unwrap() {
            let name = object["metadata"]["name"].as_str().unwrap();
            let namespace = object["metadata"]["namespace"].as_str().unwrap();
            // What a person made: credentials, and what is nothing to these Gateways.
            let is_credentials = object["data"]["client_secret"].is_string();
            if is_credentials || ![SYSTEM, "keys"].contains(&namespace) {
                continue;
            }
            let mut text = object.to_string();
            let values = object["data"].as_object().into_iter().flatten();
            for (_, value) in values.filter(|_| kind == "secrets") {
                text.push_str(&decoded(value.as_str().unwrap()));
            }
            for secret in secrets {
                assert!(
                    !text.contains(secret),
                    "{kind} {name} holds {secret}: {text}"
                );
            }
        }
    }
    no_log_has_a_secret(scene).await;
}

async fn no_log_has_a_secret(scene: &Scene) {
    let secrets = [scene.tailnet.field("oauth_client_secret"), "tskey-"];
    let pods = scene.system(["get", "pods", "--output=name"]).await;
    let mut read = 0;
    for pod in pods.lines() {
        let logs = ["logs", pod, "--tail=-1", "--namespace", SYSTEM];
        // Some that were listed have ended meanwhile.
        let Ok(log) = scene.lab.try_kubectl(logs).await else {
            continue;
        };
        read += 1;
        for secret in secrets {
            assert!(!log.contains(secret), "the log of {pod} holds {secret}");
        }
    }
    assert!(read >= 4, "logs of {pods}");
}

/// The text in base64, with what is no text left out.
fn decoded(base64: &str) -> String {
    let six = |byte: u8| -> Option<u32> {
        let at = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        Some(at.into())
    };
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for six in base64.bytes().filter_map(six) {
        bits = bits << 6 | six;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_pod_whose_state_cannot_be_written_says_so_and_serves() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("mute")).await;
    lab.apply(&echo_site("mute", "mute")).await;
    scene.programmed("mute", "mute").await;
    let address = format!("mute.{}:7", scene.tailnet.domain());
    let pod = "mute-mute-0";

    scene.system(["delete", "role/mute-mute"]).await;
    let said = "the node's state cannot be written to Secret mute-mute-state";
    lab.eventually("its Gateway is not programmed, and says why", || async {
        let gateway = lab.object("mute", "gateway/mute").await?;
        let conditions = gateway["status"]["conditions"].as_array()?.iter();
        let mut programmed = conditions.filter(|c| c["type"] == "Programmed");
        let why = programmed.find(|c| c["status"] == "False")?["message"]
            .as_str()?
            .to_owned();
        why.contains(said).then_some(())
    })
    .await;
    assert!(scene.system(["logs", pod]).await.contains(said));
    let mut connection = scene.tailnet.tunnel(&address).await.unwrap();
    echo(&mut connection, "it serves").await;

    // Each controller that starts applies what is to be there.
    scene
        .system(["rollout", "restart", "deployment/tailway-controller"])
        .await;
    scene.programmed("mute", "mute").await;
    echo(&mut connection, "as before").await;
    drop(connection);
    scene.end(&["mute"], "mute").await;
}
