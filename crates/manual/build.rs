//! Passes the date of the pages: that of the sources, so that building them twice gives the same bytes.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let date = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => output("date", &["-u", "-d", &format!("@{seconds}"), "+%F"]),
        Err(_) => {
            let log = [
                "rev-parse",
                "--path-format=absolute",
                "--git-path",
                "logs/HEAD",
            ];
            if let Some(head) = output("git", &log) {
                println!("cargo::rerun-if-changed={head}");
            }
            output("git", &["show", "-s", "--format=%cs", "HEAD"])
        }
    };
    println!("cargo::rustc-env=MANUAL_DATE={}", date.unwrap_or_default());
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
