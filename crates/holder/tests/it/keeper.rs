//! A server's handle on its holder: no call waits for a holder that does not respond. Needs root.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    bind, listen, recv, send, socket_with,
};
use soci_holder::{HeldFd, HolderClient, Keeper, KeeperConfig};

/// A holder that welcomes its server, and then responds to nothing.
struct MuteHolder {
    listener: OwnedFd,
}

impl MuteHolder {
    fn at(root: &Path) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let address = SocketAddrUnix::new(root.join("holder.sock")).unwrap();
        bind(&listener, &address).unwrap();
        listen(&listener, 1).unwrap();
        Self { listener }
    }

    /// Welcomes a server; returns the connection and the first request after that.
    fn welcome(self) -> OwnedFd {
        let connection = accept_with(&self.listener, SocketFlags::CLOEXEC).unwrap();
        request(&connection);
        let welcome = r#"{"answer":"welcome","protocol":1,"pid":1,"server":2,"abandon_after":600}"#;
        respond(&connection, welcome);
        assert_eq!(request(&connection), r#"{"ask":"list"}"#);
        respond(&connection, r#"{"answer":"end"}"#);
        connection
    }
}

fn request(connection: &OwnedFd) -> String {
    let mut bytes = [0; 4096];
    let (length, _) = recv(connection, &mut bytes[..], RecvFlags::empty()).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

fn respond(connection: &OwnedFd, response: &str) {
    send(connection, response.as_bytes(), SendFlags::empty()).unwrap();
}

fn open(root: &Path) -> (Arc<Keeper>, Vec<HeldFd>) {
    Keeper::open(KeeperConfig {
        root: root.to_owned(),
        argument: "no such command",
        abandon_after: Duration::from_secs(600),
        backup: None,
    })
    .unwrap()
}

/// A real holder, in a thread of this process.
fn start_holder(root: &Path) -> std::thread::JoinHandle<()> {
    let path = root.to_owned();
    std::thread::spawn(move || soci_holder::run(&path).unwrap())
}

fn keys(root: &Path) -> Vec<String> {
    let holder = HolderClient::look(root).unwrap().unwrap();
    let held = holder.list().unwrap();
    held.into_iter().map(|held| held.key).collect()
}

/// One thread runs everything: a call that blocked it would keep the reader, too, from ending. Tokio's clock
/// stands still until all tasks wait, so that no real time decides.
#[tokio::test(start_paused = true)]
async fn prepares_and_reads_do_not_wait_for_a_holder_that_does_not_respond() {
    let root = tempfile::tempdir().unwrap();
    let mute = MuteHolder::at(root.path());
    let welcoming = std::thread::spawn(move || mute.welcome());
    let (keeper, held) = open(root.path());
    assert!(held.is_empty());
    let connection = welcoming.join().unwrap();

    // A Prepare stores its connection; the thread that talks to the holder now waits for its response.
    let (pipe, _writer) = std::io::pipe().unwrap();
    keeper.put("fuse/1", "first", pipe.into());
    assert!(request(&connection).contains(r#""key":"fuse/1""#));
    let reader = tokio::spawn(async { tokio::task::yield_now().await });
    assert!(!keeper.confirm().await, "the holder has not responded");
    reader.await.unwrap();
    // Neither does a second Prepare wait, nor a worker that sees a connection end, nor `soci status`.
    let (pipe, _writer) = std::io::pipe().unwrap();
    keeper.put("fuse/2", "second", pipe.into());
    keeper.remove("fuse/1");
    assert_eq!(keeper.holder().unwrap().pid, 1);
    assert!(!keeper.confirm().await, "the holder has not responded");

    // It dies, and another one is found: requests made in between are carried out there.
    std::fs::remove_file(root.path().join("holder.sock")).unwrap();
    let next = start_holder(root.path());
    while HolderClient::look(root.path()).unwrap().is_none() {
        std::thread::yield_now();
    }
    drop(connection);
    while keeper.holder().is_none_or(|holder| holder.pid == 1) {
        std::thread::yield_now();
    }
    while !keeper.confirm().await {}
    assert_eq!(keys(root.path()), ["fuse/2"]);
    keeper.quit().await;
    next.join().unwrap();
}

#[tokio::test]
async fn a_confirmed_descriptor_is_with_the_holder_and_the_next_server_gets_it() {
    let root = tempfile::tempdir().unwrap();
    let holder = start_holder(root.path());
    while HolderClient::look(root.path()).unwrap().is_none() {
        std::thread::yield_now();
    }
    let (keeper, _) = open(root.path());
    let (pipe, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"x").unwrap();
    keeper.put("fuse/1", "note", pipe.into());
    // It waits for a second; a holder on a busy machine may need longer.
    while !keeper.confirm().await {}
    assert_eq!(keys(root.path()), ["fuse/1"]);
    keeper.leave().await;
    assert!(keeper.holder().is_none() && !keeper.confirm().await);

    let (keeper, held) = open(root.path());
    let [held] = <[HeldFd; 1]>::try_from(held).unwrap();
    assert_eq!((held.key.as_str(), held.note.as_str()), ("fuse/1", "note"));
    let mut byte = [0];
    std::fs::File::from(held.descriptor)
        .read_exact(&mut byte)
        .unwrap();
    keeper.quit().await;
    holder.join().unwrap();
}
