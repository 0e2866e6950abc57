//! Bodies of requests: passed on, dropped, or read when they are small.

use anyhow::{Context, Result, ensure};

use super::wire::{BUFFER, Wire};
use crate::http1::{Framing, Head, chunk_length};

/// Reads a request's body and drops it.
pub(crate) async fn discard_body(client: &mut Wire, request: &Head) -> Result<()> {
    relay_body(client, None, request).await
}

/// A form, whole.
pub(crate) async fn small_body(client: &mut Wire, request: &Head) -> Result<Vec<u8>> {
    let Framing::Length(length) = request.framing() else {
        return Ok(Vec::new());
    };
    ensure!(length <= 64 * 1024, "the form is too long");
    let mut body = vec![0; usize::try_from(length)?];
    let mut filled = 0;
    while filled < body.len() {
        let count = client.some(&mut body[filled..]).await?;
        ensure!(count > 0, "the client closed in its form");
        filled += count;
    }
    Ok(body)
}

/// Passes a request's body on, or drops it. A request without a length has no body.
pub(crate) async fn relay_body(
    client: &mut Wire,
    mut server: Option<&mut Wire>,
    request: &Head,
) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    match request.framing() {
        Framing::UntilClose => Ok(()),
        Framing::Length(length) => relay_bytes(client, &mut server, length, &mut buffer).await,
        Framing::Chunked => loop {
            let mut line = client.line().await?;
            let length = chunk_length(&line).context("a chunk without length")?;
            line.extend_from_slice(b"\r\n");
            if let Some(server) = &mut server {
                server.send(&line).await?;
            }
            if length == 0 {
                return relay_trailers(client, &mut server).await;
            }
            // With the line end behind the chunk's data.
            relay_bytes(client, &mut server, length + 2, &mut buffer).await?;
        },
    }
}

async fn relay_trailers(client: &mut Wire, server: &mut Option<&mut Wire>) -> Result<()> {
    loop {
        let mut line = client.line().await?;
        let last = line.is_empty();
        line.extend_from_slice(b"\r\n");
        if let Some(server) = server {
            server.send(&line).await?;
        }
        if last {
            return Ok(());
        }
    }
}

async fn relay_bytes(
    client: &mut Wire,
    server: &mut Option<&mut Wire>,
    mut length: u64,
    buffer: &mut [u8],
) -> Result<()> {
    while length > 0 {
        let wanted = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = client.some(&mut buffer[..wanted]).await?;
        ensure!(count > 0, "the client closed in its body");
        if let Some(server) = server {
            server.send(&buffer[..count]).await?;
        }
        length -= count as u64;
    }
    Ok(())
}
