//! A TCP relay in front of a server that breaks connections on request.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Passes connections on to a server, and breaks a given number of them, each at the next bytes of
/// its client. It accepts no more when it is dropped.
pub(crate) struct Front {
    address: SocketAddr,
    breaks: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

impl Front {
    pub(crate) fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (breaks, ended): (Arc<AtomicUsize>, Arc<AtomicBool>) = Default::default();
        let (left, stop) = (Arc::clone(&breaks), Arc::clone(&ended));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(server)) else {
                    continue;
                };
                let answers = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let left = Arc::clone(&left);
                std::thread::spawn(move || relay(client, server, || take(&left)));
                std::thread::spawn(move || relay(answers.0, answers.1, || false));
            }
        });
        Self {
            address,
            breaks,
            ended,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn break_next(&self, count: usize) {
        self.breaks.store(count, Ordering::SeqCst);
    }

    /// How many connections are still to be broken.
    pub(crate) fn left(&self) -> usize {
        self.breaks.load(Ordering::SeqCst)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn take(left: &AtomicUsize) -> bool {
    let one_less = |left: usize| left.checked_sub(1);
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
        .is_ok()
}

/// Copies bytes until one side ends or `breaks` says so, and then ends both.
fn relay(mut from: TcpStream, mut to: TcpStream, breaks: impl Fn() -> bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if breaks() || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
