//! The daemon's end of the process that reads files into the page cache: started when it is first
//! needed, ended when no start needs it.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use soci_layerfs::OwnReader;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::page_cache_process::ReadOrder;

/// Orders that wait to be written.
const MOST_WAITING: usize = 16;
/// Time without an order after which the process is ended.
const IDLE: Duration = Duration::from_secs(30);

/// How the process is started.
#[derive(Debug, Clone)]
pub struct PageCacheProgram {
    /// The program.
    pub program: std::path::PathBuf,
    /// Its argument, which has it call [`crate::read_into_page_cache`] on its standard input.
    pub argument: String,
}

/// Sends orders to the process.
#[derive(Debug, Clone)]
pub(crate) struct PageCache {
    orders: mpsc::Sender<ReadOrder>,
}

impl PageCache {
    /// Must be called on a tokio runtime.
    pub(crate) fn new(program: PageCacheProgram, reader: Arc<OwnReader>) -> Self {
        let (orders, receiver) = mpsc::channel(MOST_WAITING);
        tokio::spawn(run(program, reader, receiver));
        Self { orders }
    }

    /// Whether an order is accepted now.
    pub(crate) fn has_room(&self) -> bool {
        self.orders.capacity() > 0
    }

    /// Sends an order; loses it if there is no room.
    pub(crate) fn read(&self, order: ReadOrder) {
        let _ = self.orders.try_send(order);
    }
}

async fn run(
    program: PageCacheProgram,
    reader: Arc<OwnReader>,
    mut orders: mpsc::Receiver<ReadOrder>,
) {
    let mut process = None;
    loop {
        let order = match &process {
            Some(_) => match tokio::time::timeout(IDLE, orders.recv()).await {
                Ok(order) => order,
                Err(_) => {
                    reader.set(None);
                    process = None;
                    continue;
                }
            },
            None => orders.recv().await,
        };
        let Some(order) = order else { return };
        if process.is_none() {
            process = start(&program);
            reader.set(process.as_ref().and_then(Child::id));
        }
        let Ok(mut line) = serde_json::to_vec(&order) else {
            continue;
        };
        line.push(b'\n');
        let written = match process.as_mut().and_then(|child| child.stdin.as_mut()) {
            Some(input) => input.write_all(&line).await.is_ok(),
            None => false,
        };
        if !written {
            reader.set(None);
            process = None;
        }
    }
}

/// Starts the process. Dropping it kills it; it ends by itself when this process does.
fn start(program: &PageCacheProgram) -> Option<Child> {
    let started = Command::new(&program.program)
        .arg(&program.argument)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    match started {
        Ok(child) => Some(child),
        Err(error) => {
            tracing::warn!(%error, "cannot start the process that reads into the page cache");
            None
        }
    }
}
