//! One YAML document to one object.

use super::{
    fields::{Place, field_at, locate, unknown_fields, with_hostnames},
    rules::violations,
};
use crate::api::{GATEWAY_GROUP, Object, TAILWAY_GROUP};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::{fmt, path::PathBuf};

/// Something in a file that cannot be used, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// `None` when the whole file is meant.
    pub place: Option<Place>,
    pub message: String,
}

/// A document of a file.
#[derive(Clone, Debug)]
pub(super) struct Document<'a> {
    pub(super) text: &'a str,
    /// Line of the file that the text starts on, from 1.
    pub(super) line: usize,
}

/// What a document holds.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Nothing but comments.
    Empty,
    /// An object of a kind that tailway does not read.
    Unknown(String),
    Object {
        object: Object,
        /// Fields that no version of its kind has.
        unknown_fields: Vec<Remark>,
    },
}

/// Something to say of a place in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remark {
    pub(super) place: Place,
    pub(super) message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<Metadata>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
}

/// Splits a file at its `---` lines (YAML 1.2 §9.1.2). A line that starts with `---` is a marker
/// wherever it stands: block scalars cannot hold one in their first column.
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
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
    /// Where its first word stands, in the file.
    pub(super) fn place(&self) -> Place {
        self.in_file(self.first_word())
    }

    fn first_word(&self) -> Place {
        let before = self.text.lines().take_while(|line| is_blank(line)).count();
        Place {
            line: before + 1,
            column: 1,
        }
    }

    /// Reads the object.
    ///
    /// # Errors
    /// All that is wrong with it; at least one remark, with its place in the file.
    pub(super) fn content(&self) -> Result<Content, Vec<Remark>> {
        self.read().map_err(|remarks| self.all_in_file(remarks))
    }

    fn read(&self) -> Result<Content, Vec<Remark>> {
        if self.text.lines().all(is_blank) {
            return Ok(Content::Empty);
        }
        let value: Value = parse(self.text).map_err(|remark| vec![remark])?;
        let header: Header = self.parse(&value).map_err(|remark| vec![remark])?;
        let whole = |message: String| vec![self.remark("", message)];
        let kind = header.kind.ok_or_else(|| whole("kind is missing".into()))?;
        let version = header
            .api_version
            .ok_or_else(|| whole(format!("apiVersion of {kind} is missing")))?;
        let metadata = header.metadata.unwrap_or_default();
        let name = metadata
            .name
            .ok_or_else(|| whole(format!("metadata.name of {kind} is missing")))?;
        let called = match metadata.namespace {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        };
        let called = |mut remark: Remark| {
            remark.message = format!("{called}: {}", remark.message);
            remark
        };
        let (group, version) = version.rsplit_once('/').unwrap_or(("", &version));
        let object = self
            .typed(group, version, &kind, &value)
            .map_err(|remark| vec![called(remark)])?;
        let Some(object) = object else {
            let group = if group.is_empty() { "core" } else { group };
            return Ok(Content::Unknown(format!("{kind} of {group}/{version}")));
        };
        let broken: Vec<_> = violations(&object)
            .into_iter()
            .map(|violation| called(self.remark(&violation.path, violation.to_string())))
            .collect();
        if !broken.is_empty() {
            return Err(broken);
        }
        let unknown_fields = unknown_fields(&value, &object).into_iter().map(|path| {
            let message = format!("there is no field {path}");
            called(self.remark(&path, message))
        });
        let unknown_fields = self.all_in_file(unknown_fields.collect());
        Ok(Content::Object {
            object,
            unknown_fields,
        })
    }

    /// `None`: of no kind or version that tailway reads.
    fn typed(
        &self,
        group: &str,
        version: &str,
        kind: &str,
        value: &Value,
    ) -> Result<Option<Object>, Remark> {
        Ok(Some(match (group, kind, version) {
            (GATEWAY_GROUP, "GatewayClass", "v1" | "v1beta1") => {
                Object::GatewayClass(self.parse(value)?)
            }
            (GATEWAY_GROUP, "Gateway", "v1" | "v1beta1") => Object::Gateway(self.parse(value)?),
            (GATEWAY_GROUP, "TCPRoute", "v1" | "v1alpha2" | "v1alpha3") => {
                Object::TcpRoute(self.parse(value)?)
            }
            (GATEWAY_GROUP, "HTTPRoute", "v1" | "v1beta1") => Object::HttpRoute(self.parse(value)?),
            (GATEWAY_GROUP, "GRPCRoute", "v1" | "v1alpha2") => {
                Object::GrpcRoute(self.parse(value)?)
            }
            (GATEWAY_GROUP, "TLSRoute", "v1") => Object::TlsRoute(self.parse(value)?),
            (GATEWAY_GROUP, "TLSRoute", "v1alpha2" | "v1alpha3") => {
                Object::TlsRoute(self.parse(&with_hostnames(value.clone()))?)
            }
            (GATEWAY_GROUP, "UDPRoute", "v1" | "v1alpha2" | "v1alpha3") => {
                Object::UdpRoute(self.parse(value)?)
            }
            (GATEWAY_GROUP, "ListenerSet", "v1") => Object::ListenerSet(self.parse(value)?),
            (GATEWAY_GROUP, "BackendTLSPolicy", "v1") => {
                Object::BackendTlsPolicy(self.parse(value)?)
            }
            (GATEWAY_GROUP, "ReferenceGrant", "v1" | "v1beta1" | "v1alpha2") => {
                Object::ReferenceGrant(self.parse(value)?)
            }
            ("", "Service", "v1") => Object::Service(self.parse(value)?),
            ("discovery.k8s.io", "EndpointSlice", "v1") => {
                Object::EndpointSlice(self.parse(value)?)
            }
            ("", "ConfigMap", "v1") => Object::ConfigMap(self.parse(value)?),
            ("", "Secret", "v1") => Object::Secret(self.secret(value.clone())?),
            ("", "Namespace", "v1") => Object::Namespace(self.parse(value)?),
            (TAILWAY_GROUP, "TailscaleTailnet", "v1alpha1") => Object::Tailnet(self.parse(value)?),
            (TAILWAY_GROUP, "TailscaleEndpoints", "v1alpha1") => {
                Object::Endpoints(self.parse(value)?)
            }
            (TAILWAY_GROUP, "TailscaleEgressSet", "v1alpha1") => {
                Object::EgressSet(self.parse(value)?)
            }
            (TAILWAY_GROUP, "TailscaleBackend", "v1alpha1") => Object::Backend(self.parse(value)?),
            _ => return Ok(None),
        }))
    }

    /// The typed object of a value that the text was parsed to. Only where that fails is the text
    /// parsed again, which takes longer but knows the place.
    fn parse<T: DeserializeOwned>(&self, value: &Value) -> Result<T, Remark> {
        T::deserialize(value).or_else(|_| parse(self.text))
    }

    /// A Secret, whose values may be left out (`client_id: # to be filled in`): an API server takes
    /// those for empty, the type does not.
    fn secret<T: DeserializeOwned>(&self, mut value: Value) -> Result<T, Remark> {
        for field in ["stringData", "data"] {
            let values = value.get_mut(field).and_then(Value::as_object_mut);
            if let Some(values) = values {
                values.retain(|_, value| !value.is_null());
            }
        }
        // The message must not repeat a value: it may be a secret.
        serde_json::from_value(value).map_err(|_| {
            self.remark(
                "",
                "data must map names to base64, stringData to text".into(),
            )
        })
    }

    /// A remark on a field; on the document when the path is empty.
    fn remark(&self, path: &str, message: String) -> Remark {
        let place = if path.is_empty() {
            None
        } else {
            locate(self.text, path)
        };
        Remark {
            place: place.unwrap_or_else(|| self.first_word()),
            message,
        }
    }

    fn all_in_file(&self, mut remarks: Vec<Remark>) -> Vec<Remark> {
        remarks.sort_by_key(|remark| remark.place);
        for remark in &mut remarks {
            remark.place = self.in_file(remark.place);
        }
        remarks
    }

    fn in_file(&self, place: Place) -> Place {
        Place {
            line: self.line + place.line - 1,
            ..place
        }
    }
}

/// Empty, a comment, a directive (YAML 1.2 §6.8) or the end of a document.
fn is_blank(line: &str) -> bool {
    let text = line.trim();
    text.is_empty() || text.starts_with('#') || line.starts_with('%') || text == "..."
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Remark> {
    serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location().and_then(Place::of);
        let message = plain(&error.without_snippet().to_string());
        Remark {
            message: match place.and_then(|place| field_at(text, place)) {
                Some(field) => format!("{field}: {message}"),
                None => message,
            },
            place: place.unwrap_or(Place::START),
        }
    })
}

/// What the parser says, without the place, which it counts from the start of the document, and
/// in words of people who write YAML.
fn plain(message: &str) -> String {
    let message = match message.rfind(" at line ") {
        Some(at) => &message[..at],
        None => message,
    };
    let words = [
        (", set DuplicateKeyPolicy in Options if acceptable", ""),
        ("mapping start", "a mapping"),
        ("sequence start", "a list"),
        ("invalid i32", "no whole number, or too large a one"),
    ];
    words
        .iter()
        .fold(message.to_owned(), |message, (theirs, ours)| {
            message.replace(theirs, ours)
        })
}

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(Place { line, column }) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)
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

    #[test]
    fn a_broken_secret_does_not_show_its_values() {
        let text =
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {key: {hunter2: hunter2}}\n";
        let remarks = (Document { text, line: 1 }).content().unwrap_err();
        assert_eq!(remarks.len(), 1);
        assert!(!remarks[0].message.contains("hunter2"), "{remarks:?}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,400}") {
            for document in split(&text) {
                let _ = document.content();
                document.place();
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for document in split(&String::from_utf8_lossy(&bytes)) {
                let _ = document.content();
            }
        }

        #[test]
        fn no_object_makes_it_panic(
            kind in "Gateway|ListenerSet|BackendTLSPolicy|ConfigMap|TCPRoute|HTTPRoute|GRPCRoute|TLSRoute|UDPRoute|Service|Secret|EndpointSlice|Namespace|GatewayClass|ReferenceGrant",
            body in "[a-z0-9:{}\\[\\], \n-]{0,200}",
        ) {
            let group = match kind.as_str() {
                "Service" | "Secret" | "ConfigMap" | "Namespace" => "v1",
                "EndpointSlice" => "discovery.k8s.io/v1",
                _ => "gateway.networking.k8s.io/v1",
            };
            let text = format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n{body}");
            let _ = (Document { text: &text, line: 1 }).content();
        }
    }
}
