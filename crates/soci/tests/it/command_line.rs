//! What the command line says: help, version, errors.

use std::process::{Command, Output};

const ZERO: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

fn soci(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_soci"))
        .args(arguments)
        .env_clear()
        .output()
        .unwrap()
}

fn stdout(arguments: &[&str]) -> String {
    let output = soci(arguments);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one form of a failure: exit code 1, nothing on stdout, `soci: <reason>` on stderr.
fn failure(arguments: &[&str]) -> String {
    let output = soci(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("soci: "), "{text}");
    text
}

#[test]
fn the_version_has_the_form_that_nerdctl_reads() {
    for flag in ["--version", "-v"] {
        let line = stdout(&[flag]);
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            words[..3],
            ["soci", "version", concat!("v", env!("CARGO_PKG_VERSION"))]
        );
        assert_eq!(words.len(), 4, "{line}");
        let revision = words[3];
        assert!(
            revision == "unknown" || revision.chars().all(|c| c.is_ascii_hexdigit()),
            "{revision}"
        );
    }
}

#[test]
fn help_of_every_command() {
    insta::assert_snapshot!("help", stdout(&["--help"]));
    insta::assert_snapshot!("help_convert", stdout(&["convert", "--help"]));
    for command in [
        "create",
        "push",
        "pull",
        "status",
        "wait",
        "gc",
        "abort-mounts",
        "index",
        "index-builder",
        "ztoc",
        "prefetch",
        "rebuild-db",
        "check",
        "ls",
        "cat",
        "mount",
        "node",
        "completion",
        "man",
    ] {
        insta::assert_snapshot!(format!("help_{command}"), stdout(&[command, "--help"]));
    }
    for (group, commands) in [
        ("index", &["list", "info", "remove"][..]),
        ("ztoc", &["list", "info", "get-file"]),
        ("prefetch", &["list", "info"]),
        ("node", &["install", "uninstall", "status"]),
        ("index-builder", &["status", "list", "retry"]),
    ] {
        // A group without one of its commands tells which there are.
        assert_eq!(stdout(&[group]), stdout(&[group, "-h"]));
        for command in commands {
            let help = stdout(&[group, command, "--help"]);
            insta::assert_snapshot!(format!("help_{group}_{command}"), help);
        }
    }
    assert!(stdout(&[]).contains("Usage: soci"));
}

#[test]
fn wrong_usage_is_reported_in_one_form() {
    let cases: [&[&str]; 17] = [
        &["create"],
        &["push"],
        &["push", "--existing-index", "maybe", "a"],
        &["index", "info"],
        &["index", "info", "sha256:short"],
        &["ztoc", "get-file", "x"],
        &["--content-store", "elsewhere", "index", "list"],
        &["cat", "Not A Reference:/x"],
        &["frobnicate"],
        &["convert"],
        &["convert", "a", "b"],
        &["convert", "--standalone", "--span-size", "many", "a", "b"],
        &["convert", "--standalone", "--format", "zip", "a", "b"],
        &["convert", "--standalone", "--platform", "linux", "a", "b"],
        &["pull", "Not A Reference"],
        &[
            "--address",
            "/none",
            "pull",
            "--user",
            "no-colon",
            "localhost:1/a:b",
        ],
        &["--timeout", "soon", "pull", "localhost:1/a:b"],
    ];
    let told: Vec<String> = cases
        .iter()
        .map(|arguments| format!("$ soci {}\n{}", arguments.join(" "), failure(arguments)))
        .collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn failures_say_what_where_and_what_to_do() {
    let cases: [&[&str]; 15] = [
        &["status", "--snapshotter-address", "/proc/nonexistent.sock"],
        &[
            "create",
            "--address",
            "/proc/nonexistent.sock",
            "--root",
            "/tmp/none",
            "a/b:c",
        ],
        &[
            "convert",
            "--address",
            "/proc/nonexistent.sock",
            "--root",
            "/tmp/none",
            "a/b:c",
            "a/b:d",
        ],
        &["push", "--address", "/proc/nonexistent.sock", "a/b:c"],
        &["rebuild-db", "--address", "/proc/nonexistent.sock"],
        &["index", "info", "--root", "/tmp/none", ZERO],
        &[
            "index",
            "list",
            "--root",
            "/tmp/none",
            "--ref",
            "a/b:c",
            "-a",
            "/proc/nonexistent.sock",
        ],
        &["check", "--config", "/proc/self/mounts", "localhost:1/a:b"],
        &["convert", "--standalone", "/proc/nonexistent", "/tmp/out"],
        &["convert", "--standalone", "/proc/self/mounts", "/tmp/out"],
        &[
            "convert",
            "--standalone",
            "docker://localhost:1/a:b",
            "docker://localhost:1/a",
        ],
        &["convert", "--standalone", "", "/tmp/out"],
        &["convert", "--standalone", "/proc/self", "/tmp/out"],
        &[
            "pull",
            "--address",
            "/proc/nonexistent.sock",
            "localhost:1/a:b",
        ],
        &[
            "convert",
            "--standalone",
            "--prefetch-files-json",
            "/proc/self/mounts",
            "a",
            "b",
        ],
    ];
    let told: Vec<String> = cases
        .iter()
        .map(|arguments| format!("$ soci {}\n{}", arguments.join(" "), failure(arguments)))
        .collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn a_password_is_never_repeated() {
    // Not of the form USER:PASSWORD, which is noticed when it is used.
    let refused = failure(&["ls", "--user", ":hunter2", "localhost:1/a:b"]);
    assert!(refused.contains("USER:PASSWORD"), "{refused}");
    assert!(!refused.contains("hunter2"), "{refused}");
    for arguments in [
        &["pull", "--user", ":hunter2", "localhost:1/a:b"][..],
        &["pull", "--user", "me:hunter2", "Not A Reference"],
        &[
            "--address",
            "/proc/nonexistent.sock",
            "pull",
            "--user",
            "me:hunter2",
            "localhost:1/a:b",
        ],
    ] {
        let text = failure(arguments);
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn global_flags_stand_before_or_after_the_command() {
    for arguments in [
        &[
            "--address",
            "/proc/nonexistent.sock",
            "--namespace",
            "n",
            "pull",
            "localhost:1/a:b",
        ][..],
        &[
            "pull",
            "localhost:1/a:b",
            "-a",
            "/proc/nonexistent.sock",
            "-n",
            "n",
        ],
    ] {
        assert!(failure(arguments).contains("/proc/nonexistent.sock"));
    }
}

#[test]
fn tables_and_lists_of_nothing_have_their_headers() {
    let none = ["--root", "/tmp/none", "--address", "/proc/nonexistent.sock"];
    let cases: [&[&str]; 7] = [
        &["index", "list"],
        &["index", "list", "--json"],
        &["index", "list", "--quiet"],
        &["ztoc", "list"],
        &["ztoc", "list", "--json"],
        &["prefetch", "list"],
        &["prefetch", "list", "--json"],
    ];
    let told: Vec<String> = cases
        .iter()
        .map(|arguments| {
            let text = stdout(&[&none[..], arguments].concat()).replace(' ', "·");
            format!("$ soci {}\n{text}", arguments.join(" "))
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&["completion", shell]);
        for command in [
            "convert", "create", "push", "pull", "index", "ztoc", "check", "mount",
        ] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    failure(&["completion", "tcsh"]);
}

/// Needs mandoc.
#[test]
fn every_command_has_a_manual_page_that_reads_without_warnings() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    let folder = folder.to_str().unwrap();
    assert_eq!(stdout(&["man", folder]), "");
    let pages: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let lint = Command::new("mandoc")
        .args(["-T", "lint", "-W", "warning"])
        .args(&pages)
        .output()
        .unwrap();
    assert!(
        lint.status.success(),
        "{}",
        String::from_utf8_lossy(&lint.stdout)
    );

    // As it is read: without roff, a line for a paragraph.
    let read = |name: &str| {
        let shown = Command::new("mandoc")
            .args(["-T", "ascii", "-O", "width=1000"])
            .arg(format!("{folder}/{name}.1"))
            .output()
            .unwrap();
        // Bold is a letter, a backspace and the letter again.
        let text = String::from_utf8(shown.stdout).unwrap();
        let mut plain = String::new();
        for letter in text.chars() {
            if letter == '\u{8}' {
                plain.pop();
            } else {
                plain.push(letter);
            }
        }
        plain
    };
    for name in help_names(&[]) {
        let page = read(&name);
        for heading in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "EXIT STATUS",
            "SEE ALSO",
        ] {
            assert!(
                page.contains(&format!("\n{heading}\n")),
                "{name}: {heading}: {page}"
            );
        }
        assert!(!page.contains('`'), "{name}: {page}");
    }
    assert_eq!(pages.len(), help_names(&[]).len());
    let page = read("soci-pull");
    for text in [
        "soci pull [OPTIONS] <REF>",
        "--snapshotter <NAME> [default: soci]",
        "Described in soci(1): --address, --namespace,",
        "CONTAINERD_SNAPSHOTTER",
        "~/.docker/config.json",
        "  ctr run --rm --snapshotter soci registry.example/app:1-soci test sh\n",
        "    type = \"snapshot\"\n",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(read("soci-index").contains("soci-index-list(1)"));
    let error = failure(&["man", "/dev/null/man1"]);
    assert!(error.contains("/dev/null/man1"), "{error}");
}

/// The names of the pages that there should be, by what the help says.
fn help_names(command: &[&str]) -> Vec<String> {
    let mut names = vec![[&["soci"], command].concat().join("-")];
    let help = stdout(&[command, &["-h"]].concat());
    let commands = help.split_once("Commands:\n").map_or("", |(_, rest)| rest);
    let words = commands.lines().take_while(|line| !line.is_empty());
    for name in words.filter_map(|line| line.split_whitespace().next()) {
        if name != "help" {
            names.extend(help_names(&[command, &[name]].concat()));
        }
    }
    names
}
