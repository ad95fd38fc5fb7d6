//! The client of Tailscale's API, against the fake beside the local tailnet.

mod credentials;
mod failures;

use super::world::{Tailnet, eventually, soon};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tailway::{
    metrics::Metrics,
    tailnet::{
        Auth, Node, NodeConfig, Secret, State,
        api::{ApiClient, ApiError, ApiSettings, Credentials, Device, KeyRequest},
    },
};

fn client_credentials(id: &str, secret: &str) -> Credentials {
    Credentials::Client {
        id: id.into(),
        secret: secret.into(),
    }
}

fn ready_credentials(tailnet: &Tailnet) -> Credentials {
    client_credentials(
        tailnet.field("oauth_client_id"),
        tailnet.field("oauth_client_secret"),
    )
}

fn settings(tailnet: &Tailnet, credentials: Credentials) -> ApiSettings {
    ApiSettings {
        base_url: tailnet.field("api_url").into(),
        ..ApiSettings::new(credentials)
    }
}

fn settings_of(tailnet: &Tailnet) -> ApiSettings {
    settings(tailnet, ready_credentials(tailnet))
}

fn client(tailnet: &Tailnet) -> ApiClient {
    ApiClient::new(settings_of(tailnet)).unwrap()
}

/// A client whose credential has other scopes and tags than the one that is there.
async fn client_with(tailnet: &Tailnet, credential: Value) -> ApiClient {
    let made = tailnet.post("/api/clients", credential).await;
    let credentials = client_credentials(
        made["client_id"].as_str().unwrap(),
        made["client_secret"].as_str().unwrap(),
    );
    ApiClient::new(settings(tailnet, credentials)).unwrap()
}

fn key_request(tag: &str) -> KeyRequest {
    KeyRequest {
        tags: vec![tag.into()],
        ephemeral: false,
        expiry: Duration::from_secs(600),
        description: "tailway Gateway default/nginx".into(),
    }
}

/// The calls that the API got, as `METHOD path status`, without what all have in common.
async fn calls(tailnet: &Tailnet) -> Vec<String> {
    let calls = tailnet.get("/api/calls").await;
    let shown = calls.as_array().unwrap().iter().map(|call| {
        let path = call["path"].as_str().unwrap();
        format!(
            "{} {} {}",
            call["method"].as_str().unwrap(),
            path.trim_start_matches("/api/v2/"),
            call["status"]
        )
    });
    shown.collect()
}

async fn joined_with(tailnet: &Tailnet, hostname: &str, key: &Secret) -> Result<Node, String> {
    let config = NodeConfig {
        auth: Auth::Key(key.clone()),
        ..tailnet.config(hostname, State::Memory)
    };
    let node = Node::start(config).await.unwrap();
    match soon("the node is up or refused", node.up(None)).await {
        Ok(_) => Ok(node),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minted_key_lets_one_node_in_with_its_tag_and_without_approval() {
    let tailnet = Tailnet::start().await;
    tailnet.post("/approval", json!({"required": true})).await;
    let api = client(&tailnet);
    let minted = api.mint_key(&key_request("tag:web")).await.unwrap();
    let listed = api.keys().await.unwrap();
    assert_eq!(listed.len(), 1);
    let key = &listed[0];
    assert_eq!(
        (
            &*key.id,
            &*key.description,
            key.tags(),
            key.is_reusable(),
            key.is_ephemeral()
        ),
        (
            &*minted.id,
            "tailway Gateway default-nginx",
            &["tag:web".to_owned()][..],
            false,
            false
        )
    );
    let (created, expires) = (key.created.unwrap(), key.expires.unwrap());
    assert_eq!(expires.duration_since(created).as_secs(), 600);

    let node = joined_with(&tailnet, "nginx", &minted.key).await.unwrap();
    assert_eq!(node.status().unwrap().tags, ["tag:web"]);
    let shown = tailnet.get("/nodes/nginx").await;
    assert_eq!(
        (&shown["tags"], &shown["ephemeral"]),
        (&json!(["tag:web"]), &json!(false))
    );
    let refused = joined_with(&tailnet, "second", &minted.key).await;
    assert!(refused.is_err(), "the key let a second node in");
    assert_eq!(api.keys().await, Ok(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_lets_nobody_in() {
    let tailnet = Tailnet::start().await;
    let api = client(&tailnet);
    let minted = api.mint_key(&key_request("tag:web")).await.unwrap();
    api.revoke_key(&minted.id).await.unwrap();
    api.revoke_key(&minted.id).await.unwrap();
    api.revoke_key("never-there").await.unwrap();
    let refused = joined_with(&tailnet, "revoked", &minted.key).await;
    assert!(refused.is_err(), "the revoked key let a node in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_found_by_its_node_id_renamed_and_really_goes() {
    let tailnet = Tailnet::start().await;
    let api = client(&tailnet);
    let (node, witness) = (tailnet.node("goes").await, tailnet.node("stays").await);
    tailnet
        .post("/nodes/goes/tags", json!({"tags": ["tag:web"]}))
        .await;
    let status = node.status().unwrap();
    let device = api.device(&status.node_id).await.unwrap().unwrap();
    assert_eq!(
        device,
        Device {
            id: status.node_id.clone(),
            name: format!("goes.{}", tailnet.domain()),
            hostname: "goes".into(),
            addresses: status.ips.clone(),
            tags: vec!["tag:web".into()],
            authorized: true,
            is_ephemeral: false,
            connected_to_control: true,
            last_seen: None,
            expires: None,
            key_expiry_disabled: true,
            ..device.clone()
        }
    );
    assert!(device.created.is_some());
    let all = api.devices().await.unwrap();
    let mut names: Vec<_> = all.iter().map(|device| &*device.hostname).collect();
    names.sort_unstable();
    assert_eq!(names, ["goes", "stays"]);

    api.rename_device(&device.id, "renamed").await.unwrap();
    eventually("the node knows its new name", || async {
        let name = node.status().ok()?.dns_name;
        (name == format!("renamed.{}", tailnet.domain())).then_some(())
    })
    .await;
    let taken = api.rename_device(&device.id, "stays").await.unwrap_err();
    assert!(
        matches!(
            taken,
            ApiError::Refused {
                status: StatusCode::CONFLICT,
                ..
            }
        ),
        "{taken}"
    );

    api.delete_device(&device.id).await.unwrap();
    api.delete_device(&device.id).await.unwrap();
    assert_eq!(api.device(&device.id).await, Ok(None));
    assert_eq!(api.devices().await.unwrap().len(), 1);
    eventually("the peer forgets it", || async {
        witness.whois(status.ips[0]).is_err().then_some(())
    })
    .await;
    eventually("the node is told", || async {
        (node.status().ok()?.state == "NeedsLogin").then_some(())
    })
    .await;
    let gone = api.rename_device(&device.id, "again").await.unwrap_err();
    assert!(
        matches!(
            gone,
            ApiError::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }
        ),
        "{gone}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_counted_by_operation_and_status() {
    let tailnet = Tailnet::start().await;
    let metrics = Metrics::default();
    let counted = metrics.clone();
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    let settings = ApiSettings {
        observe: Arc::new(move |operation, status| {
            counted.api_request(operation.name(), status);
            sink.lock().unwrap().push((operation.name(), status));
        }),
        ..settings_of(&tailnet)
    };
    let api = ApiClient::new(settings).unwrap();
    api.devices().await.unwrap();
    assert_eq!(soon("the device", api.device("none")).await, Ok(None));
    tailnet
        .post("/api/failures", json!({"close": true, "count": 1}))
        .await;
    api.revoke_key("none").await.unwrap_err();
    assert_eq!(
        *told.lock().unwrap(),
        [
            ("token", Some(200)),
            ("list_devices", Some(200)),
            ("read_device", Some(404)),
            ("revoke_key", None),
        ]
    );
    let text = metrics.encode();
    for line in [
        "tailway_tailscale_api_requests_total{operation=\"token\",code=\"200\"} 1",
        "tailway_tailscale_api_requests_total{operation=\"read_device\",code=\"404\"} 1",
        "tailway_tailscale_api_requests_total{operation=\"revoke_key\",code=\"none\"} 1",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} not in\n{text}"
        );
    }
}
