//! The CA and the server's certificate, through the years.

use super::scene::authority;
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tailway::{
    discovery::authority::{Authority, SecretData, maintain},
    model::Certificate,
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Whether a pod with this bundle takes this certificate for this name.
fn trusts(bundle: &str, certificate: &Certificate, name: &str, now: SystemTime) -> bool {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let name = ServerName::try_from(name).unwrap();
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap());
    let leaf = &certificate.chain()[0];
    verifier
        .verify_server_cert(leaf, &[], &name, &[], now)
        .is_ok()
}

#[test]
fn a_pod_with_a_bundle_of_days_ago_trusts_the_server_at_any_time() {
    let mut held = SecretData::new();
    let mut bundles = VecDeque::new();
    let mut changes = Vec::new();
    for day in 0..1200_u32 {
        let now = start() + day * DAY;
        let made = authority(&held, now);
        bundles.push_back(made.bundle.clone());
        if bundles.len() > 6 {
            bundles.pop_front();
        }
        for bundle in &bundles {
            assert!(
                trusts(bundle, &made.certificate, "127.0.0.1", now),
                "day {day}"
            );
        }
        let count = made.bundle.matches("BEGIN CERTIFICATE").count();
        assert!((1..=3).contains(&count), "{count} CAs on day {day}");
        changes.extend(made.changes.iter().map(|change| (day, *change)));
        held = made.data;
    }
    let cas: Vec<_> = changes
        .iter()
        .filter(|(_, change)| change.contains("CA"))
        .copied()
        .collect();
    assert_eq!(
        cas,
        [
            (0, "made a CA"),
            (306, "made the next CA"),
            (313, "signs with the next CA from now on"),
            (612, "made the next CA"),
            (619, "signs with the next CA from now on"),
            (918, "made the next CA"),
            (925, "signs with the next CA from now on"),
        ]
    );
    let servers = changes.len() - cas.len();
    // Every 20 days, and with each new CA.
    assert!((60..=64).contains(&servers), "{servers}");
}

#[test]
fn nothing_changes_without_need() {
    let first = authority(&SecretData::new(), start());
    assert_eq!(first.changes, ["made a CA", "made a server certificate"]);
    let again = authority(&first.data, start() + 19 * DAY);
    assert_eq!(again.changes, Vec::<&str>::new());
    assert_eq!(again.data, first.data);
    assert_eq!(again.bundle, first.bundle);
    assert_eq!(again.certificate, first.certificate);
}

#[test]
fn the_names_are_those_by_which_pods_ask() {
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>()
    };
    let service = [
        "tailway-controller.tailway-system.svc",
        "tailway-controller.tailway-system.svc.cluster.local",
    ];
    let first = maintain(&SecretData::new(), &names(&service[..1]), start()).unwrap();
    let more = maintain(&first.data, &names(&service), start()).unwrap();
    assert_eq!(more.changes, ["made a server certificate"]);
    for name in service {
        assert!(trusts(&first.bundle, &more.certificate, name, start()));
        assert_eq!(
            trusts(&first.bundle, &first.certificate, name, start()),
            name == service[0]
        );
    }
    assert!(!trusts(
        &more.bundle,
        &more.certificate,
        "example.com",
        start()
    ));
    let error = maintain(&first.data, &names(&["ä.example"]), start()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the certificate for ä.example cannot be made: Invalid IA5String: 'ä.example'"
    );
}

#[test]
fn what_cannot_be_used_is_made_anew() {
    let first = authority(&SecretData::new(), start());
    let stranger = authority(&SecretData::new(), start());
    let with = |key: &str, value: &[u8]| {
        let mut data = first.data.clone();
        data.insert(key.into(), value.into());
        authority(&data, start()).changes
    };
    let server = ["made a server certificate"];
    let both = ["made a CA", "made a server certificate"];
    assert_eq!(with("tls.crt", b"torn"), server);
    assert_eq!(with("tls.key", &stranger.data["tls.key"]), server);
    assert_eq!(with("ca.crt", b""), both);
    assert_eq!(with("ca.key", &stranger.data["ca.key"]), both);
    assert_eq!(
        with("previous-ca.crt", b"torn"),
        ["removed what is of no use"]
    );
    // Signed by another CA.
    let mut data = first.data.clone();
    data.insert("tls.crt".into(), stranger.data["tls.crt"].clone());
    data.insert("tls.key".into(), stranger.data["tls.key"].clone());
    assert_eq!(authority(&data, start()).changes, server);
}

#[test]
fn a_controller_that_was_away_for_long_goes_on_with_what_is_valid() {
    let first = authority(&SecretData::new(), start());
    // Too late for an overlap: better a new CA at once than none.
    let late = start() + 365 * DAY - 12 * HOUR;
    let made = authority(&first.data, late);
    assert_eq!(
        made.changes,
        [
            "made the next CA",
            "signs with the next CA from now on",
            "made a server certificate"
        ]
    );
    assert!(trusts(&made.bundle, &made.certificate, "127.0.0.1", late));
    // Expired, while its successor is not.
    let next = authority(&first.data, start() + 310 * DAY);
    assert_eq!(
        next.changes,
        ["made the next CA", "made a server certificate"]
    );
    let late = start() + 400 * DAY;
    let made = authority(&next.data, late);
    assert_eq!(
        made.changes,
        [
            "signs with the next CA from now on",
            "made a server certificate"
        ]
    );
    assert!(trusts(&next.bundle, &made.certificate, "127.0.0.1", late));
}

#[test]
fn no_key_is_in_the_debug_output() {
    let made: Authority = authority(&SecretData::new(), start());
    let shown = format!("{made:?}");
    assert!(!shown.contains("PRIVATE"), "{shown}");
    assert!(!shown.contains("data"), "{shown}");
}
