use super::*;
use crate::{
    api::Object,
    controller::world::tests::{class, credentials, world},
};
use serde_json::{Value, json};

fn defaults() -> Defaults {
    Defaults {
        namespace: "tailway-system".into(),
        api_url: None,
        control_url: Some("https://control.example.com".into()),
    }
}

fn read(class: Value, others: Vec<Object>) -> Result<Parameters, String> {
    let world = world(others, []);
    parameters(&serde_json::from_value(class).unwrap(), &world, &defaults())
}

fn tailnet(spec: Value) -> Object {
    let tailnet = json!({"metadata": {"name": "example"}, "spec": spec});
    Object::Tailnet(serde_json::from_value(tailnet).unwrap())
}

fn class_of_tailnet() -> Value {
    let mut class = class("tailnet", "oauth");
    class["spec"]["parametersRef"] =
        json!({"group": TAILWAY_GROUP, "kind": "TailscaleTailnet", "name": "example"});
    class
}

#[test]
fn a_secret_holds_the_client_and_the_class_its_tags() {
    let mut class = class("tailnet", "oauth");
    class["metadata"]["annotations"][TAGS] = json!("tag:web, tag:prod");
    let parameters = read(class, vec![credentials("oauth")]).unwrap();
    let expected = Parameters {
        tailnet: "-".into(),
        credentials: CredentialSource::Client {
            id: "id".into(),
            secret: Secret::new("secret"),
        },
        api_url: None,
        control_url: Some("https://control.example.com".into()),
        tags: vec!["tag:web".into(), "tag:prod".into()],
        ephemeral: false,
        key_lifetime: Duration::from_secs(300),
        name_conflict: NameConflict::Keep,
        proxy: ProxySettings::default(),
    };
    assert_eq!(parameters, expected);
}

#[test]
fn a_tailnet_says_more_and_the_annotation_goes_before_its_tags() {
    let spec = json!({
        "tailnet": "example.com",
        "credentials": {"secretRef": {"name": "oauth"}},
        "tags": ["tag:tailnet"],
        "controlURL": "https://headscale.example.com",
        "apiURL": "https://api.example.com",
        "ephemeral": true,
        "keyLifetimeMinutes": 2,
        "nameConflict": "TakeBack",
        "proxy": {"logLevel": "debug"},
    });
    let objects = || vec![credentials("oauth"), tailnet(spec.clone())];
    let parameters = read(class_of_tailnet(), objects()).unwrap();
    let expected = Parameters {
        tailnet: "example.com".into(),
        credentials: CredentialSource::Client {
            id: "id".into(),
            secret: Secret::new("secret"),
        },
        api_url: Some("https://api.example.com".into()),
        control_url: Some("https://headscale.example.com".into()),
        tags: vec!["tag:web".into()],
        ephemeral: true,
        key_lifetime: Duration::from_secs(120),
        name_conflict: NameConflict::TakeBack,
        proxy: ProxySettings {
            log_level: Some("debug".into()),
            ..ProxySettings::default()
        },
    };
    assert_eq!(parameters, expected);
    let mut class = class_of_tailnet();
    class["metadata"]["annotations"] = Value::Null;
    assert_eq!(read(class, objects()).unwrap().tags, ["tag:tailnet"]);
}

#[test]
fn a_federated_identity_takes_no_secret() {
    let identity = json!({"clientID": "k123"});
    let spec = json!({"credentials": {"workloadIdentity": identity}});
    let parameters = read(class_of_tailnet(), vec![tailnet(spec)]).unwrap();
    let expected = CredentialSource::Federated {
        client_id: "k123".into(),
        token_path: "/var/run/secrets/tailscale/token".into(),
    };
    assert_eq!(parameters.credentials, expected);
}

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    let tags = |tags: &str| {
        let mut class = class("tailnet", "oauth");
        class["metadata"]["annotations"][TAGS] = json!(tags);
        class
    };
    let reference = |reference: Value| {
        let mut class = class("tailnet", "oauth");
        class["spec"]["parametersRef"] = reference;
        class
    };
    let empty = json!({
        "metadata": {"name": "oauth", "namespace": "tailway-system"},
        "data": {"client_id": "aWQ=", "client_secret": "IA=="},
    });
    let empty = || Object::Secret(serde_json::from_value(empty.clone()).unwrap());
    let both = json!({"credentials": {
        "secretRef": {"name": "oauth"},
        "workloadIdentity": {"clientID": "k123"},
    }});
    let plain = || class("tailnet", "oauth");
    let cases = [
        (plain(), vec![], "there is no Secret tailway-system/oauth"),
        (
            plain(),
            vec![empty()],
            "Secret tailway-system/oauth has no client_secret",
        ),
        (
            reference(Value::Null),
            vec![],
            "parametersRef is missing: refer to a Secret in namespace tailway-system with an OAuth client's client_id and client_secret, or to a TailscaleTailnet",
        ),
        (
            reference(json!({"group": "", "kind": "Secret", "name": "oauth", "namespace": "web"})),
            vec![],
            "parametersRef to Secret oauth: set namespace tailway-system, the only one where credentials are read",
        ),
        (
            reference(json!({"group": "", "kind": "ConfigMap", "name": "oauth"})),
            vec![],
            "parametersRef is a ConfigMap of group \"\": a Secret or a TailscaleTailnet.gateway.tailscale.com can be one",
        ),
        (
            class_of_tailnet(),
            vec![],
            "parametersRef: there is no TailscaleTailnet example",
        ),
        (
            class_of_tailnet(),
            vec![credentials("oauth"), tailnet(both)],
            "TailscaleTailnet example: set either credentials.secretRef or credentials.workloadIdentity",
        ),
        (
            tags(""),
            vec![credentials("oauth")],
            "there are no tags for the nodes: set the annotation tailway.michaelbeaumont.github.io/tags of the GatewayClass, or tags in its TailscaleTailnet, to tags that the OAuth client owns",
        ),
        (
            tags("tag:web,prod"),
            vec![credentials("oauth")],
            "\"prod\" is no tag: write `tag:` and a letter, then letters, digits and dashes",
        ),
        (
            tags("tag:1st"),
            vec![credentials("oauth")],
            "\"tag:1st\" is no tag: write `tag:` and a letter, then letters, digits and dashes",
        ),
    ];
    for (class, others, message) in cases {
        assert_eq!(read(class, others).unwrap_err(), message);
    }
}
