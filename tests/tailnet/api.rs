//! The client of Tailscale's API, against the fake beside the local tailnet.

use super::world::{Tailnet, eventually, page, soon};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::{
    fs, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tailway::{
    metrics::Metrics,
    tailnet::{
        Auth, Node, NodeConfig, Secret, State,
        api::{ApiClient, ApiError, ApiSettings, Credentials, Device, IdentityToken, KeyRequest},
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
async fn one_token_serves_many_calls_of_many_tasks() {
    let tailnet = Tailnet::start().await;
    let api = client(&tailnet);
    api.verify().await.unwrap();
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let api = api.clone();
            tokio::spawn(async move { api.devices().await })
        })
        .collect();
    for task in tasks {
        assert_eq!(soon("the devices", task).await.unwrap(), Ok(Vec::new()));
    }
    let mut expected = vec![
        "POST oauth/token 200",
        "GET tailnet/-/devices 200",
        "GET tailnet/-/keys 200",
    ];
    expected.extend(["GET tailnet/-/devices 200"; 20]);
    assert_eq!(calls(&tailnet).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_is_replaced_once() {
    let tailnet = Tailnet::start().await;
    let api = client(&tailnet);
    api.devices().await.unwrap();
    tailnet.post("/api/tokens/revoke", json!({})).await;
    api.devices().await.unwrap();
    let refuse = json!({"method": "GET", "status": 401});
    tailnet.post("/api/failures", refuse).await;
    let error = api.devices().await.unwrap_err();
    assert_eq!(
        error,
        ApiError::Credentials {
            message: "unauthorized".into()
        }
    );
    assert_eq!(
        calls(&tailnet).await,
        [
            "POST oauth/token 200",
            "GET tailnet/-/devices 200",
            "GET tailnet/-/devices 401",
            "POST oauth/token 200",
            "GET tailnet/-/devices 200",
            "GET tailnet/-/devices 401",
            "POST oauth/token 200",
            "GET tailnet/-/devices 401",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_replaced_before_it_expires() {
    let tailnet = Tailnet::start().await;
    let lifetime = json!({"lifetime": "4s"});
    tailnet.post("/api/tokens/lifetime", lifetime).await;
    let api = client(&tailnet);
    let seen = eventually("a second token", || async {
        api.devices().await.unwrap();
        let seen = calls(&tailnet).await;
        let tokens = seen.iter().filter(|call| call.contains("token"));
        (tokens.count() > 1).then_some(seen)
    })
    .await;
    assert!(seen.iter().all(|call| call.ends_with(" 200")), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_and_missing_scopes_are_told_apart_without_changing_anything() {
    let tailnet = Tailnet::start().await;
    let id = tailnet.field("oauth_client_id");
    let wrong = ApiClient::new(settings(
        &tailnet,
        client_credentials(id, "tskey-client-wrong"),
    ));
    let error = wrong.unwrap().verify().await.unwrap_err();
    assert_eq!(
        error,
        ApiError::Credentials {
            message: "API token invalid".into()
        }
    );
    for (scopes, missing) in [
        (json!(["devices:core"]), Some("auth_keys")),
        (json!(["devices:core", "auth_keys:read"]), Some("auth_keys")),
        (json!(["auth_keys"]), Some("devices:core")),
        (
            json!(["auth_keys", "devices:core:read"]),
            Some("devices:core"),
        ),
        (json!(["dns"]), Some("auth_keys")),
        (json!(["auth_keys", "devices:core"]), None),
        (json!(["all"]), None),
    ] {
        let api = client_with(&tailnet, json!({"scopes": scopes, "tags": ["tag:a"]})).await;
        let expected = match missing {
            Some(scope) => Err(ApiError::MissingScope { scope }),
            None => Ok(()),
        };
        assert_eq!(api.verify().await, expected, "{scopes}");
    }
    let api = client_with(&tailnet, json!({"scopes": ["devices:core"]})).await;
    let error = api.mint_key(&key_request("tag:a")).await.unwrap_err();
    assert_eq!(error, ApiError::MissingScope { scope: "auth_keys" });
    assert!(
        error.to_string().contains("give it auth_keys"),
        "the fix is not in {error}"
    );
    for call in calls(&tailnet).await {
        let changes = !call.starts_with("GET ") && !call.starts_with("POST oauth/token ");
        assert!(
            !changes || call == "POST tailnet/-/keys 403",
            "{call} changes something"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_that_the_credential_may_not_give_are_told() {
    let tailnet = Tailnet::start().await;
    let credential = json!({"scopes": ["auth_keys"], "tags": ["tag:a", "tag:b"]});
    let api = client_with(&tailnet, credential).await;
    let error = api.mint_key(&key_request("tag:a")).await.unwrap_err();
    assert_eq!(
        error,
        ApiError::Tags {
            message: "requested tags [tag:a] are invalid or not permitted".into()
        }
    );
    assert!(error.to_string().contains("tagOwners"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_says_how_long_to_wait_and_nothing_is_tried_again() {
    let tailnet = Tailnet::start().await;
    let api = client(&tailnet);
    api.devices().await.unwrap();
    let limit = |retry_after: &str| json!({"path": "/api/v2/*/*/devices", "status": 429, "retry_after": retry_after, "count": 1});
    tailnet.post("/api/failures", limit("17")).await;
    let error = api.devices().await.unwrap_err();
    let wait = Some(Duration::from_secs(17));
    assert_eq!(error, ApiError::RateLimited { retry_after: wait });
    assert!(error.is_transient() && error.retry_after() == wait);

    let past = "Sun, 06 Nov 1994 08:49:37 GMT";
    tailnet.post("/api/failures", limit(past)).await;
    let error = api.devices().await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::ZERO));
    tailnet.post("/api/failures", limit("")).await;
    let error = api.devices().await.unwrap_err();
    assert_eq!(error, ApiError::RateLimited { retry_after: None });

    let down = json!({"status": 503, "retry_after": "5", "count": 1});
    tailnet.post("/api/failures", down).await;
    let error = api.devices().await.unwrap_err();
    assert_eq!(
        error,
        ApiError::Refused {
            operation: "list_devices",
            status: StatusCode::SERVICE_UNAVAILABLE,
            message: "service unavailable".into(),
            retry_after: Some(Duration::from_secs(5)),
        }
    );
    assert!(error.is_transient());
    assert_eq!(
        calls(&tailnet).await[2..],
        [
            "GET tailnet/-/devices 429",
            "GET tailnet/-/devices 429",
            "GET tailnet/-/devices 429",
            "GET tailnet/-/devices 503",
        ]
    );

    tailnet
        .post(
            "/api/failures",
            json!({"path": "/api/v2/oauth/token", "status": 429, "retry_after": "3"}),
        )
        .await;
    let error = client(&tailnet).verify().await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_does_not_answer_is_unreachable_in_time() {
    let tailnet = Tailnet::start().await;
    let quick = |url: &str| {
        let settings = ApiSettings {
            base_url: url.into(),
            timeout: Duration::from_millis(500),
            ..ApiSettings::new(ready_credentials(&tailnet))
        };
        ApiClient::new(settings).unwrap()
    };
    let url = tailnet.field("api_url");
    let api = quick(url);
    api.verify().await.unwrap();
    let unreachable = |error: ApiError, reason: &str| {
        let text = error.to_string();
        assert!(error.is_transient(), "{error:?}");
        assert!(
            matches!(error, ApiError::Unreachable { .. }) && text.contains(reason),
            "{text}"
        );
    };
    tailnet
        .post("/api/failures", json!({"hang": true, "count": 1}))
        .await;
    unreachable(api.devices().await.unwrap_err(), "no answer within 500ms");
    tailnet.delete("/api/failures").await;
    tailnet
        .post("/api/failures", json!({"close": true, "count": 1}))
        .await;
    unreachable(api.devices().await.unwrap_err(), url);
    tailnet.post("/api/stop", json!({})).await;
    unreachable(api.devices().await.unwrap_err(), url);
    tailnet.post("/api/start", json!({})).await;
    api.devices().await.unwrap();

    // Nothing listens on a port that was bound and closed again.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    unreachable(
        quick(&nowhere).verify().await.unwrap_err(),
        "Connection refused",
    );
    let secure = url.replace("http://", "https://");
    let error = quick(&secure).verify().await.unwrap_err();
    assert!(matches!(error, ApiError::Unreachable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_api_is_told_as_that() {
    let tailnet = Tailnet::start().await;
    let other = format!("http://127.0.0.1:{}", page("hello").await);
    let settings = ApiSettings {
        base_url: other,
        ..ApiSettings::new(ready_credentials(&tailnet))
    };
    let error = ApiClient::new(settings).unwrap().verify().await;
    assert!(matches!(error, Err(ApiError::Answer { .. })), "{error:?}");
    for url in ["api.tailscale.com", "https://user:secret@host"] {
        let settings = ApiSettings {
            base_url: url.into(),
            ..ApiSettings::new(ready_credentials(&tailnet))
        };
        let error = ApiClient::new(settings).unwrap_err();
        assert!(matches!(error, ApiError::Settings(_)), "{error}");
    }
    let settings = ApiSettings {
        tailnet: "other.example".into(),
        ..settings_of(&tailnet)
    };
    let error = ApiClient::new(settings)
        .unwrap()
        .devices()
        .await
        .unwrap_err();
    assert_eq!(
        error,
        ApiError::Refused {
            operation: "list_devices",
            status: StatusCode::NOT_FOUND,
            message: "tailnet not found".into(),
            retry_after: None,
        }
    );
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

/// A JWT whose signature nobody looks at.
fn identity_token(subject: &str) -> String {
    let part = |value: Value| base64url(value.to_string().as_bytes());
    let claims = json!({
        "iss": "https://cluster.example", "sub": subject, "aud": ["tailscale"], "exp": 4_000_000_000_u64,
    });
    format!("{}.{}.c2ln", part(json!({"alg": "none"})), part(claims))
}

fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .fold(0u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for at in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(word >> (18 - 6 * at)) as usize & 63]));
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_shows_its_identity_token_afresh_for_each_access_token() {
    let tailnet = Tailnet::start().await;
    let made = tailnet
        .post(
            "/api/clients",
            json!({"scopes": ["auth_keys", "devices:core"], "tags": ["tag:web"], "federated": {
                "issuer": "https://cluster.example", "subject": "system:serviceaccount:tailway-system:*", "audience": "tailscale",
            }}),
        )
        .await;
    let federated = |token| {
        let credentials = Credentials::Federated {
            client_id: made["client_id"].as_str().unwrap().into(),
            token,
        };
        ApiClient::new(settings(&tailnet, credentials)).unwrap()
    };
    let good = identity_token("system:serviceaccount:tailway-system:tailway-controller");
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("token");
    let api = federated(IdentityToken::File(path.clone()));
    let error = api.verify().await.unwrap_err();
    assert!(
        matches!(&error, ApiError::IdentityToken(text) if text.contains("token: No such file")),
        "{error}"
    );
    fs::write(&path, identity_token("system:serviceaccount:default:other")).unwrap();
    let error = api.verify().await.unwrap_err();
    assert!(
        matches!(&error, ApiError::FederatedIdentity { message } if message.contains("the subject is")),
        "{error}"
    );
    fs::write(&path, format!("{good}\n")).unwrap();
    api.verify().await.unwrap();
    assert!(api.mint_key(&key_request("tag:web")).await.is_ok());

    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let api = federated(IdentityToken::Ask(Arc::new(move || {
        let (number, good) = (counter.fetch_add(1, Ordering::Relaxed), good.clone());
        Box::pin(async move {
            match number {
                0 => Err(io::Error::other("no token yet")),
                _ => Ok(Secret::new(good)),
            }
        })
    })));
    let error = api.verify().await.unwrap_err();
    assert_eq!(error, ApiError::IdentityToken("no token yet".into()));
    api.verify().await.unwrap();
    tailnet.post("/api/tokens/revoke", json!({})).await;
    api.verify().await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_debug_output_or_errors() {
    let tailnet = Tailnet::start().await;
    let secret = tailnet.field("oauth_client_secret");
    let settings = settings_of(&tailnet);
    let mut shown = vec![
        format!("{settings:?}"),
        format!("{:?}", settings.credentials),
    ];
    let api = ApiClient::new(settings).unwrap();
    let minted = api.mint_key(&key_request("tag:web")).await.unwrap();
    shown.extend([
        format!("{api:?}"),
        format!("{minted:?}"),
        format!("{:?}", api.keys().await.unwrap()),
    ]);
    let key = String::from_utf8(minted.key.as_bytes().to_vec()).unwrap();
    let echo = json!({"message": format!("I was given {secret} and \"{key}\"")}).to_string();
    for status in [400, 401, 403, 404, 429, 500] {
        let failure = json!({"status": status, "body": echo, "count": 4});
        tailnet.post("/api/failures", failure).await;
        for error in [
            client(&tailnet).verify().await.unwrap_err(),
            api.rename_device("none", "x").await.unwrap_err(),
        ] {
            shown.extend([format!("{error:?}"), error.to_string()]);
        }
        tailnet.delete("/api/failures").await;
    }
    shown.push(tailnet.get("/api/calls").await.to_string());
    for text in shown {
        for hidden in [secret, &key, "tskey-"] {
            assert!(!text.contains(hidden), "{text}");
        }
    }
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
