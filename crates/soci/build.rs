//! Passes the revision of the sources to the program.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=SOCI_REVISION");
    let given = std::env::var("SOCI_REVISION")
        .ok()
        .filter(|text| !text.is_empty());
    if given.is_none()
        && let Some(head) = git(&[
            "rev-parse",
            "--path-format=absolute",
            "--git-path",
            "logs/HEAD",
        ])
    {
        println!("cargo::rerun-if-changed={head}");
    }
    let revision = given
        .or_else(|| git(&["rev-parse", "HEAD"]))
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=SOCI_REVISION={revision}");
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
