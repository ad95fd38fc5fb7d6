//! Tokens, scopes and identities, and that no secret is told.

use super::{calls, client, client_credentials, client_with, key_request, settings, settings_of};
use crate::tailnet::world::{Tailnet, eventually, soon};
use serde_json::{Value, json};
use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tailway::tailnet::{
    Secret,
    api::{ApiClient, ApiError, Credentials, IdentityToken},
};

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
