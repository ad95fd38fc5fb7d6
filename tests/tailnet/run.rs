//! `tailway run` on a tailnet, as its users see it.

use super::world::{
    DEADLINE, Options, Tailnet, Tailway, backend, echo, eventually, gateway, page, soon,
};
use hyper::StatusCode;
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_in_yaml_answers_https_and_stays_the_same_node_with_the_same_certificate() {
    let tailnet = Tailnet::start().await;
    let yaml = gateway("nginx", page("hello").await);
    let tailway = Tailway::start(&tailnet, &yaml).await;
    tailway.ready().await;
    let url = format!("https://nginx.{}/", tailnet.domain());
    let up = tailway.says("is up").await;
    assert!(
        up.starts_with(&format!(
            "default/nginx is up: https://nginx.{} (100.64.",
            tailnet.domain()
        )),
        "{up}"
    );
    assert!(
        up.ends_with("listening: https TLS 443, tcp TCP 7000"),
        "{up}"
    );

    let answer = tailnet.visit(&url).await.unwrap();
    assert_eq!(
        (answer["status"].as_u64(), answer["body"].as_str()),
        (Some(200), Some("hello"))
    );
    let chain = answer["tls"]["verified_chain"].as_array().unwrap();
    assert_eq!(
        chain[0]["dns_names"],
        json!([format!("nginx.{}", tailnet.domain())])
    );
    assert_eq!(chain.len(), 3);
    let access = tailway.logs("tailway::access").await;
    assert!(access.contains("peer=\"owner@example.com\""), "{access}");

    let node = tailnet.get("/nodes/nginx").await["id"].clone();
    let directory = tailway.stop().await;
    let options = Options {
        yaml: &yaml,
        auth_key: None,
        arguments: &[],
    };
    let again = Tailway::start_in(&tailnet, &options, directory).await;
    again.ready().await;
    assert_eq!(tailnet.visit(&url).await.unwrap()["body"], "hello");
    assert_eq!(
        tailnet.get("/nodes/nginx").await["id"],
        node,
        "another node after the restart"
    );
    let orders = tailnet.get("/acme/orders").await;
    assert_eq!(
        orders["certificates"].as_array().unwrap().len(),
        1,
        "another certificate after the restart"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_pages_tell_what_is_served_and_no_secret() {
    let tailnet = Tailnet::start().await;
    let tailway = Tailway::start(&tailnet, &gateway("pages", page("x").await)).await;
    tailway.ready().await;
    tailnet
        .visit(&format!("https://pages.{}/", tailnet.domain()))
        .await
        .unwrap();
    assert_eq!(
        tailway.page("/healthz").await,
        (StatusCode::OK, "ok\n".into())
    );
    assert_eq!(
        tailway.page("/readyz").await,
        (StatusCode::OK, "ready\n".into())
    );
    assert_eq!(tailway.page("/nowhere").await.0, StatusCode::NOT_FOUND);
    let config = tailway.page("/config").await.1;
    assert!(
        config.contains("gateway: default/pages") && config.contains("name: pages"),
        "{config}"
    );
    let status = tailway.page("/status").await.1;
    assert!(
        status.contains(&format!("value: pages.{}", tailnet.domain())),
        "{status}"
    );
    let metrics = eventually("the connection is counted as closed", || async {
        let metrics = tailway.page("/metrics").await.1;
        metrics
            .contains("tailway_connections_closed_total{")
            .then_some(metrics)
    })
    .await;
    for line in [
        "tailway_connections_opened_total{gateway=\"default/pages\",listener=\"https\"} 1",
        "tailway_connections_closed_total{gateway=\"default/pages\",listener=\"https\",reason=\"eof\"} 1",
        "tailway_connections_open{gateway=\"default/pages\",listener=\"https\"} 0",
        "tailway_node_running{gateway=\"default/pages\"} 1",
        "# EOF",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} not in\n{metrics}"
        );
    }
    assert!(metrics.contains(&format!("tailway_certificate_expiry_timestamp_seconds{{gateway=\"default/pages\",name=\"pages.{}\"}}", tailnet.domain())));
    let key = tailnet.field("auth_key");
    for text in [config, status, metrics, tailway.log()] {
        assert!(!text.contains(key) && !text.contains("PRIVATE KEY"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_said_at_once_and_without_a_key_the_login_url_is_told() {
    let tailnet = Tailnet::start().await;
    let yaml = gateway("keys", echo().await);
    let options = Options {
        yaml: &yaml,
        auth_key: Some("tskey-auth-wrong"),
        arguments: &[],
    };
    let tailway = Tailway::start_with(&tailnet, &options).await;
    let line = tailway.logs("does not let the node in").await;
    assert!(
        line.contains("invalid authkey") || line.contains("auth key"),
        "{line}"
    );
    assert!(!tailway.log().contains("tskey-auth-wrong"));
    drop(tailway);

    let options = Options {
        yaml: &yaml,
        auth_key: None,
        arguments: &[],
    };
    let tailway = Tailway::start_with(&tailnet, &options).await;
    let line = tailway
        .logs("to let this node join the tailnet, open ")
        .await;
    let url = line
        .rsplit_once("open ")
        .unwrap()
        .1
        .split_whitespace()
        .next()
        .unwrap();
    let address = tailnet
        .field("control_url")
        .trim_start_matches("http://")
        .parse()
        .unwrap();
    let path = url.trim_start_matches(tailnet.field("control_url"));
    let (status, text) = super::world::http(address, hyper::Method::GET, path, String::new()).await;
    assert!(status.is_success(), "{status} {text}");
    tailway.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_secret_with_tags_joins_a_node_that_stays_and_needs_it_once() {
    let tailnet = Tailnet::start().await;
    let yaml = gateway("client", page("hello").await);
    let api = tailnet.field("api_url");
    let secret = format!("{}?baseURL={api}", tailnet.field("oauth_client_secret"));
    let arguments = ["--client-secret", &secret, "--tags", "tag:web,tag:prod"];
    let options = Options {
        yaml: &yaml,
        auth_key: None,
        arguments: &arguments,
    };
    let tailway = Tailway::start_with(&tailnet, &options).await;
    tailway.ready().await;
    let url = format!("https://client.{}/", tailnet.domain());
    assert_eq!(tailnet.visit(&url).await.unwrap()["body"], "hello");
    let joined = tailnet.get("/nodes/client").await;
    assert_eq!(
        (&joined["tags"], &joined["ephemeral"]),
        (&json!(["tag:web", "tag:prod"]), &json!(false))
    );
    let log = tailway.log();
    assert!(!log.contains("tskey-"), "{log}");

    let directory = tailway.stop().await;
    tailnet.post("/api/stop", json!({})).await;
    let again = Tailway::start_in(&tailnet, &options, directory).await;
    again.ready().await;
    assert_eq!(tailnet.get("/nodes/client").await["id"], joined["id"]);
    let calls = tailnet.get("/api/calls").await;
    let minted = calls.as_array().unwrap().iter();
    let minted = minted.filter(|call| call["path"] == "/api/v2/tailnet/-/keys");
    assert_eq!(minted.count(), 1, "{calls}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_secret_that_is_refused_is_said() {
    let tailnet = Tailnet::start().await;
    let yaml = gateway("refused", echo().await);
    let api = tailnet.field("api_url");
    let secret = format!("tskey-client-wrong?baseURL={api}");
    let options = Options {
        yaml: &yaml,
        auth_key: None,
        arguments: &["--client-secret", &secret, "--tags", "tag:web"],
    };
    let tailway = Tailway::start_with(&tailnet, &options).await;
    tailway.logs("API token invalid").await;
    let answer = tailway.unready("API token invalid").await;
    assert!(!answer.contains(&secret) && !tailway.log().contains("tskey-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_is_in_use_is_said() {
    let tailnet = Tailnet::start().await;
    let yaml = gateway("locked", echo().await);
    let tailway = Tailway::start(&tailnet, &yaml).await;
    tailway.ready().await;
    let state = tailway.directory.path().join("state");
    let arguments = ["--state-dir", state.to_str().unwrap()];
    let options = Options {
        yaml: &yaml,
        auth_key: None,
        arguments: &arguments[..0],
    };
    // A second process over the same files: the link makes its state directory the same.
    let other = tempfile::TempDir::new().unwrap();
    std::os::unix::fs::symlink(&state, other.path().join("state")).unwrap();
    let second = Tailway::start_in(&tailnet, &options, other).await;
    second.unready("in use by another process").await;
    tailway.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_applied_live_without_one_failed_connection() {
    let tailnet = Tailnet::start().await;
    let (one, two) = (page("one").await, page("two").await);
    let tailway = Tailway::start(&tailnet, &gateway("live", one)).await;
    tailway.ready().await;
    let client = tailnet.node("live-client").await;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let traffic = {
        let (stop, seen, client) = (Arc::clone(&stop), Arc::clone(&seen), client.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut stream = client
                    .dial("live:7000", DEADLINE)
                    .await
                    .expect("a connection")
                    .open()
                    .unwrap();
                stream
                    .write_all(b"GET / HTTP/1.1\r\n\r\n")
                    .await
                    .expect("a request");
                let mut answer = String::new();
                soon("an answer", stream.read_to_string(&mut answer))
                    .await
                    .expect("an answer");
                let which = usize::from(answer.ends_with("two"));
                assert!(answer.ends_with("one") || which == 1, "{answer:?}");
                seen[which].fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    for (port, index) in [(two, 1), (one, 0), (two, 1)] {
        let before = seen[index].load(Ordering::Relaxed);
        tailway.edit(&gateway("live", port));
        eventually("the change is served", || async {
            (seen[index].load(Ordering::Relaxed) > before + 2).then_some(())
        })
        .await;
    }
    tailway.edit("apiVersion: v1\nkind: Service\nmetadata: {name: [broken}\n");
    let problem = tailway.logs("the last good state stays").await;
    assert!(problem.contains("gateway.yaml:3"), "{problem}");
    let before = seen[1].load(Ordering::Relaxed);
    eventually("the last good state is served on", || async {
        (seen[1].load(Ordering::Relaxed) > before + 5).then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    soon("traffic ends", traffic)
        .await
        .expect("no connection failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_come_and_go_with_the_files() {
    let tailnet = Tailnet::start().await;
    let port = page("here").await;
    let tailway = Tailway::start(&tailnet, &gateway("first", port)).await;
    tailway.ready().await;
    let both = format!(
        "{}{}",
        gateway("first", port),
        gateway("second", port)
            .split_once("---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n")
            .map(|(_, rest)| format!(
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n{rest}"
            ))
            .unwrap()
    );
    tailway.edit(&both);
    tailway.says("default/second is up").await;
    assert_eq!(
        tailnet
            .visit(&format!("https://second.{}/", tailnet.domain()))
            .await
            .unwrap()["body"],
        "here"
    );
    tailway.edit(&gateway("first", port));
    eventually("the second node is offline", || async {
        (tailnet.get("/nodes/second").await["online"] == false).then_some(())
    })
    .await;
    assert_eq!(
        tailnet
            .visit(&format!("https://first.{}/", tailnet.domain()))
            .await
            .unwrap()["body"],
        "here"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_open_connections_finish_and_a_second_signal_ends_at_once() {
    let tailnet = Tailnet::start().await;
    let yaml = gateway("drain", echo().await);
    let mut tailway = Tailway::start(&tailnet, &yaml).await;
    tailway.ready().await;
    let client = tailnet.node("drain-client").await;
    let mut open = client
        .dial("drain:7000", DEADLINE)
        .await
        .unwrap()
        .open()
        .unwrap();
    round_trip(&mut open, b"before").await;
    tailway.signal("TERM");
    tailway.logs("stopping").await;
    eventually("new connections are refused", || async {
        client
            .dial("drain:7000", Duration::from_secs(5))
            .await
            .is_err()
            .then_some(())
    })
    .await;
    round_trip(&mut open, b"while it drains").await;
    open.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon("the end of the connection", open.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(rest, b"");
    assert_ne!(format!("{:?}", open.end()), "PeerReset");
    let status = soon("tailway ends", tailway.child.wait()).await.unwrap();
    assert!(status.success(), "{status}");

    let yaml = gateway("drain-at-once", echo().await);
    let mut tailway = Tailway::start(&tailnet, &yaml).await;
    tailway.ready().await;
    let mut held = client
        .dial("drain-at-once:7000", DEADLINE)
        .await
        .unwrap()
        .open()
        .unwrap();
    round_trip(&mut held, b"held").await;
    tailway.signal("INT");
    tailway.logs("stopping").await;
    tailway.signal("TERM");
    soon("tailway ends at once", tailway.child.wait())
        .await
        .unwrap();
}

async fn round_trip(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    let mut answer = vec![0; bytes.len()];
    soon("an echo", stream.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_down_slow_or_closes_early_harms_its_own_connection_only() {
    let tailnet = Tailnet::start().await;
    // Nothing listens on a port that was bound and closed again.
    let down = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let tailway = Tailway::start(&tailnet, &gateway("backends", down)).await;
    tailway.ready().await;
    let client = tailnet.node("backends-client").await;
    let mut stream = client
        .dial("backends:7000", DEADLINE)
        .await
        .unwrap()
        .open()
        .unwrap();
    let mut rest = Vec::new();
    let _ = soon("the refusal", stream.read_to_end(&mut rest)).await;
    assert_eq!(format!("{:?}", stream.end()), "PeerReset");
    tailway.logs("backend not reached").await;

    let early = backend(|mut stream| async move {
        let _ = stream.write_all(b"bye").await;
    })
    .await;
    tailway.edit(&gateway("backends", early));
    eventually("the backend that closes early is served", || async {
        let mut stream = client
            .dial("backends:7000", DEADLINE)
            .await
            .ok()?
            .open()
            .ok()?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.ok()?;
        (rest == b"bye").then_some(())
    })
    .await;
    let mut tls = tailnet
        .tls(
            &client,
            "backends:443",
            &format!("backends.{}", tailnet.domain()),
        )
        .await;
    let mut rest = Vec::new();
    soon("the end of a TLS connection", tls.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(rest, b"bye");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_expires_or_is_removed_is_told() {
    let tailnet = Tailnet::start().await;
    let tailway = Tailway::start(&tailnet, &gateway("expires", page("x").await)).await;
    tailway.ready().await;
    tailnet.post("/nodes/expires/expire", json!({})).await;
    tailway.unready("Pending").await;
    tailnet
        .post("/nodes/expires/expire", json!({"never": true}))
        .await;
    tailway.ready().await;
    tailnet.delete("/nodes/expires").await;
    tailway.unready("Pending").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_server_that_is_away_stops_no_traffic() {
    let tailnet = Tailnet::start().await;
    let tailway = Tailway::start(&tailnet, &gateway("away", page("still here").await)).await;
    tailway.ready().await;
    let url = format!("https://away.{}/", tailnet.domain());
    assert_eq!(tailnet.visit(&url).await.unwrap()["body"], "still here");
    tailnet.post("/control/stop", json!({})).await;
    assert_eq!(tailnet.visit(&url).await.unwrap()["body"], "still here");
    tailnet.post("/control/start", json!({})).await;
    eventually("the node is online again", || async {
        (tailnet.get("/nodes/away").await["online"] == true).then_some(())
    })
    .await;
    tailway.ready().await;
    assert_eq!(tailnet.visit(&url).await.unwrap()["body"], "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_in_the_tailnet_is_told_and_what_works_is_served() {
    let tailnet = Tailnet::start().await;
    let _other = tailnet.node("taken").await;
    let tailway = Tailway::start(&tailnet, &gateway("taken", page("second").await)).await;
    let answer = tailway.unready("AddressNotUsable").await;
    assert!(
        answer.contains(&format!("taken-1.{}", tailnet.domain())),
        "{answer}"
    );
    let url = format!("https://taken-1.{}/", tailnet.domain());
    assert_eq!(tailnet.visit(&url).await.unwrap()["body"], "second");
}

/// Runs tailway to its end; its exit code and what it wrote to stderr.
async fn ended(arguments: &[&str]) -> (Option<i32>, String) {
    let run = tokio::process::Command::new(env!("CARGO_BIN_EXE_tailway"))
        .args(arguments)
        .env_remove("TS_AUTHKEY")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = soon("tailway ends", run).await.unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_said_at_once_with_the_fix() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("gateway.yaml");
    std::fs::write(&file, gateway("never", 1)).unwrap();
    let file = file.to_str().unwrap();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let state = directory.path().join("state");
    let state = state.to_str().unwrap();
    // A directory below a file cannot be made, whoever asks.
    let below_a_file = format!("{file}/state");
    let run = ["run", "-f", file, "--control-url", "http://127.0.0.1:1"];
    for (arguments, expected) in [
        (
            vec!["--state-dir", &below_a_file],
            "choose another --state-dir",
        ),
        (
            vec!["--state-dir", state, "--admin-addr", &taken],
            "choose another --admin-addr",
        ),
    ] {
        let (code, text) = ended(&[&run[..], &arguments].concat()).await;
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(expected), "{text}");
    }
    let (code, text) = ended(&["run", "-f", "/nowhere/gateway.yaml"]).await;
    assert_eq!(code, Some(1));
    assert!(
        text.contains("/nowhere/gateway.yaml: cannot be read"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_exits_with_1_when_something_is_not_accepted() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("gateway.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, gateway("checked", 1)).unwrap();
    assert_eq!(ended(&["check", "-f", path]).await.0, Some(0));
    std::fs::write(
        &file,
        gateway("checked", 1).replace("protocol: TCP", "protocol: SCTP"),
    )
    .unwrap();
    assert_eq!(ended(&["check", "-f", path]).await.0, Some(1));
    std::fs::write(&file, "kind: [").unwrap();
    let (code, text) = ended(&["check", "-f", path]).await;
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("error: {path}:1:")), "{text}");
}
