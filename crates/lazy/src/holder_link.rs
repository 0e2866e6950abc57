//! Leaves our FUSE connections with the holder, so that they outlive this process.

use std::sync::Arc;

use soci_fuse::{ConnectionFacts, Pool};
use soci_holder::Keeper;
use soci_layerfs::MountedLayer;

use crate::inherited::{ConnectionNote, holder_key};

/// The holder, or `None` if no process outlives this one.
pub(crate) struct HolderLink(Option<Arc<Keeper>>);

impl HolderLink {
    /// Connects the pool to the holder: a connection that ends is released.
    pub(crate) fn new(keeper: Option<Arc<Keeper>>, pool: &Pool) -> Self {
        if let Some(keeper) = keeper.clone() {
            // The holder has the last descriptors of a connection that was given up: without them
            // its readers get errors.
            pool.on_end(move |facts| keeper.remove(&holder_key(facts)));
        }
        Self(keeper)
    }

    /// Stores a new connection with the holder.
    pub(crate) async fn keep(&self, mounted: &MountedLayer, note: &ConnectionNote) {
        let Some(keeper) = &self.0 else { return };
        match mounted.connection().duplicate() {
            Ok(Some(device)) => keeper.put(&holder_key(&note.facts), &note.to_json(), device),
            // The connection has ended.
            Ok(None) => {}
            Err(error) => tracing::error!(
                mountpoint = %mounted.mountpoint().display(),
                error = %error,
                "cannot duplicate a FUSE descriptor: the mount will not survive the daemon"
            ),
        }
        // If it ended before the holder had it, the pool's callback came too early.
        if !mounted.is_served() {
            self.release(mounted.facts());
        }
        keeper.confirm().await;
    }

    /// Requests that the holder closes its descriptor of a connection.
    pub(crate) fn release(&self, facts: &ConnectionFacts) {
        if let Some(keeper) = &self.0 {
            keeper.remove(&holder_key(facts));
        }
    }
}
