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
        let put = || -> std::io::Result<()> {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let mut memory = File::from(memfd_create("soci-credentials", flags)?);
            memory.write_all(secrets)?;
            let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
            fcntl_add_seals(&memory, seals)?;
            self.0.put(holder_keys::CREDENTIALS, "", memory.into());
            Ok(())
        };
        if let Err(error) = put() {
            tracing::warn!(error = %error, "cannot store the credentials of the kubelet's pulls; they do not survive this process");
        }
    }
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
