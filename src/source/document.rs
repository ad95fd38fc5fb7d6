//! One YAML document to one object.

use crate::api::{GATEWAY_GROUP, Object};
use serde::{Deserialize, de::DeserializeOwned};
use std::{fmt, path::PathBuf};

/// Something in a file that cannot be used, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// Counted from 1; 0 when the whole file is meant.
    pub line: usize,
    pub message: String,
}

/// A document of a file.
#[derive(Clone, Debug)]
pub(super) struct Document<'a> {
    pub(super) text: &'a str,
    /// Line of the file that the text starts on, from 1.
    pub(super) line: usize,
}

/// Why a document is no object.
#[derive(Clone, Debug)]
pub(super) enum Unusable {
    /// It holds nothing but comments.
    Empty,
    /// A kind that tailway does not read.
    Unknown(String),
    /// Line of the document, from 1, and what is wrong.
    Broken(usize, String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
}

/// Splits a file at its `---` lines (YAML 1.2 §9.1.2). A line that starts with `---` is a marker
/// wherever it stands: block scalars cannot hold one in their first column.
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut line) = (0, 1);
    let (mut offset, mut number) = (0, 1);
    for content in text.split_inclusive('\n') {
        let marker = content
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker {
            documents.push(Document {
                text: &text[start..offset],
                line,
            });
            start = offset + 3;
            line = number;
        }
        offset += content.len();
        number += 1;
    }
    documents.push(Document {
        text: &text[start..],
        line,
    });
    documents
}

impl Document<'_> {
    /// Reads the object.
    pub(super) fn object(&self) -> Result<Object, Unusable> {
        if self.is_empty() {
            return Err(Unusable::Empty);
        }
        let header: Header = parse(self.text)?;
        let kind = header
            .kind
            .ok_or_else(|| Unusable::Broken(1, "kind is missing".into()))?;
        let version = header
            .api_version
            .ok_or_else(|| Unusable::Broken(1, format!("apiVersion of {kind} is missing")))?;
        let (group, version) = version.rsplit_once('/').unwrap_or(("", &version));
        let name = header
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.name.clone());
        let namespace = header.metadata.and_then(|metadata| metadata.namespace);
        let called = match (&namespace, &name) {
            (_, None) => {
                return Err(Unusable::Broken(
                    1,
                    format!("metadata.name of {kind} is missing"),
                ));
            }
            (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
            (None, Some(name)) => format!("{kind} {name}"),
        };
        self.typed(group, version, &kind)
            .map_err(|unusable| match unusable {
                Unusable::Broken(line, message) => {
                    Unusable::Broken(line, format!("{called}: {message}"))
                }
                other => other,
            })
    }

    fn typed(&self, group: &str, version: &str, kind: &str) -> Result<Object, Unusable> {
        let text = self.text;
        Ok(match (group, kind, version) {
            (GATEWAY_GROUP, "GatewayClass", "v1" | "v1beta1") => Object::GatewayClass(parse(text)?),
            (GATEWAY_GROUP, "Gateway", "v1" | "v1beta1") => Object::Gateway(parse(text)?),
            (GATEWAY_GROUP, "TCPRoute", "v1" | "v1alpha2" | "v1alpha3") => {
                Object::TcpRoute(parse(text)?)
            }
            (GATEWAY_GROUP, "ReferenceGrant", "v1" | "v1beta1" | "v1alpha2") => {
                Object::ReferenceGrant(parse(text)?)
            }
            ("", "Service", "v1") => Object::Service(parse(text)?),
            ("discovery.k8s.io", "EndpointSlice", "v1") => Object::EndpointSlice(parse(text)?),
            ("", "Secret", "v1") => Object::Secret(self.secret()?),
            ("", "Namespace", "v1") => Object::Namespace(parse(text)?),
            _ => return Err(Unusable::Unknown(format!("{kind} of {group}/{version}"))),
        })
    }

    /// A Secret, whose values may be left out (`client_id: # to be filled in`): an API server takes
    /// those for empty, the type does not.
    fn secret<T: DeserializeOwned>(&self) -> Result<T, Unusable> {
        let mut value: serde_json::Value = parse(self.text)?;
        for field in ["stringData", "data"] {
            if let Some(values) = value
                .get_mut(field)
                .and_then(serde_json::Value::as_object_mut)
            {
                values.retain(|_, value| !value.is_null());
            }
        }
        // The message must not repeat a value: it may be a secret.
        serde_json::from_value(value).map_err(|_| {
            Unusable::Broken(
                1,
                "data must map names to base64, stringData to text".into(),
            )
        })
    }

    fn is_empty(&self) -> bool {
        self.text.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line == "..."
        })
    }
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Unusable> {
    serde_saphyr::from_str(text).map_err(|error| {
        let line = error
            .location()
            .map_or(1, |location| usize::try_from(location.line()).unwrap_or(1));
        let message = error.without_snippet().to_string();
        Unusable::Broken(line.max(1), message)
    })
}

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file.display(), self.message),
            line => write!(f, "{}:{line}: {}", self.file.display(), self.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn documents_keep_the_line_they_start_on() {
        let text = "# head\n---\na: 1\n--- # second\nb: |\n  ---\n  x\n---\n";
        let found: Vec<_> = split(text)
            .iter()
            .map(|d| (d.line, d.text.to_owned()))
            .collect();
        assert_eq!(
            found,
            [
                (1, "# head\n".into()),
                (2, "\na: 1\n".into()),
                (4, " # second\nb: |\n  ---\n  x\n".into()),
                (8, "\n".into()),
            ]
        );
    }

    fn broken(text: &str) -> (usize, String) {
        match (Document { text, line: 1 }).object() {
            Err(Unusable::Broken(line, message)) => (line, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_the_object_and_its_line() {
        let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: a\nspec:\n  gatewayClassName: c\n  listeners:\n    - name: x\n      port: many\n      protocol: TCP\n";
        let (line, message) = broken(text);
        assert_eq!(line, 9, "{message}");
        assert!(message.starts_with("Gateway a: "), "{message}");
        assert_eq!(
            broken("kind: Gateway\nmetadata: {name: a}\n").1,
            "apiVersion of Gateway is missing"
        );
        assert_eq!(
            broken("apiVersion: v1\nkind: Service\n").1,
            "metadata.name of Service is missing"
        );
    }

    #[test]
    fn a_broken_secret_does_not_show_its_values() {
        let text =
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {key: {hunter2: hunter2}}\n";
        assert!(!broken(text).1.contains("hunter2"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,400}") {
            for document in split(&text) {
                let _ = document.object();
            }
        }

        #[test]
        fn no_object_makes_it_panic(
            kind in "Gateway|TCPRoute|Service|Secret|EndpointSlice|Namespace|GatewayClass|ReferenceGrant",
            body in "[a-z0-9:{}\\[\\], \n-]{0,200}",
        ) {
            let group = match kind.as_str() {
                "Service" | "Secret" | "Namespace" => "v1",
                "EndpointSlice" => "discovery.k8s.io/v1",
                _ => "gateway.networking.k8s.io/v1",
            };
            let text = format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n{body}");
            let _ = (Document { text: &text, line: 1 }).object();
        }
    }
}
