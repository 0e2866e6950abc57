//! The parts of the manual pages that the help texts do not have.

use clap::Command;
use soci_manual::{CommandPage, ManualPage, Section, command_page};

/// Their chapter.
const CHAPTER: &str = "1";

const DESCRIPTION: &str = "\
A container image is usually pulled whole before anything runs, although a start reads only a small part of it. An
image with a SOCI index can be mounted instead: the index holds a zTOC of each large layer, a table of its files and
of the points that decompression can start from, so that soci-snapshotter-grpc(8) fetches what is read, when it is read.

Making one: `soci convert` makes another image that has an index (version 2); `soci create` and `soci push` put an index
(version 1) beside an image that stays as it is.

Using it: `soci pull` pulls an image lazily into containerd; `soci check` says beforehand what will be lazy on this
machine, `soci status` what is, and why something is not.

Looking into images at a registry, without pulling them: `soci ls`, `soci cat`, `soci mount`.

Options may also be given with one dash and with a value for switches, as programs written in Go take them.";

const EXIT_STATUS: [(&str, &str); 2] = [
    ("0", "Success."),
    (
        "1",
        "It did not; one line on standard error, `soci: REASON`, says why. Also for a wrong command line, when the time of
`--timeout` is up, and after SIGINT or SIGTERM, which leave nothing half done.",
    ),
];

const DOCKER_CONFIG: (&str, &str) = (
    "DOCKER_CONFIG",
    "The folder of Docker's `config.json`, instead of `~/.docker`.",
);
const PROXY: (&str, &str) = (
    "HTTPS_PROXY, HTTP_PROXY, NO_PROXY",
    "The proxy for requests to registries; none is used for this machine itself.",
);

const CONTAINERD_SOCKET: (&str, &str) = (
    "/run/containerd/containerd.sock",
    "containerd's API, unless `--address` says otherwise.",
);
const DAEMON_SOCKET: (&str, &str) = (
    "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock",
    "The snapshotter daemon.",
);
const ROOT: (&str, &str) = (
    "/var/lib/soci-snapshotter-grpc/",
    "The root folder of the snapshotter (`--root`); `artifacts.redb` in it is the database of what was indexed here,
`content/` the content store of `--content-store soci`.",
);
const DOCKER_FILE: (&str, &str) = (
    "~/.docker/config.json",
    "Credentials for registries, as `docker login` writes them, and the programs that have some.",
);
const HOSTS_FILE: (&str, &str) = (
    "DIR/REGISTRY/hosts.toml",
    "With `--hosts-dir DIR`: where a registry is, its mirrors, certificates and headers, as containerd has it.",
);

/// The pages of the program and of every command.
pub(crate) fn of(program: Command) -> Vec<ManualPage> {
    let mut program = program.disable_help_subcommand(true);
    program.build();
    let mut pages = vec![command_page(
        &program,
        &CommandPage {
            chapter: CHAPTER,
            version: env!("CARGO_PKG_VERSION"),
            description: DESCRIPTION,
            sections: &[Section::List("EXIT STATUS", &EXIT_STATUS)],
            environment: &[DOCKER_CONFIG, PROXY],
            files: &[
                CONTAINERD_SOCKET,
                DAEMON_SOCKET,
                ROOT,
                DOCKER_FILE,
                HOSTS_FILE,
            ],
            see_also: &[
                "soci-snapshotter-grpc(8)",
                "soci-snapshotter-grpc.toml(5)",
                "ctr(8)",
            ],
            ..CommandPage::default()
        },
    )];
    below(&program, &mut pages);
    pages
}

fn below(above: &Command, pages: &mut Vec<ManualPage>) {
    for command in above.get_subcommands() {
        let talks_to_registries = command
            .get_arguments()
            .any(|argument| argument.get_id() == "hosts_dir");
        let (environment, files) = if talks_to_registries {
            (&[DOCKER_CONFIG, PROXY][..], &[DOCKER_FILE, HOSTS_FILE][..])
        } else {
            (&[][..], &[][..])
        };
        let name = above.get_display_name().unwrap_or_else(|| above.get_name());
        let above = format!("{name}({CHAPTER})");
        pages.push(command_page(
            command,
            &CommandPage {
                chapter: CHAPTER,
                version: env!("CARGO_PKG_VERSION"),
                sections: &[Section::List("EXIT STATUS", &EXIT_STATUS)],
                environment,
                files,
                see_also: &[&above, "soci-snapshotter-grpc(8)"],
                ..CommandPage::default()
            },
        ));
        below(command, pages);
    }
}
