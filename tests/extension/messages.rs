//! Messages of Envoy as Envoy Gateway sends them, and what came back, to be read.

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;
use std::sync::OnceLock;

/// A message that is written field by field.
#[derive(Clone, Debug, Default)]
pub struct Draft(Vec<u8>);

impl Draft {
    pub fn bytes(mut self, number: u32, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        encode_key(number, WireType::LengthDelimited, &mut self.0);
        encode_varint(bytes.len() as u64, &mut self.0);
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn number(mut self, number: u32, value: u64) -> Self {
        encode_key(number, WireType::Varint, &mut self.0);
        encode_varint(value, &mut self.0);
        self
    }

    pub fn all(self, number: u32, several: impl IntoIterator<Item = Draft>) -> Self {
        several
            .into_iter()
            .fold(self, |draft, one| draft.bytes(number, one))
    }

    /// A field that no version of Envoy has.
    pub fn of_the_future(self) -> Self {
        self.bytes(4_242, "from the future")
    }

    pub fn done(self) -> Bytes {
        self.0.into()
    }
}

impl AsRef<[u8]> for Draft {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

pub fn draft() -> Draft {
    Draft::default()
}

/// An entry of a map.
fn entry(key: &str, value: Draft) -> Draft {
    draft().bytes(1, key).bytes(2, value)
}

/// Of `google.protobuf.Value`.
fn text(text: &str) -> Draft {
    draft().bytes(3, text)
}

/// The metadata by which Envoy Gateway says which object something was made from.
pub fn made_from(namespace: &str, name: &str) -> Draft {
    let fields = [
        ("kind", ""),
        ("name", name),
        ("namespace", namespace),
        ("sectionName", "http"),
    ];
    let resource = draft().all(1, fields.map(|(key, value)| entry(key, text(value))));
    let list = draft().bytes(1, draft().bytes(5, resource));
    let fields = draft().bytes(1, entry("resources", draft().bytes(6, list)));
    draft().bytes(1, entry("envoy-gateway", fields))
}

/// How the route of a user matches.
#[derive(Clone, Copy, Debug)]
pub enum Match<'a> {
    Prefix(&'a str),
    Segments(&'a str),
    Exact(&'a str),
    Regex(&'a str),
    /// A prefix, in upper or lower case.
    Folded(&'a str),
    /// A prefix and a header.
    WithHeader(&'a str),
    /// A prefix and something that this program does not know.
    WithMore(&'a str),
}

pub fn route(name: &str, matches: Match<'_>) -> Draft {
    let matches = match matches {
        Match::Prefix(prefix) => draft().bytes(1, prefix),
        Match::Segments(prefix) => draft().bytes(14, prefix),
        Match::Exact(path) => draft().bytes(2, path),
        Match::Regex(regex) => draft().bytes(10, draft().bytes(2, regex)),
        Match::Folded(prefix) => draft().bytes(1, prefix).bytes(4, draft()),
        Match::WithHeader(prefix) => {
            // A HeaderMatcher: the name, and that it is there.
            let header = draft().bytes(1, "x-version").number(7, 1);
            draft().bytes(1, prefix).bytes(6, header)
        }
        Match::WithMore(prefix) => draft().bytes(1, prefix).of_the_future(),
    };
    // Answered by Envoy itself.
    let answer = draft().number(1, 200);
    draft().bytes(1, matches).bytes(7, answer).bytes(14, name)
}

/// A virtual host of `default/eg`.
pub fn host(domain: &str, routes: impl IntoIterator<Item = Draft>) -> Draft {
    host_of("default", "eg", domain, routes)
}

pub fn host_of(
    namespace: &str,
    gateway: &str,
    domain: &str,
    routes: impl IntoIterator<Item = Draft>,
) -> Draft {
    let name = format!("{namespace}/{gateway}/http/{}", domain.replace('.', "_"));
    draft()
        .bytes(1, name)
        .bytes(2, domain)
        .all(3, routes)
        .bytes(24, made_from(namespace, gateway))
}

/// A route configuration of the listener `http` of `default/eg`.
pub fn configuration(hosts: impl IntoIterator<Item = Draft>) -> Draft {
    draft().bytes(1, "default/eg/http").all(2, hosts)
}

/// A cluster as Envoy Gateway makes them: with endpoints that come by EDS.
pub fn eds_cluster(name: &str) -> Draft {
    // Ads is field 3 of a ConfigSource.
    let eds = draft().bytes(1, draft().bytes(3, draft()));
    let connect_timeout = draft().number(1, 10);
    draft()
        .bytes(1, name)
        .number(2, 3)
        .bytes(3, eds)
        .bytes(4, connect_timeout)
        .bytes(25, made_from("default", "eg"))
}

/// Names of the routes of a virtual host, in their order.
pub fn route_names(host: &[u8]) -> Vec<String> {
    let host = json("envoy.config.route.v3.VirtualHost", host);
    let routes = host["routes"].as_array().cloned().unwrap_or_default();
    let name = |route: &Value| route["name"].as_str().unwrap_or_default().to_owned();
    routes.iter().map(name).collect()
}

/// The virtual hosts of a route configuration.
pub fn hosts(configuration: &[u8]) -> Vec<Bytes> {
    fields(configuration, 2)
}

/// The fields `number` on top of a message.
pub fn fields(message: &[u8], number: u32) -> Vec<Bytes> {
    let mut rest = message;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (tag, wire_type) = prost::encoding::decode_key(&mut rest).unwrap();
        match wire_type {
            WireType::LengthDelimited => {
                let length = prost::encoding::decode_varint(&mut rest).unwrap() as usize;
                let (bytes, after) = rest.split_at(length);
                if tag == number {
                    found.push(Bytes::copy_from_slice(bytes));
                }
                rest = after;
            }
            WireType::Varint => drop(prost::encoding::decode_varint(&mut rest).unwrap()),
            other => panic!("{other:?} is in no message of these tests"),
        }
    }
    found
}

/// What of a message this program can write, as JSON.
pub fn json(message_type: &str, bytes: &[u8]) -> Value {
    let kind = pool().get_message_by_name(message_type).unwrap();
    let message = DynamicMessage::decode(kind, bytes).unwrap();
    let options = SerializeOptions::new().stringify_64_bit_integers(false);
    let value = message.serialize_with_options(serde_json::value::Serializer, &options);
    value.unwrap()
}

pub fn cluster_json(bytes: &[u8]) -> Value {
    json("envoy.config.cluster.v3.Cluster", bytes)
}

fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/extension/envoy");
        let files = std::fs::read_dir(directory).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let descriptors = protox::compile(files, [directory]).unwrap();
        DescriptorPool::from_file_descriptor_set(descriptors).unwrap()
    })
}
