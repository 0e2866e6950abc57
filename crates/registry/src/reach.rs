//! Which machines a URL from a server may lead to. The daemon makes requests from the network of
//! the host: a registry's redirect or token realm, or the URL of a foreign layer, must not reach what
//! listens for this machine alone, or the metadata service of a cloud. Addresses are checked where the
//! connection is made, after names were resolved.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::names;

/// Where an address is, as far as servers differ in what they may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Zone {
    /// Any other address.
    Network,
    /// This machine.
    Loopback,
    /// The link, and the addresses of the metadata services of clouds.
    Link,
}

impl Zone {
    /// The zone of an address; one that carries an IPv4 address is in the zone of that.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => match embedded(address) {
                Some(inner) => Self::of_v4(inner),
                None => Self::of_v6(address),
            },
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            // 0.0.0.0/8 is this host; connecting to 0.0.0.0 reaches loopback.
            [0 | 127, ..] => Self::Loopback,
            // Link-local; the metadata services of Alibaba, Azure and Oracle.
            [169, 254, ..] | [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] => {
                Self::Link
            }
            _ => Self::Network,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        if address.is_loopback() || address.is_unspecified() {
            return Self::Loopback;
        }
        match address.segments() {
            // Link-local; the metadata services of AWS (with EKS) and Google.
            [0xfe80..=0xfebf, ..] | [0xfd00, 0x0ec2, ..] | [0xfd20, 0x00ce, ..] => Self::Link,
            _ => Self::Network,
        }
    }

    /// The zone of the address that a URL states; `None` if it states a name.
    pub(crate) fn stated(url: &Url) -> Option<Self> {
        match url.host()? {
            Host::Ipv4(address) => Some(Self::of(address.into())),
            Host::Ipv6(address) => Some(Self::of(address.into())),
            Host::Domain(_) => None,
        }
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, translated (RFC 6052,
/// RFC 7915), or 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d] = {
        let bytes = address.octets();
        [bytes[12], bytes[13], bytes[14], bytes[15]]
    };
    let last = Ipv4Addr::new(a, b, c, d);
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0x64, 0xff9b, 0, 0, 0, 0, ..]
        | [0x64, 0xff9b, 1, ..] => Some(last),
        // ::1 and :: are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0, ..] => Some(last),
        [0x2002, high, low, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

/// How far the URL of a request may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reach {
    /// Anywhere: the configuration or the user named the host.
    Anywhere,
    /// A server in this zone named it: the network, and that zone.
    NamedFrom(Zone),
}

impl Reach {
    fn allows(self, zone: Zone) -> bool {
        match self {
            Self::Anywhere => true,
            Self::NamedFrom(from) => zone == Zone::Network || zone == from,
        }
    }

    /// Checks the address that a URL states.
    pub(crate) fn check(self, url: &Url) -> Result<(), OutOfReach> {
        match Zone::stated(url) {
            Some(zone) if !self.allows(zone) => Err(OutOfReach(zone)),
            _ => Ok(()),
        }
    }
}

/// An address that a server must not lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfReach(Zone);

impl fmt::Display for OutOfReach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Zone::Link => {
                "refused to follow a redirect, token realm or layer URL to a link-local address or a \
                 cloud's metadata service; only a registry that is itself there may lead there"
            }
            _ => {
                "refused to follow a redirect, token realm or layer URL to an address of this machine; \
                 only a registry that is itself there may lead there"
            }
        })
    }
}

impl std::error::Error for OutOfReach {}

/// Resolves names as this machine does, without the addresses that are out of reach.
pub(crate) struct GuardedResolver(pub(crate) Reach);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0;
        Box::pin(async move {
            let found = names::addresses(name.as_str()).await?;
            let (good, bad): (Vec<_>, Vec<_>) = found
                .into_iter()
                .partition(|&address| reach.allows(Zone::of(address)));
            match (good.is_empty(), bad.first()) {
                (true, Some(first)) => Err(OutOfReach(Zone::of(*first)).into()),
                _ => {
                    let good = good.into_iter().map(|address| SocketAddr::new(address, 0));
                    Ok(Box::new(good) as Addrs)
                }
            }
        })
    }
}

/// Resolves names for clients of `reqwest` whose servers the configuration names, in programs of
/// every kind of linking.
#[must_use]
pub fn resolver() -> impl Resolve + 'static {
    GuardedResolver(Reach::Anywhere)
}

/// Which requests a proxy of the environment makes. It resolves names itself, from its own place in
/// the network.
pub(crate) struct Proxies(Matcher);

impl Default for Proxies {
    fn default() -> Self {
        Self(Matcher::from_env())
    }
}

impl Proxies {
    /// Whether `url` is requested through a proxy.
    pub(crate) fn serve(&self, url: &Url) -> bool {
        url.as_str()
            .parse::<Uri>()
            .is_ok_and(|uri| self.0.intercept(&uri).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_an_address_is_in_its_zone() {
        for (text, zone) in [
            ("127.0.0.1", Zone::Loopback),
            ("127.255.0.9", Zone::Loopback),
            ("0.0.0.0", Zone::Loopback),
            ("::1", Zone::Loopback),
            ("::", Zone::Loopback),
            ("::ffff:127.0.0.1", Zone::Loopback),
            ("::ffff:0:127.0.0.1", Zone::Loopback),
            ("::127.0.0.1", Zone::Loopback),
            ("64:ff9b::7f00:1", Zone::Loopback),
            ("2002:7f00:1::", Zone::Loopback),
            ("169.254.169.254", Zone::Link),
            ("::ffff:169.254.169.254", Zone::Link),
            ("64:ff9b::a9fe:a9fe", Zone::Link),
            ("fe80::1", Zone::Link),
            ("fd00:ec2::254", Zone::Link),
            ("100.100.100.200", Zone::Link),
            ("10.0.0.1", Zone::Network),
            ("fd00::2", Zone::Network),
            ("2001:db8::1", Zone::Network),
            ("192.0.2.1", Zone::Network),
        ] {
            assert_eq!(Zone::of(text.parse().unwrap()), zone, "{text}");
        }
        // The URL parser knows the other forms of IPv4 addresses.
        for host in ["2130706433", "0x7f.1", "127.1", "[::ffff:7f00:1]"] {
            let url = Url::parse(&format!("http://{host}/")).unwrap();
            assert_eq!(Zone::stated(&url), Some(Zone::Loopback), "{host}");
        }
    }

    #[test]
    fn a_server_may_lead_to_its_own_zone_and_to_the_network() {
        use Zone::{Link, Loopback, Network};
        for (from, to, allowed) in [
            (Network, Network, true),
            (Network, Loopback, false),
            (Network, Link, false),
            (Loopback, Loopback, true),
            (Loopback, Link, false),
            (Link, Link, true),
            (Link, Network, true),
        ] {
            assert_eq!(
                Reach::NamedFrom(from).allows(to),
                allowed,
                "{from:?} {to:?}"
            );
            assert!(Reach::Anywhere.allows(to));
        }
    }
}
