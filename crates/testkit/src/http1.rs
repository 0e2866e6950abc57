//! HTTP/1.1 (RFC 9112) as far as tests need it: message heads, and a blocking client that says
//! exactly what it is given and returns exactly what came back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Longer heads are refused.
pub(crate) const MAX_HEAD: usize = 64 * 1024;

/// The first line and the header fields of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// The request line or the status line, without its line end.
    pub(crate) first_line: String,
    /// Names as they came; values trimmed.
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    /// Parses a head that ends with its empty line.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        // Header values are ISO 8859-1 at worst: every byte is a character.
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let mut lines = text.split("\r\n");
        let first_line = lines
            .next()
            .filter(|line| !line.is_empty())
            .context("no first line")?;
        let mut fields = Vec::new();
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line
                .split_once(':')
                .context("a header field without colon")?;
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(Self {
            first_line: first_line.to_owned(),
            fields,
        })
    }

    /// The head as sent, empty line included.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.first_line);
        for (name, value) in &self.fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.chars()
            .map(|character| u8::try_from(character).unwrap_or(b'?'))
            .collect()
    }

    /// The first value of a field, whatever the case of its name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Removes a field.
    pub(crate) fn remove(&mut self, name: &str) {
        self.fields
            .retain(|(field, _)| !field.eq_ignore_ascii_case(name));
    }

    /// Sets a field, replacing what was there.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.remove(name);
        self.fields.push((name.to_owned(), value.into()));
    }

    /// The `n`th word of the first line.
    pub(crate) fn word(&self, n: usize) -> &str {
        self.first_line.split(' ').nth(n).unwrap_or_default()
    }

    /// The status of a response, 0 when it has none.
    pub(crate) fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or(0)
    }

    /// How the body that follows is framed (RFC 9112 §6.3), for messages that may have one.
    pub(crate) fn framing(&self) -> Framing {
        let chunked = self
            .get("transfer-encoding")
            .is_some_and(|coding| coding.to_ascii_lowercase().contains("chunked"));
        if chunked {
            return Framing::Chunked;
        }
        match self
            .get("content-length")
            .and_then(|length| length.parse().ok())
        {
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        }
    }
}

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// After this many bytes.
    Length(u64),
    /// The last chunk.
    Chunked,
    /// The end of the connection (a response), or there is none (a request).
    UntilClose,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct HttpResponse {
    /// The status.
    pub status: u16,
    /// The body, as far as it came.
    pub body: Vec<u8>,
    /// Whether the whole body came: false when the connection broke or closed too early.
    pub complete: bool,
    head: Head,
}

impl HttpResponse {
    /// The first value of a header field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.get(name)
    }
}

/// One request on a connection of its own. `Host`, `Connection: close` and `Content-Length` are
/// added; nothing is followed or repeated. The wait for each read is limited to 20 seconds.
///
/// # Errors
/// When no response head came back. A broken body is not an error: see [`HttpResponse::complete`].
pub fn http_request(
    address: SocketAddr,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
    body: &[u8],
) -> Result<HttpResponse> {
    let mut connection =
        TcpStream::connect(address).with_context(|| format!("connect {address}"))?;
    connection.set_read_timeout(Some(Duration::from_secs(120)))?;
    connection.set_nodelay(true)?;
    let mut head = Head {
        first_line: format!("{method} {target} HTTP/1.1"),
        fields: Vec::new(),
    };
    head.set("Host", address.to_string());
    head.set("Connection", "close");
    if !body.is_empty() || !matches!(method, "GET" | "HEAD" | "DELETE") {
        head.set("Content-Length", body.len().to_string());
    }
    for (name, value) in fields {
        head.set(name, *value);
    }
    connection.write_all(&head.encode())?;
    connection.write_all(body)?;
    read_response(&mut connection, method == "HEAD")
        .with_context(|| format!("{method} http://{address}{target}"))
}

/// Reads the metrics that a daemon offers on a unix socket.
///
/// # Errors
/// The socket does not answer with them.
pub fn metrics(socket: &Path) -> Result<String> {
    let mut connection =
        UnixStream::connect(socket).with_context(|| format!("connect {}", socket.display()))?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("no end of the head")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "no metrics: {head}");
    Ok(body.to_owned())
}

fn read_response(connection: &mut TcpStream, bodiless: bool) -> Result<HttpResponse> {
    let (head, mut rest) = loop {
        let (head, rest) = read_head(connection)?;
        if head.status() >= 200 {
            break (head, rest);
        }
        ensure!(rest.is_empty(), "bytes behind an interim response");
    };
    let status = head.status();
    let framing = match status {
        _ if bodiless => Framing::Length(0),
        204 | 304 => Framing::Length(0),
        _ => head.framing(),
    };
    // The connection is closed after the response, so everything until the end belongs to it.
    let ended = match framing {
        Framing::Length(length) if rest.len() as u64 >= length => true,
        Framing::Length(length) => {
            let missing = length - rest.len() as u64;
            connection.take(missing).read_to_end(&mut rest).is_ok()
        }
        Framing::Chunked | Framing::UntilClose => connection.read_to_end(&mut rest).is_ok(),
    };
    let (body, complete) = match framing {
        Framing::Length(length) => {
            let complete = ended && rest.len() as u64 == length;
            (rest, complete)
        }
        Framing::UntilClose => (rest, ended),
        Framing::Chunked => unchunk(&rest),
    };
    Ok(HttpResponse {
        status,
        body,
        complete,
        head,
    })
}

fn read_head(connection: &mut TcpStream) -> Result<(Head, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        if let Some(at) = find_end(&bytes) {
            let rest = bytes.split_off(at);
            return Ok((Head::parse(&bytes)?, rest));
        }
        ensure!(bytes.len() < MAX_HEAD, "the head is too long");
        match connection.read(&mut buffer) {
            Ok(0) => bail!("the connection ended before a response"),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            // A signal to the process of the tests.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Where the head ends: just behind its empty line.
pub(crate) fn find_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

/// The data of a chunked body, and whether its last chunk came.
fn unchunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(line_end) = rest.windows(2).position(|window| window == b"\r\n") else {
            return (body, false);
        };
        let Some(length) = chunk_length(&rest[..line_end]) else {
            return (body, false);
        };
        if length == 0 {
            return (body, true);
        }
        rest = &rest[line_end + 2..];
        let Ok(length) = usize::try_from(length) else {
            return (body, false);
        };
        let Some(data) = rest.get(..length) else {
            body.extend_from_slice(rest);
            return (body, false);
        };
        body.extend_from_slice(data);
        rest = rest.get(length + 2..).unwrap_or_default();
    }
}

/// The length on a chunk's first line, extensions dropped.
pub(crate) fn chunk_length(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    u64::from_str_radix(text.split(';').next()?.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_parsing_and_encoding() {
        let text = b"GET /v2/ HTTP/1.1\r\nHost: a:1\r\nX:  two words \r\n\r\n";
        let head = Head::parse(text).unwrap();
        assert_eq!(head.word(1), "/v2/");
        assert_eq!(head.get("x"), Some("two words"));
        assert_eq!(Head::parse(&head.encode()).unwrap(), head);
    }

    #[test]
    fn a_chunked_body_without_its_last_chunk_is_incomplete() {
        assert_eq!(
            unchunk(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"),
            (b"abcde".to_vec(), true)
        );
        assert_eq!(unchunk(b"3\r\nabc\r\n"), (b"abc".to_vec(), false));
        assert_eq!(unchunk(b"9\r\nabc"), (b"abc".to_vec(), false));
    }
}
