//! Names that no file system can hold.

use crate::options::TreeError;

const NAME_MAX: usize = 255;

pub(crate) fn check_name(part: &[u8], entry: &[u8]) -> Result<(), TreeError> {
    if part.len() > NAME_MAX || part.contains(&0) {
        return Err(TreeError::BadName {
            name: printable(entry),
        });
    }
    Ok(())
}

pub(crate) fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
