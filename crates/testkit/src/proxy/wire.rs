//! A TCP connection with the bytes that were read too far.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http1::{Head, MAX_HEAD, find_end};

/// Large enough that copying, not calling the kernel, is the cost of a relayed byte.
pub(crate) const BUFFER: usize = 256 * 1024;

pub(crate) struct Wire {
    stream: TcpStream,
    /// Read, not yet used.
    ahead: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        // Heads and bodies are written apart; a socket without the option is slower, not wrong.
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            ahead: Vec::new(),
        }
    }

    /// The next head, or `None` when the other side closed before one began.
    pub(crate) async fn head(&mut self) -> Result<Option<Head>> {
        loop {
            if let Some(at) = find_end(&self.ahead) {
                let rest = self.ahead.split_off(at);
                let head = std::mem::replace(&mut self.ahead, rest);
                return Head::parse(&head).map(Some);
            }
            ensure!(self.ahead.len() < MAX_HEAD, "the head is too long");
            // A TLS handshake would be waited for in vain.
            let first = self.ahead.first().copied().unwrap_or(b'H');
            ensure!(first.is_ascii_alphabetic(), "this is not HTTP");
            let before = self.ahead.len();
            if self.stream.read_buf(&mut self.ahead).await? == 0 {
                ensure!(before == 0, "the connection ended in a head");
                return Ok(None);
            }
        }
    }

    /// A line of a chunked body, without its end.
    pub(crate) async fn line(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(at) = self.ahead.windows(2).position(|window| window == b"\r\n") {
                let rest = self.ahead.split_off(at + 2);
                let mut line = std::mem::replace(&mut self.ahead, rest);
                line.truncate(at);
                return Ok(line);
            }
            ensure!(self.ahead.len() < MAX_HEAD + BUFFER, "the line is too long");
            if self.stream.read_buf(&mut self.ahead).await? == 0 {
                bail!("the connection ended in a line");
            }
        }
    }

    /// Some bytes, as many as there are up to the buffer's length; 0 at the end.
    pub(crate) async fn some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if self.ahead.is_empty() {
            return self.stream.read(buffer).await.context("read a body");
        }
        let count = self.ahead.len().min(buffer.len());
        let (now, later) = self.ahead.split_at(count);
        buffer[..count].copy_from_slice(now);
        self.ahead = later.to_vec();
        Ok(count)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.context("write")
    }

    /// Waits until the other side closes.
    pub(crate) async fn wait_for_close(&mut self) {
        let mut buffer = [0; 4096];
        while matches!(self.stream.read(&mut buffer).await, Ok(count) if count > 0) {}
    }

    /// Closes with a reset instead of in good order.
    pub(crate) fn reset(self) {
        // Without the option the close is an ordinary one; tests that need the reset then fail.
        let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
    }
}
