//! Manual pages, made from what is said anyway: the definition of a command line, and the comments of
//! a configuration file. What neither says (files, signals, exit status) a program adds.

#![forbid(unsafe_code)]

mod configuration;
mod page;
mod text;

use std::io;
use std::path::{Path, PathBuf};

pub use configuration::{ConfigurationPage, configuration_page};
pub use page::{CommandPage, Commands, Section, command_page};

/// When the sources were last changed: `YYYY-MM-DD`, or empty.
const DATE: &str = env!("MANUAL_DATE");
/// What the pages are part of, in their head.
const MANUAL: &str = "SOCI snapshotter";

/// A page as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManualPage {
    /// Its file: `soci-pull.1`.
    pub file: String,
    /// Its text, for groff and mandoc (`man(7)`).
    pub text: String,
}

/// A page could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// Writes pages into a folder, which is made if it is not there.
///
/// # Errors
/// The folder or a file cannot be written.
pub fn write(pages: &[ManualPage], folder: &Path) -> Result<(), WriteError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| WriteError { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    for page in pages {
        let path = folder.join(&page.file);
        std::fs::write(&path, &page.text).map_err(failed(&path))?;
    }
    Ok(())
}
