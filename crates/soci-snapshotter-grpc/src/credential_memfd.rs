//! The kubelet's credentials across servers: in a memfd with the holder, and nowhere else. Without them no
//! image that was pulled with credentials could be read after a restart.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use soci_holder::{HeldFd, Keeper};
use soci_keychain::Vault;

use crate::holder_keys;

/// Largest content in bytes, far above what is ever stored.
const LARGEST: u64 = 64 << 20;

/// A memfd with the holder.
struct HeldMemory(Arc<Keeper>);

impl Vault for HeldMemory {
    fn put(&self, secrets: &[u8]) {
        match sealed(secrets) {
            Ok(memory) => self.0.put(holder_keys::CREDENTIALS, "", memory.into()),
            Err(error) => {
                tracing::warn!(error = %error, "cannot store the credentials of the kubelet's pulls; they do not survive this process");
            }
        }
    }
}

/// Memory with this content, which no process changes.
fn sealed(secrets: &[u8]) -> std::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut memory = File::from(memfd_create("soci-credentials", flags)?);
    memory.write_all(secrets)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&memory, seals)?;
    Ok(memory)
}

/// Returns the vault with the holder.
pub(crate) fn with_holder(keeper: &Arc<Keeper>) -> Arc<dyn Vault> {
    Arc::new(HeldMemory(keeper.clone()))
}

/// Reads what an earlier server stored.
pub(crate) fn read(held: HeldFd) -> Option<Vec<u8>> {
    let mut memory = File::from(held.descriptor);
    memory.rewind().ok()?;
    let mut secrets = Vec::new();
    memory.take(LARGEST).read_to_end(&mut secrets).ok()?;
    Some(secrets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_again_and_cannot_be_changed() {
        let memory = sealed(b"secret").unwrap();
        let mut copy = memory.try_clone().unwrap();
        assert!(copy.write_all(b"other").is_err());
        assert!(copy.set_len(0).is_err() && copy.set_len(4096).is_err());
        assert!(fcntl_add_seals(&copy, SealFlags::FUTURE_WRITE).is_err());
        let held = HeldFd {
            key: holder_keys::CREDENTIALS.to_owned(),
            note: String::new(),
            descriptor: memory.into(),
        };
        assert_eq!(read(held).unwrap(), b"secret");
    }
}
