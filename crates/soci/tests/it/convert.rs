//! `soci convert --standalone` as a program: its lines, its streams, its signals.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(case)
        .join("image")
}

fn convert(destination: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_soci"));
    command
        .args([
            "convert",
            "--standalone",
            "--min-layer-size",
            "0",
            "--span-size",
            "131072",
        ])
        .args(["--format", "oci-dir"])
        .arg(golden("kinds"))
        .arg(destination);
    command
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_result_is_the_same_in_every_time_zone() {
    let dir = tempfile::tempdir().unwrap();
    let mut results = Vec::new();
    for (name, zone) in [
        ("a", "UTC"),
        ("b", "Asia/Kathmandu"),
        ("c", "America/St_Johns"),
        ("d", "UTC+11"),
    ] {
        let out = dir.path().join(name);
        let output = convert(&out).env("TZ", zone).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        results.push(std::fs::read(out.join("index.json")).unwrap());
    }
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn the_lines_are_those_that_other_programs_know_in_the_order_of_the_layers() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let output = convert(&out).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    for (line, layer) in lines.iter().zip([
        "8b49287f08fe6d79dea9c8d5531898e7768b819dd30ce0a973e9c98a8b9df69f",
        "fd756bae0da2eaf8850ea26ba60e8e68e23fa32902b3798b3fa65c546dfda452",
    ]) {
        assert!(
            line.starts_with(&format!("layer sha256:{layer} -> ztoc sha256:")),
            "{line}"
        );
    }
    assert!(lines[2].starts_with(&format!("{} sha256:", out.display())));
    assert!(
        !text.contains('\u{1b}'),
        "no terminal codes outside of a terminal"
    );

    let quiet = convert(&dir.path().join("quiet"))
        .arg("--quiet")
        .output()
        .unwrap();
    assert!(quiet.status.success() && quiet.stdout.is_empty() && quiet.stderr.is_empty());
}

#[test]
fn prefetch_files_come_from_flags_and_from_a_json_file() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.json");
    std::fs::write(&list, r#"["/nowhere/at/all", " "]"#).unwrap();
    let output = convert(&dir.path().join("out"))
        .arg("--prefetch-files-json")
        .arg(&list)
        .args(["--prefetch-file", "/also/nowhere"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let warnings = String::from_utf8(output.stderr).unwrap();
    for path in ["/nowhere/at/all", "/also/nowhere"] {
        assert!(
            warnings.contains(&format!("prefetch file {path} not found")),
            "{warnings}"
        );
    }
    assert_eq!(warnings.lines().count(), 2, "{warnings}");
}

#[test]
fn an_interrupt_leaves_nothing_and_exits_with_1() {
    let dir = tempfile::tempdir().unwrap();
    // A registry that accepts a connection and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let source = format!("docker://{}/a:b", listener.local_addr().unwrap());
    for signal in ["INT", "TERM"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_soci"))
            .args(["convert", "--standalone", "--format", "oci-dir", &source])
            .arg(dir.path().join("out"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (connection, _) = listener.accept().unwrap();
        let mut request = String::new();
        BufReader::new(&connection).read_line(&mut request).unwrap();
        assert!(request.contains("HTTP/1.1"), "{request}");
        assert_eq!(
            names(dir.path()).len(),
            1,
            "the destination is being written, hidden"
        );
        let kill = Command::new("kill")
            .args(["-s", signal, &child.id().to_string()])
            .status()
            .unwrap();
        assert!(kill.success());
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }
}

#[test]
fn a_time_limit_ends_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let source = format!("docker://{}/a:b", listener.local_addr().unwrap());
    let output = Command::new(env!("CARGO_BIN_EXE_soci"))
        .args(["--timeout", "200ms", "convert", "--standalone", &source])
        .arg(dir.path().join("out.tar"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("not done within --timeout 200ms"), "{text}");
    assert_eq!(names(dir.path()), Vec::<String>::new());
}
