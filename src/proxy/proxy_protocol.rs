//! What a backend is told of a client before its first byte: HAProxy's PROXY protocol
//! (proxy-protocol.txt, versions 1 and 2).

use crate::{
    model::{Identity, ProxyProtocol},
    net::Flow,
};
use std::net::{IpAddr, SocketAddr};

/// Begins every header of version 2 (§2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, command PROXY (§2.2).
const VERSION_AND_COMMAND: u8 = 0x21;

/// TCP over IPv4 and IPv6 (§2.2).
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// Types of TLVs (§2.2). Those from 0xE0 to 0xEF are an application's own (§2.2.8).
mod kind {
    pub(super) const ALPN: u8 = 0x01;
    pub(super) const AUTHORITY: u8 = 0x02;
    pub(super) const LOGIN: u8 = 0xe0;
    pub(super) const NODE: u8 = 0xe1;
    pub(super) const TAGS: u8 = 0xe2;
}

/// A client, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client<'a> {
    pub(super) flow: Flow,
    pub(super) identity: Option<&'a Identity>,
    /// Asked for by SNI; empty: none.
    pub(super) server_name: &'a str,
    /// Agreed on by ALPN, where TLS ends here.
    pub(super) protocol: Option<&'a [u8]>,
}

impl<'a> Client<'a> {
    /// One of TCP.
    pub(super) fn of(flow: Flow, identity: Option<&'a Identity>) -> Self {
        Self {
            flow,
            identity,
            server_name: "",
            protocol: None,
        }
    }

    /// The header: source is the peer, destination what it connected to.
    ///
    /// Version 2 has these TLVs, each only if its value is known:
    ///
    /// | type | value |
    /// |---|---|
    /// | 0x01 `PP2_TYPE_ALPN` | the protocol that TLS agreed on |
    /// | 0x02 `PP2_TYPE_AUTHORITY` | the server name that the client asked for |
    /// | 0xE0 | login name of the peer's user; none for a tagged node |
    /// | 0xE1 | full name of the peer's node, without a final dot |
    /// | 0xE2 | tags of the peer's node, joined by commas |
    pub(super) fn header(&self, version: ProxyProtocol) -> Vec<u8> {
        match version {
            ProxyProtocol::V1 => self.text(),
            ProxyProtocol::V2 => self.binary(),
        }
    }

    /// Both addresses, in one family.
    fn addresses(&self) -> (SocketAddr, SocketAddr) {
        let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
        let (source, destination) = (
            canonical(self.flow.source),
            canonical(self.flow.destination),
        );
        match (source.0, destination.0) {
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
                (source.into(), destination.into())
            }
            _ => (mapped(source.into()), mapped(destination.into())),
        }
    }

    fn text(&self) -> Vec<u8> {
        let (source, destination) = self.addresses();
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        format!(
            "PROXY {family} {} {} {} {}\r\n",
            source.ip(),
            destination.ip(),
            source.port(),
            destination.port()
        )
        .into_bytes()
    }

    fn binary(&self) -> Vec<u8> {
        let (source, destination) = self.addresses();
        let mut rest = Vec::with_capacity(256);
        for address in [source, destination] {
            match address.ip() {
                IpAddr::V4(ip) => rest.extend(ip.octets()),
                IpAddr::V6(ip) => rest.extend(ip.octets()),
            }
        }
        for address in [source, destination] {
            rest.extend(address.port().to_be_bytes());
        }
        let of = |identity: Option<&Identity>, text: fn(&Identity) -> String| {
            identity.map(text).unwrap_or_default()
        };
        let login = of(self.identity, |identity| identity.login.clone());
        let node = of(self.identity, |identity| identity.node.clone());
        let tags = of(self.identity, |identity| identity.tags.join(","));
        for (kind, value) in [
            (kind::ALPN, self.protocol.unwrap_or_default()),
            (kind::AUTHORITY, self.server_name.as_bytes()),
            (kind::LOGIN, login.as_bytes()),
            (kind::NODE, node.as_bytes()),
            (kind::TAGS, tags.as_bytes()),
        ] {
            push(&mut rest, kind, value);
        }
        let family = if source.is_ipv4() { TCP4 } else { TCP6 };
        let length = rest.len() as u16; // `push` sees to it
        let mut header = Vec::with_capacity(16 + rest.len());
        header.extend(SIGNATURE);
        header.extend([VERSION_AND_COMMAND, family]);
        header.extend(length.to_be_bytes());
        header.extend(rest);
        header
    }
}

/// An IPv4 address as one of IPv6 (RFC 4291 §2.5.5.2).
fn mapped(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Adds a TLV, unless there is nothing to tell or no room to tell it: half a list of tags would be
/// a lie.
fn push(rest: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let room = usize::from(u16::MAX).saturating_sub(rest.len() + 3);
    if value.is_empty() || value.len() > room {
        return;
    }
    rest.push(kind);
    rest.extend((value.len() as u16).to_be_bytes());
    rest.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    /// What a backend reads, written from the specification alone.
    #[derive(Debug, PartialEq)]
    struct Read {
        source: SocketAddr,
        destination: SocketAddr,
        fields: Vec<(u8, Vec<u8>)>,
    }

    fn read_text(header: &[u8]) -> Read {
        assert!(header.len() <= 107, "longer than any client may expect");
        let text = std::str::from_utf8(header).unwrap();
        let line = text.strip_suffix("\r\n").unwrap();
        let words: Vec<_> = line.split(' ').collect();
        let [proxy, family, source, destination, from, to] = words[..] else {
            panic!("{line}");
        };
        let source: IpAddr = source.parse().unwrap();
        assert_eq!(proxy, "PROXY");
        assert_eq!(family, if source.is_ipv4() { "TCP4" } else { "TCP6" });
        Read {
            source: (source, from.parse().unwrap()).into(),
            destination: (destination.parse::<IpAddr>().unwrap(), to.parse().unwrap()).into(),
            fields: Vec::new(),
        }
    }

    fn read_binary(header: &[u8]) -> Read {
        let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        assert_eq!(
            header[..12],
            *b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
        );
        assert_eq!(header[12] >> 4, 2, "version");
        assert_eq!(header[12] & 15, 1, "PROXY");
        assert_eq!(header[13] & 15, 1, "STREAM");
        assert_eq!(usize::from(number(14)), header.len() - 16);
        let address = |at: usize| -> IpAddr {
            match header[13] >> 4 {
                1 => <[u8; 4]>::try_from(&header[at..at + 4]).unwrap().into(),
                2 => <[u8; 16]>::try_from(&header[at..at + 16]).unwrap().into(),
                family => panic!("family {family}"),
            }
        };
        let size = if header[13] >> 4 == 1 { 4 } else { 16 };
        let mut at = 16 + 2 * size + 4;
        let mut fields = Vec::new();
        while at < header.len() {
            let length = usize::from(number(at + 1));
            fields.push((header[at], header[at + 3..at + 3 + length].to_vec()));
            at += 3 + length;
        }
        assert_eq!(at, header.len());
        Read {
            source: (address(16), number(16 + 2 * size)).into(),
            destination: (address(16 + size), number(16 + 2 * size + 2)).into(),
            fields,
        }
    }

    fn flows() -> impl Strategy<Value = Flow> {
        let four = (any::<[u8; 4]>(), any::<[u8; 4]>())
            .prop_map(|(from, to)| (IpAddr::from(from), IpAddr::from(to)));
        // Mapped ones are told as what they are, which is another test.
        let six = (any::<[u16; 8]>(), any::<[u16; 8]>())
            .prop_map(|(from, to)| (from.map(|part| part | 1), to.map(|part| part | 1)))
            .prop_map(|(from, to)| (IpAddr::from(from), IpAddr::from(to)));
        (prop_oneof![four, six], any::<(u16, u16)>()).prop_map(|((from, to), ports)| Flow {
            source: (from, ports.0).into(),
            destination: (to, ports.1).into(),
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_a_backend_reads(
            flow in flows(),
            login in "[a-zé@.]{0,40}",
            node in "[a-z.]{0,40}",
            tags in vec("tag:[a-z]{1,9}", 0..4),
            server_name in "[a-z.]{0,40}",
            protocol in vec(any::<u8>(), 0..8),
        ) {
            let identity = Identity { login, node, tags, ..Identity::default() };
            let client = Client {
                flow,
                identity: Some(&identity),
                server_name: &server_name,
                protocol: Some(&protocol),
            };
            let mut expected = Read {
                source: flow.source,
                destination: flow.destination,
                fields: Vec::new(),
            };
            prop_assert_eq!(&read_text(&client.header(ProxyProtocol::V1)), &expected);
            expected.fields = vec![
                (0x01, protocol.clone()),
                (0x02, server_name.clone().into_bytes()),
                (0xe0, identity.login.clone().into_bytes()),
                (0xe1, identity.node.clone().into_bytes()),
                (0xe2, identity.tags.join(",").into_bytes()),
            ];
            expected.fields.retain(|(_, value)| !value.is_empty());
            prop_assert_eq!(&read_binary(&client.header(ProxyProtocol::V2)), &expected);
        }
    }

    #[test]
    fn addresses_of_two_families_are_told_as_ipv6_and_mapped_ones_as_ipv4() {
        let mixed = Flow {
            source: "100.64.0.1:5".parse().unwrap(),
            destination: "[fd7a::1]:80".parse().unwrap(),
        };
        assert_eq!(
            Client::of(mixed, None).header(ProxyProtocol::V1),
            b"PROXY TCP6 ::ffff:100.64.0.1 fd7a::1 5 80\r\n"
        );
        let mapped = Flow {
            source: "[::ffff:100.64.0.1]:5".parse().unwrap(),
            destination: "100.64.0.2:80".parse().unwrap(),
        };
        assert_eq!(
            Client::of(mapped, None).header(ProxyProtocol::V1),
            b"PROXY TCP4 100.64.0.1 100.64.0.2 5 80\r\n"
        );
    }

    #[test]
    fn a_field_without_room_is_left_out_whole() {
        let identity = Identity {
            login: "a".repeat(70_000),
            node: "n".repeat(65_000),
            tags: vec!["tag:a".repeat(200)],
            ..Identity::default()
        };
        let flow = Flow {
            source: "100.64.0.1:5".parse().unwrap(),
            destination: "100.64.0.2:80".parse().unwrap(),
        };
        let client = Client::of(flow, Some(&identity));
        let read = read_binary(&client.header(ProxyProtocol::V2));
        assert_eq!(read.fields, [(0xe1, identity.node.into_bytes())]);
    }
}
