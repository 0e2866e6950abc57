//! Programs that tests write.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Writes an executable file, which can be run immediately.
///
/// Another process writes it: a program that some thread of this one starts in the meantime has all files of this
/// one open until it runs, and the kernel runs no file that is open for writing (`ETXTBSY`).
///
/// # Errors
/// When the file cannot be written.
pub fn write_program(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("write the program {}", path.display());
    let mut shell = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .with_context(failed)?;
    let written = match shell.stdin.take() {
        Some(mut input) => input.write_all(text.as_bytes()),
        None => Ok(()),
    };
    let status = shell.wait().with_context(failed)?;
    written.with_context(failed)?;
    ensure!(status.success(), "{}: {status}", failed());
    Ok(())
}

/// Copies a program, which can be run immediately, as [`write_program`] writes one.
///
/// # Errors
/// When it cannot be copied.
pub fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg(from).arg(to).status();
    let copied = copied.with_context(|| format!("copy {}", from.display()))?;
    ensure!(copied.success(), "copy {}: {copied}", from.display());
    Ok(())
}
