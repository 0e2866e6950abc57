//! `soci-snapshotter-grpc man`: the pages of the daemon and of its configuration file.

use std::path::Path;

use clap::CommandFactory as _;
use soci_manual::{
    CommandPage, Commands, ConfigurationPage, ManualPage, Section, command_page, configuration_page,
};

use crate::args::Args;

const DESCRIPTION: &str = "\
It serves containerd's Snapshots API on a unix socket, as a proxy plugin. Each layer of an image with a SOCI index is
mounted through FUSE: file content is fetched from the registry with HTTP range requests when it is read, checked
against its digest, and stored on disk; the rest is fetched in the background. Layers without a zTOC, and small ones,
are fetched and unpacked; images without an index are left to the client. The log has the outcome for each layer, and
the reason.

Where it is installed as a service, systemd starts it: see `soci-snapshotter.service` and `soci-snapshotter.socket`.
Otherwise the socket that `--address` names is created, including its folder.

The daemon is three processes. The one that is started supervises a server, which does all of the work; a holder,
`soci-holder`, keeps the FUSE connections of lazy layers open while there is no server. Containers on lazy layers
therefore do not fail when the daemon is restarted, killed or upgraded: their reads wait.";

const SIGNALS: [(&str, &str); 3] = [
    (
        "SIGTERM",
        "Ends the daemon and leaves the mounts: calls that need it wait for the next start, for `abandon_after_sec` of the table
`[holder]` at most, or until `soci abort-mounts`.",
    ),
    (
        "SIGINT",
        "Ends the daemon for good: every lazy layer is unmounted, and containers on them get errors.",
    ),
    (
        "SIGHUP",
        "Hands over to the installed program, as `upgrade` does; the log has the outcome.",
    ),
];

const EXIT_STATUS: [(&str, &str); 2] = [
    ("0", "A signal ended the daemon, or the command succeeded."),
    (
        "1",
        "The daemon or the command failed; the last line on standard error has the reason. Also for an invalid command line.",
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
        "Set by systemd: the socket for `--address fd://`, and the socket for notifications.",
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
        "The socket that the daemon listens on.",
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
        "Credentials for registries, of the user that the daemon runs as; read for each use.",
    ),
    (
        "/dev/fuse",
        "The device for mounting lazy layers; without it the daemon does not start.",
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
All keys of soci-snapshotter v0.15 are read. This page contains all comments of the installed file:",
            see_also: &["soci-snapshotter-grpc(8)", "soci(1)"],
        },
    )
}
