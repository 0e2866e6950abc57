//! The kubelet's credentials across servers: in memory that the holder keeps, and nowhere else. Without
//! them every image that was pulled with credentials could be read no more after a restart.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use soci_holder::{HeldFd, Keeper};
use soci_keychain::Vault;

/// The memory's name with the holder.
pub(crate) const HOLDER_KEY: &str = "cri-credentials";

/// Far more than all that is remembered takes, in bytes.
const LARGEST: u64 = 64 << 20;

/// Memory with the holder.
struct HeldMemory(Arc<Keeper>);

impl Vault for HeldMemory {
    fn put(&self, secrets: &[u8]) {
        let put = || -> std::io::Result<()> {
            let mut memory = File::from(memfd_create("soci-credentials", MemfdFlags::CLOEXEC)?);
            memory.write_all(secrets)?;
            self.0.put(HOLDER_KEY, "", memory.into());
            Ok(())
        };
        if let Err(error) = put() {
            tracing::warn!(error = %error, "credentials of the kubelet's pulls do not survive this process");
        }
    }
}

/// The vault with the holder.
pub(crate) fn with(keeper: &Arc<Keeper>) -> Arc<dyn Vault> {
    Arc::new(HeldMemory(keeper.clone()))
}

/// What an earlier server put into it.
pub(crate) fn secrets(held: HeldFd) -> Option<Vec<u8>> {
    let mut memory = File::from(held.descriptor);
    memory.rewind().ok()?;
    let mut secrets = Vec::new();
    memory.take(LARGEST).read_to_end(&mut secrets).ok()?;
    Some(secrets)
}
