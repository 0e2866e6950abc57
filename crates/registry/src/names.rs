//! From host names to addresses.
//!
//! A program that is linked with the C library asks it, and thereby everything that nsswitch.conf(5)
//! names. One that is linked statically cannot: the C library's modules for that are shared objects
//! of exactly its own version. It reads `/etc/hosts` and `/etc/resolv.conf` itself, for each name,
//! so that changes count immediately; connections are kept, so that names are rarely looked up.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use hickory_resolver::config::{
    ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};
use soci_errors::chain;

/// Whether this program is linked statically.
const STATIC: bool = cfg!(target_feature = "crt-static");

/// Port of name servers; resolv.conf(5) cannot state another one.
const DNS_PORT: u16 = 53;

/// Returns the addresses of a host, in the order in which to try them; at least one.
pub(crate) async fn addresses(host: &str) -> io::Result<Vec<IpAddr>> {
    let found = if STATIC {
        Files::default().addresses(host).await?
    } else {
        let found = tokio::net::lookup_host((host, 0)).await?;
        found.map(|address| address.ip()).collect()
    };
    if found.is_empty() {
        return Err(io::Error::other("the name has no address"));
    }
    Ok(found)
}

/// Returns the addresses that `HOST:PORT` stands for, for a socket to listen on. Waits: not for
/// threads of the runtime.
///
/// # Errors
/// It is not of that form, or the name has no address.
pub fn listen_addresses(text: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    if !STATIC {
        return std::net::ToSocketAddrs::to_socket_addrs(text).map(Iterator::collect);
    }
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "it is not HOST:PORT");
    let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
    let port = port.parse().map_err(|_| invalid())?;
    let host = host.to_owned();
    // The caller's thread may drive a runtime of its own.
    let looked_up = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(addresses(&host))
    });
    let found = looked_up
        .join()
        .map_err(|_| io::Error::other("the look-up panicked"))??;
    Ok(found
        .into_iter()
        .map(|address| SocketAddr::new(address, port))
        .collect())
}

/// The two files that say how names are resolved without the C library.
struct Files {
    hosts: PathBuf,
    resolv_conf: PathBuf,
    port: u16,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            port: DNS_PORT,
        }
    }
}

impl Files {
    /// A name in the hosts file has the addresses that stand there and no others; other names have
    /// those that the name servers know.
    async fn addresses(self, host: &str) -> io::Result<Vec<IpAddr>> {
        let name = Name::from_utf8(host)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        let mut alias = name.clone();
        alias.set_fqdn(true);
        let (found, config) =
            soci_task::blocking(move || io::Result::Ok((self.in_hosts(&alias)?, self.servers()?)))
                .await?;
        if !found.is_empty() {
            return Ok(found);
        }
        let (config, options) = config;
        let provider = TokioRuntimeProvider::default();
        let builder = TokioResolver::builder_with_config(config, provider).with_options(options);
        let failed = |error| io::Error::other(chain(&error));
        let resolver = builder.build().map_err(failed)?;
        let found = resolver.lookup_ip(name).await.map_err(failed)?;
        Ok(ordered(found.iter().collect()))
    }

    fn in_hosts(&self, name: &Name) -> io::Result<Vec<IpAddr>> {
        let mut hosts = Hosts::default();
        match std::fs::File::open(&self.hosts) {
            Ok(file) => hosts
                .read_hosts_conf(file)
                .map_err(|error| in_file(&self.hosts, &error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(in_file(&self.hosts, &error)),
        }
        let of_kind = |kind| hosts.lookup_static_host(&Query::query(name.clone(), kind));
        Ok([RecordType::AAAA, RecordType::A]
            .into_iter()
            .filter_map(of_kind)
            .flat_map(|found| {
                let records = found.answers().iter();
                records
                    .filter_map(|record| record.data.ip_addr())
                    .collect::<Vec<_>>()
            })
            .collect())
    }

    /// The name servers and options. Without any there is one on this machine, as resolv.conf(5)
    /// says.
    fn servers(&self) -> io::Result<(ResolverConfig, ResolverOpts)> {
        let text = match std::fs::read(&self.resolv_conf) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(in_file(&self.resolv_conf, &error)),
        };
        let parsed = system_conf::parse_resolv_conf(&text).or_else(|_| {
            let text = [text.as_slice(), b"\nnameserver 127.0.0.1\n"].concat();
            system_conf::parse_resolv_conf(text)
        });
        let (config, mut options) =
            parsed.map_err(|error| in_file(&self.resolv_conf, &io::Error::other(error)))?;
        let (domain, search, mut servers) = config.into_parts();
        for connection in servers
            .iter_mut()
            .flat_map(|server| &mut server.connections)
        {
            connection.port = self.port;
        }
        // The domain of this machine is only searched where no other is named.
        let domain = domain.filter(|_| search.is_empty());
        let config = ResolverConfig::from_parts(domain, search, servers);
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = 0;
        // The first server may know names that the others do not.
        options.num_concurrent_reqs = 1;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        Ok((config, options))
    }
}

/// Addresses that this machine has a route to come first; among those, IPv6 (RFC 6724 §2.1 and
/// rule 1 of §6).
fn ordered(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_by_key(|&address| (!has_route(address), address.is_ipv4()));
    addresses
}

/// Whether the kernel has a route to an address. Nothing is sent.
fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect((address, DNS_PORT)).is_ok())
}

fn in_file(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot read {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
    use hickory_resolver::proto::rr::rdata::{A, AAAA};
    use hickory_resolver::proto::rr::{RData, Record};
    use parking_lot::Mutex;
    use tempfile::TempDir;

    use super::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

    /// A resolver waits so long for an answer: as long as it may be told to, for busy machines.
    const PATIENT: &str = "options timeout:30 attempts:5\nnameserver 127.0.0.1\n";

    /// A name server that knows some names, and what it was asked. A resolver repeats a question whose answer
    /// takes a third of a second, so that a late one may arrive after the look-up: what is asked later is seen
    /// at a server of its own.
    struct Server {
        port: u16,
        queries: Arc<Mutex<Vec<String>>>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Server {
        async fn start(known: &[(&str, IpAddr)]) -> Self {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let port = socket.local_addr().unwrap().port();
            let known: Vec<_> = known
                .iter()
                .map(|(name, address)| (Name::from_ascii(name).unwrap(), *address))
                .collect();
            let queries = Arc::<Mutex<Vec<String>>>::default();
            let asked = Arc::clone(&queries);
            let task = tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                    let mut message = Message::from_vec(&buffer[..length]).unwrap();
                    let query = message.queries[0].clone();
                    asked.lock().push(query.name().to_string());
                    message.metadata.message_type = MessageType::Response;
                    let of_name: Vec<_> = known
                        .iter()
                        .filter(|(name, _)| name == query.name())
                        .collect();
                    if of_name.is_empty() {
                        message.metadata.response_code = ResponseCode::NXDomain;
                    }
                    for (name, address) in of_name {
                        let data = match address {
                            IpAddr::V4(address) => RData::A(A(*address)),
                            IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
                        };
                        if data.record_type() == query.query_type() {
                            message.add_answer(Record::from_rdata(name.clone(), 60, data));
                        }
                    }
                    let answer = message.to_vec().unwrap();
                    socket.send_to(&answer, peer).await.unwrap();
                }
            });
            Self {
                port,
                queries,
                task,
            }
        }

        /// The names that were looked up, each once.
        fn asked(&self) -> Vec<String> {
            let mut names = std::mem::take(&mut *self.queries.lock());
            names.dedup();
            names
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    struct Machine {
        folder: TempDir,
        port: u16,
    }

    impl Machine {
        /// Sends later questions to another server.
        fn ask(&mut self, server: &Server) {
            self.port = server.port;
        }

        fn new(port: u16, hosts: &str, resolv_conf: &str) -> Self {
            let folder = TempDir::new().unwrap();
            let machine = Self { folder, port };
            machine.write("hosts", hosts);
            machine.write("resolv.conf", resolv_conf);
            machine
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.folder.path().join(name), text).unwrap();
        }

        async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
            let files = Files {
                hosts: self.folder.path().join("hosts"),
                resolv_conf: self.folder.path().join("resolv.conf"),
                port: self.port,
            };
            files.addresses(host).await
        }
    }

    #[tokio::test]
    async fn a_static_program_asks_the_name_servers_and_sees_both_families() {
        let server = Server::start(&[("registry.example.", V4), ("registry.example.", V6)]).await;
        let machine = Machine::new(server.port, "", PATIENT);
        let mut found = machine.addresses("registry.example").await.unwrap();
        found.sort();
        assert_eq!(found, [V4, V6]);
        // Without a file the server is on this machine.
        std::fs::remove_file(machine.folder.path().join("resolv.conf")).unwrap();
        assert_eq!(
            machine.addresses("registry.example.").await.unwrap().len(),
            2
        );
        let unknown = machine.addresses("nowhere.example.").await.unwrap_err();
        assert!(!unknown.to_string().is_empty());
    }

    #[tokio::test]
    async fn the_hosts_file_counts_alone_and_changes_of_both_files_count_immediately() {
        let known = [("registry.example.", V6), ("registry.example.", V4)];
        let server = Server::start(&known).await;
        let pinned = "127.0.0.9 localhost\n10.1.2.3 Registry.Example alias # ours\n";
        let resolv_conf = format!("search corp.example\noptions ndots:5\n{PATIENT}");
        let mut machine = Machine::new(server.port, pinned, &resolv_conf);
        let pinned: IpAddr = "10.1.2.3".parse().unwrap();
        for host in ["registry.example", "alias", "REGISTRY.example"] {
            assert_eq!(machine.addresses(host).await.unwrap(), [pinned], "{host}");
        }
        assert_eq!(server.asked(), [""; 0]);

        machine.write("hosts", "");
        assert_eq!(
            machine.addresses("registry.example").await.unwrap().len(),
            2
        );
        let expected = ["registry.example.corp.example.", "registry.example."];
        let asked = server.asked();
        assert!(
            expected.iter().all(|name| asked.iter().any(|a| a == name)),
            "{asked:?}"
        );

        let server = Server::start(&known).await;
        machine.ask(&server);
        machine.write("resolv.conf", PATIENT);
        assert_eq!(
            machine.addresses("registry.example").await.unwrap().len(),
            2
        );
        assert_eq!(server.asked(), ["registry.example."]);
    }

    #[tokio::test]
    async fn search_domains_and_ndots_are_those_of_resolv_conf() {
        let known = [("cache.two.example.", V4), ("a.b.example.", V4)];
        let server = Server::start(&known).await;
        let resolv_conf = format!("search one.example two.example\noptions ndots:2\n{PATIENT}");
        let mut machine = Machine::new(server.port, "", &resolv_conf);
        assert_eq!(machine.addresses("cache").await.unwrap(), [V4]);
        assert!(!server.asked().contains(&"cache.".to_owned()));
        // Two dots: first as it is.
        let server = Server::start(&known).await;
        machine.ask(&server);
        assert_eq!(machine.addresses("a.b.example").await.unwrap(), [V4]);
        assert_eq!(server.asked(), ["a.b.example."]);
    }

    #[test]
    fn addresses_without_a_route_come_last_and_text_addresses_need_no_look_up() {
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        let nowhere: IpAddr = "fe80::1".parse().unwrap();
        assert!(!has_route(nowhere), "a link-local address without a link");
        assert_eq!(ordered(vec![nowhere, loopback]), [loopback, nowhere]);
        let listen = listen_addresses("[::1]:80").unwrap();
        assert_eq!(listen, ["[::1]:80".parse().unwrap()]);
        assert!(listen_addresses("nothing").is_err());
    }
}
