//! A stream of chunks as a blocking reader: the zTOC builder runs on a thread of its own.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Chunks that may wait between the network and the builder, if they are small.
const AHEAD: usize = 16;
/// Bytes that may wait there: containerd's chunks have a mebibyte.
const BYTES_AHEAD: u32 = 2 << 20;

/// Reads what a task pulls out of a stream. Must be read outside the async threads.
pub struct StreamReader {
    chunks: mpsc::Receiver<(io::Result<Bytes>, Option<OwnedSemaphorePermit>)>,
    current: Bytes,
    /// The room that `current` takes among the bytes that wait, until it is read.
    permit: Option<OwnedSemaphorePermit>,
}

impl StreamReader {
    /// Starts pulling; must be called inside a tokio runtime. Pulling stops when the reader is
    /// dropped.
    #[must_use]
    pub fn new(mut stream: BoxStream<'static, io::Result<Bytes>>) -> Self {
        let (sender, chunks) = mpsc::channel(AHEAD);
        let room = Arc::new(Semaphore::new(BYTES_AHEAD as usize));
        tokio::spawn(async move {
            while let Some(chunk) = stream.next().await {
                let len = chunk.as_ref().map_or(0, Bytes::len);
                let len = u32::try_from(len).unwrap_or(u32::MAX).min(BYTES_AHEAD);
                // The semaphore is never closed.
                let permit = Arc::clone(&room).acquire_many_owned(len).await.ok();
                if sender.send((chunk, permit)).await.is_err() {
                    return;
                }
            }
        });
        Self {
            chunks,
            current: Bytes::new(),
            permit: None,
        }
    }
}

impl Read for StreamReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            // Before the wait: a chunk as large as all the room needs this one's.
            self.permit = None;
            match self.chunks.blocking_recv() {
                None => return Ok(0),
                Some((chunk, permit)) => {
                    self.permit = permit;
                    self.current = chunk?;
                }
            }
        }
        let take = self.current.len().min(buf.len());
        self.current.copy_to_slice(&mut buf[..take]);
        Ok(take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_of_any_size_come_through() {
        let sizes = [1, 3 << 20, 2 << 20, 0, 1 << 20, (1 << 20) + 1, 5 << 20, 7];
        let chunks = sizes.map(|size| Ok(Bytes::from(vec![1; size])));
        let mut reader = StreamReader::new(futures::stream::iter(chunks).boxed());
        let reading = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all.len())
        });
        let patience = std::time::Duration::from_secs(600);
        let read = tokio::time::timeout(patience, reading).await;
        let read = read.expect("it waits for ever").unwrap().unwrap();
        assert_eq!(read, sizes.iter().sum::<usize>());
    }
}
