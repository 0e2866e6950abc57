//! A stream of chunks as a blocking reader: the zTOC builder runs on a thread of its own.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

/// Chunks that may wait between the network and the builder.
const AHEAD: usize = 16;

/// Reads what a task pulls out of a stream. Must be read outside the async threads.
pub struct StreamReader {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl StreamReader {
    /// Starts pulling; must be called inside a tokio runtime. Pulling stops when the reader is
    /// dropped.
    #[must_use]
    pub fn new(mut stream: BoxStream<'static, io::Result<Bytes>>) -> Self {
        let (sender, chunks) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            while let Some(chunk) = stream.next().await {
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        Self {
            chunks,
            current: Bytes::new(),
        }
    }
}

impl Read for StreamReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => self.current = chunk?,
            }
        }
        let take = self.current.len().min(buf.len());
        self.current.copy_to_slice(&mut buf[..take]);
        Ok(take)
    }
}
