//! `soci-snapshotter-grpc man`: the pages of the daemon and of its configuration file.

use std::path::Path;

use clap::CommandFactory as _;
use soci_manual::{
    CommandPage, Commands, ConfigurationPage, ManualPage, Section, command_page, configuration_page,
};

use crate::args::Args;

const DESCRIPTION: &str = "\
It serves containerd's Snapshots API on a unix socket, as a proxy plugin. Each layer of an image with a SOCI index is
mounted through FUSE: what is read is fetched from the registry with HTTP range requests, checked against its digest,
and kept on disk; the rest is filled in the background. Layers without a zTOC, and small ones, are fetched and
unpacked; images without an index are left to the client. The log says for each layer what became of it, and why.

Where it is installed as a service, systemd starts it: see `soci-snapshotter.service` and `soci-snapshotter.socket`.
What `--address` names otherwise is made, folder included.

The daemon is three processes. The one that is started supervises a server, which does all of the work; a holder,
`soci-holder`, keeps the FUSE connections of lazy layers open while no server is there. So containers on lazy layers do
not fail when the daemon is restarted, killed or upgraded: what they read meanwhile waits.";

const SIGNALS: [(&str, &str); 3] = [
    (
        "SIGTERM",
        "Ends the daemon and leaves the mounts: calls that need it wait for the next start, for as long as `abandon_after_sec` of
the table `[holder]` says, or until `soci abort-mounts`.",
    ),
    (
        "SIGINT",
        "Ends the daemon for good: every lazy layer is unmounted, and containers on them get errors.",
    ),
    (
        "SIGHUP",
        "Hands over to the program that is installed now, as `upgrade` does; the log says what came of it.",
    ),
];

const EXIT_STATUS: [(&str, &str); 2] = [
    (
        "0",
        "A signal ended the daemon, or the command did what it was asked for.",
    ),
    (
        "1",
        "It could not start, go on or do that; the last line on standard error says why. Also for a wrong command line.",
    ),
];

const ENVIRONMENT: [(&str, &str); 5] = [
    (
        "DOCKER_CONFIG",
        "The folder of Docker's `config.json` with credentials for registries, instead of `~/.docker`.",
    ),
    (
        "KUBECONFIG",
        "How to reach the cluster whose image pull secrets are used (`[kubeconfig_keychain]`).",
    ),
    (
        "HTTPS_PROXY, HTTP_PROXY, NO_PROXY",
        "The proxy for requests to registries; none is used for this machine itself.",
    ),
    (
        "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES, NOTIFY_SOCKET",
        "Set by systemd: the socket that `--address fd://` means, and where readiness is told.",
    ),
    (
        "SOCI_DESCRIPTOR_STORE",
        "Set in the shipped unit: systemd keeps copies of the mounts' descriptors too (`FileDescriptorStoreMax=`).",
    ),
];

const FILES: [(&str, &str); 7] = [
    (
        soci_config::DEFAULT_PATH,
        "The configuration, see soci-snapshotter-grpc.toml(5). Everything has a default.",
    ),
    (
        "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock",
        "Where it listens.",
    ),
    (
        "/var/lib/soci-snapshotter-grpc/",
        "The root folder: everything that has to outlive the daemon.",
    ),
    (
        "/var/lib/soci-snapshotter-grpc/snapshotter/",
        "`metadata.redb` and the snapshots' folders, on which lazy layers are mounted.",
    ),
    (
        "/var/lib/soci-snapshotter-grpc/soci/, content/",
        "Fetched parts of lazy layers, and SOCI indexes.",
    ),
    (
        "~/.docker/config.json",
        "Credentials for registries, of the user that the daemon runs as; read anew for each use.",
    ),
    (
        "/dev/fuse",
        "What lazy layers are mounted with; without it the daemon does not start.",
    ),
];

/// Writes both pages into a folder.
pub(crate) fn write(folder: &Path) -> anyhow::Result<()> {
    Ok(soci_manual::write(&[daemon(), configuration()], folder)?)
}

fn daemon() -> ManualPage {
    let mut command = Args::command();
    command.build();
    command_page(
        &command,
        &CommandPage {
            chapter: "8",
            version: env!("CARGO_PKG_VERSION"),
            description: DESCRIPTION,
            commands: Commands::Here,
            sections: &[
                Section::List("SIGNALS", &SIGNALS),
                Section::List("EXIT STATUS", &EXIT_STATUS),
            ],
            environment: &ENVIRONMENT,
            files: &FILES,
            see_also: &[
                "soci(1)",
                "soci-status(1)",
                "soci-snapshotter-grpc.toml(5)",
                "ctr(8)",
                "systemctl(1)",
            ],
        },
    )
}

fn configuration() -> ManualPage {
    configuration_page(
        soci_config::SHIPPED,
        &ConfigurationPage {
            name: "soci-snapshotter-grpc.toml",
            about: "configuration of the SOCI snapshotter daemon",
            source: concat!("soci-snapshotter-grpc ", env!("CARGO_PKG_VERSION")),
            path: soci_config::DEFAULT_PATH,
            description: "\
The daemon reads this file when it starts, and when it is upgraded or restarted; `--config` names another one. It is TOML.
All keys of soci-snapshotter v0.15 are read. Of the file that is installed this page has every comment:",
            see_also: &["soci-snapshotter-grpc(8)", "soci(1)"],
        },
    )
}
