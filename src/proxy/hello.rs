//! What a client of TLS says first, read without ending TLS (RFC 8446 §4.1.2, §5.1).
//!
//! The hello is read by ourselves and not by rustls, since a backend may speak versions and ciphers
//! that rustls does not: only its outer form and its server name matter here.

use rustls::pki_types::DnsName;
use std::net::IpAddr;

/// Most bytes that a hello may take, the heads of its records included.
pub(super) const MAX_HELLO: usize = 64 * 1024;

/// Types of RFC 8446 §5.1, §4 and RFC 6066 §3.
const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const NAME_HOST: u8 = 0;

/// Most bytes of a record of plain text (RFC 8446 §5.1).
const MAX_RECORD: usize = 1 << 14;

/// What routes need of a hello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hello {
    /// In lower case; `None` when the client asks for no name, or for an address.
    pub(super) server_name: Option<String>,
}

/// Bytes that are no hello, or too many for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoHello;

/// Finds the end of a hello in bytes that come in pieces; each byte is looked at once.
#[derive(Debug, Default)]
pub(super) struct HelloParser {
    /// Bytes that were looked at.
    seen: usize,
    /// Bytes that the current record still has.
    record: usize,
    /// The handshake message, without the heads of records.
    message: Vec<u8>,
}

// === impl HelloParser ===

impl HelloParser {
    /// Goes on with `bytes`, all that came so far. `None`: more must come.
    ///
    /// # Errors
    /// When no hello begins so.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<Hello>, NoHello> {
        loop {
            if self.record == 0 {
                let rest = bytes.get(self.seen..).unwrap_or_default();
                match record_length(rest)? {
                    Some(length) => self.record = length,
                    None if bytes.len() >= MAX_HELLO => return Err(NoHello),
                    None => return Ok(None),
                }
                self.seen += 5;
            }
            let end = bytes.len().min(self.seen + self.record);
            let piece = bytes.get(self.seen..end).unwrap_or_default();
            self.message.extend_from_slice(piece);
            self.record -= piece.len();
            self.seen = end;
            if let Some(body) = body(&self.message)? {
                return hello(body).map(Some);
            }
            if self.record > 0 {
                return match bytes.len() >= MAX_HELLO {
                    true => Err(NoHello),
                    false => Ok(None),
                };
            }
        }
    }
}

/// The length in the head of a record, once it is there. What cannot become one is refused at its
/// first byte, so that who does not speak TLS need not wait.
fn record_length(bytes: &[u8]) -> Result<Option<usize>, NoHello> {
    let is_head = bytes.first().is_none_or(|&kind| kind == RECORD_HANDSHAKE)
        && bytes.get(1).is_none_or(|&major| major == 3);
    if !is_head {
        return Err(NoHello);
    }
    let Some(&[high, low]) = bytes.get(3..5) else {
        return Ok(None);
    };
    match usize::from(u16::from_be_bytes([high, low])) {
        length @ 1..=MAX_RECORD => Ok(Some(length)),
        _ => Err(NoHello),
    }
}

/// The body of the message, once all of it is there.
fn body(message: &[u8]) -> Result<Option<&[u8]>, NoHello> {
    if message.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
        return Err(NoHello);
    }
    let Some(&[high, middle, low]) = message.get(1..4) else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    match length < MAX_HELLO {
        true => Ok(message.get(4..4 + length)),
        false => Err(NoHello),
    }
}

fn hello(body: &[u8]) -> Result<Hello, NoHello> {
    let mut body = Reader(body);
    let (_version, _random) = (body.take(2)?, body.take(32)?);
    let (_session, _ciphers, _compression) = (body.vector8()?, body.vector16()?, body.vector8()?);
    if body.0.is_empty() {
        return Ok(Hello::default());
    }
    let mut extensions = Reader(body.vector16()?);
    if !body.0.is_empty() {
        return Err(NoHello);
    }
    let mut names = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let data = extensions.vector16()?;
        // Two of them could mean one name here and another at the backend.
        if kind == EXTENSION_SERVER_NAME && names.replace(data).is_some() {
            return Err(NoHello);
        }
    }
    let server_name = names.map(server_name).transpose()?.flatten();
    Ok(Hello { server_name })
}

/// The host of a list of names (RFC 6066 §3), of which there is one at most.
fn server_name(extension: &[u8]) -> Result<Option<String>, NoHello> {
    let mut extension = Reader(extension);
    let mut names = Reader(extension.vector16()?);
    if !extension.0.is_empty() || names.0.is_empty() {
        return Err(NoHello);
    }
    let mut host = None;
    while !names.0.is_empty() {
        let kind = names.take(1)?;
        let name = names.vector16()?;
        if kind == [NAME_HOST] && host.replace(name).is_some() {
            return Err(NoHello);
        }
    }
    let Some(host) = host else { return Ok(None) };
    match DnsName::try_from(host) {
        Ok(name) => Ok(Some(name.as_ref().to_ascii_lowercase())),
        // Not allowed, yet sent by clients that were given an address.
        Err(_) if is_address(host) => Ok(None),
        Err(_) => Err(NoHello),
    }
}

fn is_address(host: &[u8]) -> bool {
    std::str::from_utf8(host).is_ok_and(|host| host.parse::<IpAddr>().is_ok())
}

/// Reads the presentation language of TLS (RFC 8446 §3).
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], NoHello> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(NoHello)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number16(&mut self) -> Result<u16, NoHello> {
        let bytes = self.take(2)?;
        Ok(bytes.iter().fold(0, |sum, &b| sum << 8 | u16::from(b)))
    }

    fn vector8(&mut self) -> Result<&'a [u8], NoHello> {
        let length = self.take(1)?.iter().map(|&b| usize::from(b)).sum();
        self.take(length)
    }

    fn vector16(&mut self) -> Result<&'a [u8], NoHello> {
        let length = usize::from(self.number16()?);
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName,
        server::Acceptor,
    };
    use std::sync::Arc;

    /// What rustls says first, as one record.
    fn hello_of_rustls(name: &str, protocols: Vec<Vec<u8>>, versions: usize) -> Vec<u8> {
        let only: &[_] = match versions {
            0 => &[&rustls::version::TLS12],
            1 => &[&rustls::version::TLS13],
            _ => rustls::ALL_VERSIONS,
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(only)
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of these lengths, over and over.
    fn in_records(hello: &[u8], lengths: &[usize]) -> Vec<u8> {
        let (mut rest, mut records) = (&hello[5..], Vec::new());
        for &length in lengths.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, others) = rest.split_at(length.min(rest.len()));
            records.extend([22, 3, 1]);
            records.extend((piece.len() as u16).to_be_bytes());
            records.extend(piece);
            rest = others;
        }
        records
    }

    /// Parses what comes in pieces that end at these places.
    fn parse(bytes: &[u8], ends: &[usize]) -> Result<Option<Hello>, NoHello> {
        let mut parser = HelloParser::default();
        let mut ends: Vec<_> = ends.iter().map(|end| end % (bytes.len() + 1)).collect();
        ends.sort_unstable();
        ends.push(bytes.len());
        for end in ends {
            if let Some(hello) = parser.advance(&bytes[..end])? {
                return Ok(Some(hello));
            }
        }
        Ok(None)
    }

    /// What rustls reads in the same bytes.
    fn name_by_rustls(mut bytes: &[u8]) -> Option<String> {
        let mut acceptor = Acceptor::default();
        loop {
            acceptor.read_tls(&mut bytes).unwrap();
            if let Some(accepted) = acceptor.accept().map_err(|(error, _)| error).unwrap() {
                return accepted.client_hello().server_name().map(str::to_owned);
            }
        }
    }

    fn named(name: &str) -> Hello {
        Hello {
            server_name: Some(name.to_owned()),
        }
    }

    proptest! {
        #[test]
        fn a_hello_has_its_name_however_it_is_cut(
            name in "[a-z][a-zA-Z0-9]{0,20}(\\.[a-z][a-z0-9-]{0,20}[a-z]){1,4}",
            protocols in vec(vec(1u8.., 1..20), 0..4),
            versions in 0usize..3,
            records in vec(1usize..600, 1..8),
            ends in vec(any::<usize>(), 0..12),
        ) {
            let hello = in_records(&hello_of_rustls(&name, protocols, versions), &records);
            let parsed = parse(&hello, &ends);
            prop_assert_eq!(parsed, Ok(Some(named(&name.to_ascii_lowercase()))));
            prop_assert_eq!(name_by_rustls(&hello), Some(name.to_ascii_lowercase()));
            prop_assert_eq!(parse(&hello[..hello.len() - 1], &ends), Ok(None));
        }

        #[test]
        fn bytes_that_are_no_hello_are_refused_or_waited_for(bytes in vec(any::<u8>(), 0..200)) {
            let refused = parse(&bytes, &[]);
            let begins = bytes.first().is_none_or(|&b| b == 22) && bytes.get(1).is_none_or(|&b| b == 3);
            prop_assert!(begins || refused == Err(NoHello));
        }

        #[test]
        fn a_damaged_hello_ends_no_thread(
            at in any::<prop::sample::Index>(),
            with in any::<u8>(),
            ends in vec(any::<usize>(), 0..4),
        ) {
            let mut hello = hello_of_rustls("web.example.com", Vec::new(), 2);
            let at = at.index(hello.len());
            hello[at] = with;
            // Whether it comes in pieces changes nothing.
            prop_assert_eq!(parse(&hello, &ends), parse(&hello, &[]));
        }
    }

    #[test]
    fn one_byte_at_a_time_is_enough() {
        let hello = in_records(&hello_of_rustls("web.example.com", Vec::new(), 2), &[1]);
        let ends: Vec<_> = (0..hello.len()).collect();
        assert_eq!(parse(&hello, &ends), Ok(Some(named("web.example.com"))));
    }

    #[test]
    fn a_hello_without_a_name_and_one_for_an_address_have_none() {
        let hello = hello_of_rustls("127.0.0.1", Vec::new(), 2);
        assert_eq!(parse(&hello, &[]), Ok(Some(Hello::default())));
        assert_eq!(parse(&old_hello(&[]), &[]), Ok(Some(Hello::default())));
        let address = old_hello(&extension(&[(0, b"192.0.2.1")]));
        assert_eq!(parse(&address, &[]), Ok(Some(Hello::default())));
    }

    /// One of TLS 1.0, as rustls makes none.
    fn old_hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 1];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
        if !extensions.is_empty() {
            body.extend((extensions.len() as u16).to_be_bytes());
            body.extend(extensions);
        }
        let mut bytes = vec![22, 3, 1];
        bytes.extend((body.len() as u16 + 4).to_be_bytes());
        bytes.extend([1, 0]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn extension(names: &[(u8, &[u8])]) -> Vec<u8> {
        let mut list = Vec::new();
        for (kind, name) in names {
            list.push(*kind);
            list.extend((name.len() as u16).to_be_bytes());
            list.extend(*name);
        }
        let mut bytes = vec![0, 0];
        bytes.extend((list.len() as u16 + 2).to_be_bytes());
        bytes.extend((list.len() as u16).to_be_bytes());
        bytes.extend(list);
        bytes
    }

    #[test]
    fn an_old_hello_has_its_name_and_one_with_two_has_no_meaning() {
        let one = extension(&[(0, b"Old.example.com")]);
        let hello = parse(&old_hello(&one), &[]);
        assert_eq!(hello, Ok(Some(named("old.example.com"))));
        for twice in [
            [one.clone(), one].concat(),
            extension(&[(0, b"a.example.com"), (0, b"b.example.com")]),
            extension(&[]),
            extension(&[(0, b"")]),
            extension(&[(0, b"not a name")]),
        ] {
            assert_eq!(parse(&old_hello(&twice), &[]), Err(NoHello), "{twice:?}");
        }
    }

    #[test]
    fn a_hello_is_refused_as_soon_as_it_cannot_become_one() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            &[22, 2],
            &[22, 3, 1, 0, 0],
            &[22, 3, 1, 0x40, 1],
            &[22, 3, 1, 0, 1, 2],
            &[22, 3, 1, 0, 4, 1, 1, 0, 0],
            &[23, 3, 3, 0, 1],
        ] {
            assert_eq!(parse(bytes, &[]), Err(NoHello), "{bytes:?}");
        }
    }

    #[test]
    fn a_hello_that_does_not_end_is_refused_at_its_limit() {
        let endless = [22, 3, 1, 0, 1, 1, 22, 3, 1, 0, 3, 0, 0xff, 0xf0].to_vec();
        let filler = [22, 3, 1, 0, 1, 0].repeat(MAX_HELLO / 6 + 1);
        let bytes = [endless, filler].concat();
        assert_eq!(parse(&bytes[..MAX_HELLO - 1], &[]), Ok(None));
        assert_eq!(parse(&bytes[..MAX_HELLO], &[]), Err(NoHello));
    }
}
