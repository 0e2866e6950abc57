//! What the program prints without serving.

use std::process::Output;

use crate::daemon::{DaemonDirs, output, package, program};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn stdout(out: &Output) -> String {
    assert!(out.status.success(), "{}", text(&out.stderr));
    text(&out.stdout)
}

#[test]
fn the_version_is_one_line_that_tools_can_parse() {
    for flag in ["--version", "-version", "-v"] {
        let line = stdout(&output(program().arg(flag)));
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[..2], ["soci-snapshotter-grpc", "version"]);
        let numbers = words[2]
            .strip_prefix('v')
            .unwrap()
            .split('.')
            .map(str::parse::<u32>);
        assert_eq!(numbers.filter(Result::is_ok).count(), 3, "{line}");
        assert_eq!(words.len(), 4, "a revision and nothing else: {line}");
    }
}

#[test]
fn config_default_prints_what_v0_15_prints() {
    let golden = std::fs::read_to_string(
        package().join("../../tests/golden/v0.15-root/config-default.toml"),
    );
    let printed = stdout(&output(program().args(["config", "default"])));
    assert!(printed.starts_with(&golden.unwrap()), "{printed}");
}

#[test]
fn config_dump_prints_what_the_file_amounts_to() {
    let place = DaemonDirs::new();
    place.write_config("MOUNT_TIMEOUT_SEC = 7\nnonsense = 1\n");
    let out = output(
        program()
            .args(["config", "dump", "--config"])
            .arg(place.path("config.toml")),
    );
    assert!(stdout(&out).contains("\nmount_timeout_sec = 7\n"));
    assert!(
        text(&out.stderr).contains("unknown key nonsense is ignored"),
        "{}",
        text(&out.stderr)
    );
}

#[test]
fn the_environment_stands_in_for_flags() {
    let place = DaemonDirs::new();
    place.write_config("mount_timeout_sec = 7\n");
    let out = output(
        program()
            .args(["config", "dump"])
            .env("SOCI_SNAPSHOTTER_CONFIG", place.path("config.toml")),
    );
    assert!(stdout(&out).contains("\nmount_timeout_sec = 7\n"));
    let out = output(
        program()
            .arg("--version")
            .env("SOCI_SNAPSHOTTER_LOG_LEVEL", "loud"),
    );
    assert_eq!(out.status.code(), Some(1));
}

/// Needs mandoc.
#[test]
fn the_manual_has_every_flag_and_every_key_with_its_default_and_reads_without_warnings() {
    let place = DaemonDirs::new();
    assert_eq!(
        stdout(&output(program().arg("man").arg(place.path("man")))),
        ""
    );
    let files = ["soci-snapshotter-grpc.8", "soci-snapshotter-grpc.toml.5"];
    let paths = files.map(|file| place.path("man").join(file));
    let mandoc = |arguments: &[&str], path: &std::path::Path| {
        stdout(&output(
            std::process::Command::new("mandoc")
                .args(arguments)
                .arg(path),
        ))
    };
    for path in &paths {
        assert_eq!(mandoc(&["-T", "lint", "-W", "warning"], path), "");
    }
    // Bold is a letter, a backspace and the letter again.
    let read = |path: &std::path::Path| {
        let mut plain = String::new();
        for letter in mandoc(&["-T", "ascii", "-O", "width=1000"], path).chars() {
            if letter == '\u{8}' {
                plain.pop();
            } else {
                plain.push(letter);
            }
        }
        plain
    };
    let page = read(&paths[0]);
    let help = stdout(&output(program().arg("--help")));
    let flags = help
        .split_whitespace()
        .filter(|word| word.starts_with("--"));
    for text in flags.chain([
        "config dump",
        "upgrade",
        "SIGNALS",
        "SIGHUP",
        "EXIT STATUS",
        "ENVIRONMENT",
        "SOCI_SNAPSHOTTER_ROOT",
        "FILES",
        "EXAMPLES",
        "soci-snapshotter-grpc.toml(5)",
    ]) {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(!page.contains("server-process"), "{page}");

    let page = read(&paths[1]);
    let defaults = stdout(&output(program().args(["config", "default"])));
    let keys: Vec<_> = defaults
        .lines()
        .filter(|line| line.contains(" = "))
        .collect();
    assert!(keys.len() > 50, "{defaults}");
    for key in keys {
        // Both kinds of quotes mean the same.
        let key = key.trim().replace('\'', "\"");
        assert!(page.contains(&format!(" {key}\n")), "{key}: {page}");
    }
}

#[test]
fn a_wrong_command_line_is_refused_with_status_1() {
    for args in [
        &["--adress", "x"][..],
        &["config"],
        &["config", "show"],
        &["serve"],
        &["--log-level", "loud"],
    ] {
        let out = output(program().args(args));
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        assert!(!out.stderr.is_empty() && out.stdout.is_empty(), "{args:?}");
    }
    let help = stdout(&output(program().arg("--help")));
    for flag in [
        "--address",
        "--config",
        "--log-level",
        "--root",
        "--version",
        "SOCI_SNAPSHOTTER_ROOT",
    ] {
        assert!(help.contains(flag), "{flag}: {help}");
    }
}
