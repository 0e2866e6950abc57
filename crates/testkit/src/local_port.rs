//! Ports of this machine that one test has for itself.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context, Result, bail};

/// Ports that the kernel chooses neither for servers nor for clients (`ip_local_port_range` ends at
/// 60999).
const FIRST: u16 = 61_000;
const COUNT: u64 = 4_000;

/// A port of 127.0.0.1 that no other process of the tests uses while this exists. Nothing listens
/// there until the owner does.
///
/// A port that the kernel chose, and that was free a moment ago, may be another process's by now: a
/// server that is configured with it does not start, and a stopped server seems to run.
/// The datagram socket of the same number shows that a port is in use.
#[derive(Debug)]
pub struct LocalPort {
    number: u16,
    _claim: UdpSocket,
}

impl LocalPort {
    /// Chooses a port.
    ///
    /// # Errors
    /// There is none, or the machine has no loopback interface.
    pub fn claim() -> Result<Self> {
        for _ in 0..1000 {
            let chosen = RandomState::new().build_hasher().finish() % COUNT;
            let number = FIRST + u16::try_from(chosen).context("choose a port")?;
            let address = (Ipv4Addr::LOCALHOST, number);
            let claim = match UdpSocket::bind(address) {
                Ok(claim) => claim,
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => continue,
                Err(error) => return Err(error).context("claim a port"),
            };
            // A program that knows nothing of claims.
            if TcpListener::bind(address).is_ok() {
                return Ok(Self {
                    number,
                    _claim: claim,
                });
            }
        }
        bail!("no port is free")
    }

    /// Returns the port.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }

    /// Returns the port with its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::ErrorKind;
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_port_has_one_owner_and_is_closed_until_it_is_used() {
        let all: Vec<LocalPort> = (0..50).map(|_| LocalPort::claim().unwrap()).collect();
        let numbers: BTreeSet<u16> = all.iter().map(LocalPort::number).collect();
        assert_eq!(numbers.len(), all.len());
        let refused = TcpStream::connect(all[0].address()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let taken = UdpSocket::bind(all[0].address()).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        let _server = TcpListener::bind(all[0].address()).unwrap();
        assert!(TcpStream::connect(all[0].address()).is_ok());
    }
}
