//! Where the heads of HTTP/1.1 are in a stream, and which of them leave it open where their
//! bodies end. hyper reads these leniently, as it may (RFC 9112 §2.2, §6.3); whoever stands before
//! us may have read them otherwise, so that they are made unreadable here.

/// Follows the requests of a connection.
#[derive(Debug)]
pub(super) struct Framing {
    state: State,
    head: Head,
    /// What has come of the current line.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// A body, and how much of it is left.
    Body(u64),
    ChunkSize,
    /// A chunk with the end of its line, and how much of it is left.
    Chunk(u64),
    Trailers,
    /// Not HTTP any more, or nothing that hyper will read on.
    Opaque,
}

/// What the lines of a head have said so far.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    has_begun: bool,
    is_coded: bool,
    length: Option<u64>,
    switches: bool,
}

/// A line longer than any head may be.
const MAX_LINE: usize = super::MAX_HEAD;

// === impl Framing ===

impl Framing {
    pub(super) fn new() -> Self {
        Self {
            state: State::Head,
            head: Head::default(),
            line: Vec::new(),
        }
    }

    /// Follows further bytes. The place of one that ends a line or head which must not be.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.state {
                State::Opaque => return None,
                State::Body(left) | State::Chunk(left) => at += self.pass(left, rest.len()),
                State::Head | State::ChunkSize | State::Trailers => {
                    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                        self.collect(rest);
                        return None;
                    };
                    self.collect(&rest[..end]);
                    at += end;
                    if !self.line() {
                        return Some(at);
                    }
                    at += 1;
                }
            }
        }
        None
    }

    fn pass(&mut self, left: u64, there: usize) -> usize {
        let passed = left.min(there as u64);
        let left = left - passed;
        self.state = match self.state {
            State::Body(_) if left == 0 => State::Head,
            State::Body(_) => State::Body(left),
            _ if left == 0 => State::ChunkSize,
            _ => State::Chunk(left),
        };
        passed as usize
    }

    fn collect(&mut self, bytes: &[u8]) {
        self.line.extend_from_slice(bytes);
        if self.line.len() > MAX_LINE {
            self.line = Vec::new();
            self.state = State::Opaque;
        }
    }

    /// Takes in a whole line. `false`: it must not be.
    fn line(&mut self) -> bool {
        let mut line = std::mem::take(&mut self.line);
        let is_good = match (self.state, line.strip_suffix(b"\r")) {
            (State::Head, None) => false,
            (State::Head, Some([])) => self.ends_head(),
            (State::Head, Some(line)) => {
                self.head.read(line);
                true
            }
            (State::ChunkSize, Some(line)) => {
                self.state = chunk(line);
                true
            }
            (State::Trailers, Some([])) => {
                self.state = State::Head;
                true
            }
            (State::Trailers, Some(_)) | (State::Opaque, _) => true,
            // hyper has an error for that.
            _ => {
                self.state = State::Opaque;
                true
            }
        };
        line.clear();
        self.line = line;
        is_good
    }

    fn ends_head(&mut self) -> bool {
        let head = std::mem::take(&mut self.head);
        if head.is_coded && head.length.is_some() {
            return false;
        }
        self.state = match (head.has_begun, head.switches, head.is_coded, head.length) {
            // Empty lines may stand before a request (RFC 9112 §2.2).
            (false, ..) => State::Head,
            (true, true, ..) => State::Opaque,
            (true, false, true, _) => State::ChunkSize,
            (true, false, false, Some(length)) if length > 0 => State::Body(length),
            _ => State::Head,
        };
        if self.state != State::Head {
            // A body may take long, and its head was long perhaps.
            self.line = Vec::new();
        }
        true
    }
}

fn chunk(line: &[u8]) -> State {
    let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let size = std::str::from_utf8(size).map(str::trim).unwrap_or_default();
    match u64::from_str_radix(size, 16) {
        Ok(0) => State::Trailers,
        Ok(size) => State::Chunk(size.saturating_add(2)),
        Err(_) => State::Opaque,
    }
}

// === impl Head ===

impl Head {
    fn read(&mut self, line: &[u8]) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.switches = line.starts_with(b"CONNECT ");
            return;
        }
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else {
            return;
        };
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("transfer-encoding") {
            self.is_coded = true;
        } else if is("upgrade") {
            self.switches = true;
        } else if is("content-length") {
            let value = std::str::from_utf8(value).map(str::trim);
            // Whatever it is, there is one.
            self.length = Some(value.ok().and_then(|text| text.parse().ok()).unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a stream is found bad, in pieces of any size.
    fn bad(stream: &str) -> Option<usize> {
        let whole = Framing::new().follow(stream.as_bytes());
        for size in [1, 2, 3, 7, 16] {
            let (mut framing, mut before) = (Framing::new(), 0);
            let mut found = None;
            for piece in stream.as_bytes().chunks(size) {
                if let Some(at) = framing.follow(piece) {
                    found = Some(before + at);
                    break;
                }
                before += piece.len();
            }
            assert_eq!(found, whole, "{stream:?} in pieces of {size}");
        }
        whole
    }

    #[test]
    fn what_can_be_read_in_one_way_only_is_left_alone() {
        for good in [
            "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\na\nb\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\na\nb\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\nanything\nat all",
        ] {
            assert_eq!(bad(good), None, "{good:?}");
        }
    }

    #[test]
    fn what_others_may_read_otherwise_is_found_wherever_it_stands() {
        let first = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
        let second = "POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\na";
        for shape in [
            "POST / HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
            "GET / HTTP/1.1\n",
            "GET / HTTP/1.1\r\nhost: a\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\n",
        ] {
            for before in ["", first, second] {
                let stream = format!("{before}{shape}0\r\n\r\n");
                let end = before.len() + shape.len() - 1;
                assert_eq!(bad(&stream), Some(end), "{stream:?}");
            }
        }
    }
}
