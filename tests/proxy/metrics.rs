//! The text that a scrape gets.

use super::scene::{
    HOST, Scene, TCP, TLS, certificate, client, echo, expect_reset, handshake, ping, read_all,
    snapshot, tcp_port, tls_port,
};
use tokio::io::AsyncWriteExt;

/// Everything but what depends on the clock and the build.
fn counted(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter(|line| !line.contains("_seconds_sum") && !line.contains("_seconds_bucket"))
        .filter(|line| !line.starts_with("tailway_build_info"))
        .collect()
}

#[tokio::test]
async fn a_known_course_of_events_has_known_metrics() {
    let app = echo().await;
    let certificate = certificate(&[HOST]);
    let ports = [(TCP, tcp_port()), (TLS, tls_port(&certificate))];
    let mut scene = Scene::new(&snapshot(ports.clone(), &[("app", &[app])])).await;
    let config = client(&[&certificate]);

    // One TCP connection that ended, one TLS connection that is open, one unknown name, and one
    // connection without a backend.
    let mut ended = scene.connect(TCP).await;
    ping(&mut ended).await.unwrap();
    ended.shutdown().await.unwrap();
    assert_eq!(read_all(&mut ended).await.unwrap(), b"");
    let mut open = scene.connect_tls(TLS, &config).await;
    ping(&mut open).await.unwrap();
    ping(&mut open).await.unwrap();
    let refused = handshake(scene.address(TLS), &config, "unknown.example.com").await;
    assert!(refused.is_err());
    scene.apply(&snapshot(ports, &[("app", &[])])).await;
    expect_reset(&mut scene.connect(TCP).await).await;

    for line in [
        r#"tailway_connections_closed_total{gateway="default/web",listener="tcp",reason="eof"} 1"#,
        r#"tailway_tls_failures_total{gateway="default/web",listener="tls",reason="unknown_name"} 1"#,
        r#"tailway_connections_refused_total{gateway="default/web",listener="tcp",reason="backend_unreachable"} 1"#,
    ] {
        scene.until_metric(line).await;
    }
    let text = scene.metrics.encode();
    let mut lines = counted(&text);
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            r#"tailway_backend_errors_total{gateway="default/web",backend="default/app:80",reason="no_endpoints"} 1"#,
            r#"tailway_connection_duration_seconds_count{gateway="default/web",listener="tcp"} 1"#,
            r#"tailway_connection_duration_seconds_count{gateway="default/web",listener="tls"} 0"#,
            r#"tailway_connections_closed_total{gateway="default/web",listener="tcp",reason="eof"} 1"#,
            r#"tailway_connections_opened_total{gateway="default/web",listener="tcp"} 1"#,
            r#"tailway_connections_opened_total{gateway="default/web",listener="tls"} 1"#,
            r#"tailway_connections_open{gateway="default/web",listener="tcp"} 0"#,
            r#"tailway_connections_open{gateway="default/web",listener="tls"} 1"#,
            r#"tailway_connections_refused_total{gateway="default/web",listener="tcp",reason="backend_unreachable"} 1"#,
            r#"tailway_received_bytes_total{gateway="default/web",listener="tcp"} 4"#,
            r#"tailway_received_bytes_total{gateway="default/web",listener="tls"} 8"#,
            r#"tailway_sent_bytes_total{gateway="default/web",listener="tcp"} 4"#,
            r#"tailway_sent_bytes_total{gateway="default/web",listener="tls"} 8"#,
            r#"tailway_tls_failures_total{gateway="default/web",listener="tls",reason="unknown_name"} 1"#,
        ]
    );
    assert!(text.ends_with("# EOF\n"));
}
