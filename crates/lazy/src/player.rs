//! Plays the order of a start on layers that open one after another.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use soci_fetch::{LazyLayer, Playback, PlayedLayer, ProfileSpan, ReadLog, StartId};
use soci_store::LayerKey;
use soci_ztoc::{Span, SpanId, SpanTable};
use tokio::time::Instant;

use crate::hinted_start::uncompressed_size;
use crate::profile_config::ProfileConfig;
use crate::start_order::StartOrder;

/// A layer of a start.
#[derive(Clone)]
pub(crate) struct StartedLayer {
    pub(crate) key: LayerKey,
    pub(crate) data: Weak<LazyLayer>,
    pub(crate) log: Arc<ReadLog>,
    pub(crate) spans: SpanTable,
}

/// An open layer that is played.
struct Played {
    start: StartId,
    data: Arc<LazyLayer>,
    log: Arc<ReadLog>,
}

impl Played {
    fn span(&self, span: u32) -> Option<Span> {
        self.data.stored().spans().get(SpanId(span))
    }
}

impl PlayedLayer for Played {
    fn size(&self, span: u32) -> Option<u64> {
        let span = self.span(span)?.compressed;
        Some(span.end.saturating_sub(span.start))
    }

    fn is_stored(&self, span: u32) -> bool {
        self.data.stored().has(SpanId(span))
    }

    fn length(&self, span: u32) -> u64 {
        uncompressed_size(&self.data, span)
    }

    fn room(&self) -> u64 {
        self.data.stored().room_for_start()
    }

    fn was_read(&self, span: u32) -> bool {
        self.log.was_read(span)
    }

    fn link_rate(&self) -> Option<u64> {
        self.data.link_rate()
    }

    fn fetch(&self, spans: &[u32]) {
        self.data.prefetch_each(spans, self.start);
    }
}

/// The playback of an order.
pub(crate) struct Player {
    start: StartId,
    playback: Playback,
    keys: Vec<LayerKey>,
    /// The layers that have no other readahead while it plays.
    playing: HashMap<LayerKey, Weak<LazyLayer>>,
    played: soci_fetch::Played,
}

impl Player {
    pub(crate) fn new(start: StartId, order: &StartOrder, config: &ProfileConfig) -> Self {
        let mut keys = Vec::new();
        let mut numbers = HashMap::new();
        let spans: Vec<_> = order
            .spans
            .iter()
            .map(|(key, span)| {
                let layer = *numbers.entry(*key).or_insert_with(|| {
                    keys.push(*key);
                    keys.len() - 1
                });
                ProfileSpan { layer, span: *span }
            })
            .collect();
        let playback = Playback::new(spans).with_least_link_rate(config.min_link_rate);
        Self {
            start,
            playback: match config.layers_at_once {
                Some(layers) => playback.with_layers_at_once(layers),
                None => playback,
            },
            keys,
            playing: HashMap::new(),
            played: soci_fetch::Played::default(),
        }
    }

    /// Fetches what may be fetched now. Returns how far it is.
    pub(crate) fn step(
        &mut self,
        layers: &[StartedLayer],
        first_read: Option<Instant>,
        now: Instant,
    ) -> soci_fetch::Played {
        let open = |key: &LayerKey| {
            let layer = layers.iter().find(|layer| layer.key == *key)?;
            let (data, log) = (layer.data.upgrade()?, layer.log.clone());
            let start = self.start;
            Some(Played { start, data, log })
        };
        let open: Vec<_> = self.keys.iter().map(open).collect();
        for (key, layer) in self.keys.iter().zip(&open) {
            if let Some(layer) = layer
                && !self.played.ended
                && !self.playing.contains_key(key)
            {
                layer.data.set_playing(true);
                self.playing.insert(*key, Arc::downgrade(&layer.data));
            }
        }
        self.played = self.playback.step(&open, first_read, now);
        if self.played.ended {
            self.release();
        }
        self.played
    }

    /// Compressed bytes that it has fetched.
    pub(crate) const fn bytes(&self) -> u64 {
        self.played.bytes
    }

    pub(crate) const fn has_ended(&self) -> bool {
        self.played.ended
    }

    /// Turns readahead of sequential readers on again.
    fn release(&mut self) {
        for (_, layer) in self.playing.drain() {
            if let Some(layer) = layer.upgrade() {
                layer.set_playing(false);
            }
        }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.release();
    }
}
