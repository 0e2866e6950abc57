//! The work on one layer, shared by the jobs of all images that have it at the same chain ID.

use std::sync::Arc;

use parking_lot::Mutex;
use soci_unpack::LayerProgress;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use crate::error::EagerError;
use crate::image::PlannedLayer;
use crate::puller::{ImagePull, PulledLayer};
use crate::works::Works;

/// The work on one layer. Dropping it ends the work and removes what it has made.
pub(crate) struct LayerWork {
    pub(crate) progress: Arc<LayerProgress>,
    state: watch::Receiver<State>,
    _cancel: DropGuard,
}

/// How far the work is.
#[derive(Clone)]
enum State {
    Running,
    /// Complete, until an image has taken it.
    Ready(Arc<Mutex<Option<PulledLayer>>>),
    Failed(EagerError),
}

impl LayerWork {
    /// Starts the work on a layer.
    pub(crate) fn start(
        works: &Arc<Works>,
        layer: PlannedLayer,
        image: Arc<dyn ImagePull>,
    ) -> Arc<Self> {
        let (sender, state) = watch::channel(State::Running);
        let (cancel, progress) = (CancellationToken::new(), Arc::<LayerProgress>::default());
        let counted = works.begun(&progress);
        let token = cancel.clone();
        let of_task = Arc::clone(&progress);
        let work = async move {
            let pulled = image.pull(&layer, &of_task, &token).await;
            drop(image);
            match &pulled {
                Ok(pulled) => counted.succeeded(pulled.unpacked_for),
                Err(_) => drop(counted),
            }
            sender.send_replace(match pulled {
                Ok(pulled) => State::Ready(Arc::new(Mutex::new(Some(pulled)))),
                Err(error) => State::Failed(error),
            });
        };
        works.tasks.spawn(work.in_current_span());
        Arc::new(Self {
            progress,
            state,
            _cancel: cancel.drop_guard(),
        })
    }

    /// Returns a wait for the end of the work, which does not keep it going.
    pub(crate) fn ended(&self) -> impl Future<Output = Result<(), EagerError>> + Send + use<> {
        let mut state = self.state.clone();
        async move {
            let ended = state.wait_for(|state| !matches!(state, State::Running));
            match &*ended.await.map_err(|_| EagerError::Interrupted)? {
                State::Failed(error) => Err(error.clone()),
                _ => Ok(()),
            }
        }
    }

    /// Whether the layer is complete and was not taken.
    pub(crate) fn is_ready(&self) -> bool {
        match &*self.state.borrow() {
            State::Ready(layer) => layer.lock().is_some(),
            _ => false,
        }
    }

    /// Whether the layer was complete and an image has taken it.
    pub(crate) fn is_taken(&self) -> bool {
        match &*self.state.borrow() {
            State::Ready(layer) => layer.lock().is_none(),
            _ => false,
        }
    }

    /// Whether the work is under way or its layer is still to be taken.
    pub(crate) fn is_of_use(&self) -> bool {
        match &*self.state.borrow() {
            State::Running => true,
            State::Ready(layer) => layer.lock().is_some(),
            State::Failed(_) => false,
        }
    }

    /// Takes the layer, unless another image has.
    pub(crate) fn take(&self) -> Option<PulledLayer> {
        match &*self.state.borrow() {
            State::Ready(layer) => layer.lock().take(),
            _ => None,
        }
    }
}
