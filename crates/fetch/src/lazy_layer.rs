//! A layer whose missing spans are fetched when they are read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use soci_oci::Digest;
use soci_store::{ReadOutcome, StoreError, StoredLayer};
use tokio::time::Instant;

use crate::driver::Driver;
use crate::page_cache_view::PageCacheView;
use crate::pending_read::PendingRead;
use crate::priority::Priority;
use crate::read_error::SpansLost;
use crate::schedule::WantResult;
use crate::served_layer::ServedLayer;
use crate::span_key::StartId;
use crate::{
    BackgroundCounts, Fill, FillState, LayerData, LayerStatus, Oversized, ReadDone, ReadError,
    ReadLog, StillWanted,
};

/// How often a read looks again for spans that leave the store while it waits: because they are
/// damaged, or reclaimed.
const ROUNDS: usize = 8;

/// A layer whose missing spans are fetched when they are read. Dropping it closes it.
pub struct LazyLayer {
    driver: Arc<Driver>,
    layer: Arc<ServedLayer>,
}

impl std::fmt::Debug for LazyLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LazyLayer")
            .field("status", &self.status())
            .finish()
    }
}

impl LazyLayer {
    pub(crate) const fn new(driver: Arc<Driver>, layer: Arc<ServedLayer>) -> Self {
        Self { driver, layer }
    }

    /// Adds the layer to the background queue: it is filled when no reader needs the network.
    /// `image`: digest of the manifest of an image that it belongs to.
    pub fn start_background(&self, image: Digest) {
        self.driver.context.activity.note_use();
        self.driver.background.add(self.layer.clone(), image);
    }

    /// Puts the layer before all others in filling for some time, also where filling is turned off and
    /// without waiting for readers to be quiet: a client waits for it. Readers still come first.
    pub fn request_fill(&self, time: Duration) {
        let until = Instant::now() + time;
        self.driver.background.request(&self.layer, until);
    }

    /// How filling proceeds.
    #[must_use]
    pub fn fill(&self) -> Fill {
        let progress = &self.layer.fill_progress;
        let complete = self.is_complete();
        Fill {
            state: match progress.state() {
                _ if complete => FillState::Complete,
                // It has just lost spans.
                FillState::Complete => FillState::Waiting,
                state => state,
            },
            bytes_per_second: if complete { 0 } else { progress.rate() },
        }
    }

    /// Fetches these spans at the priority of a recorded start-up profile.
    pub fn prefetch(&self, spans: Range<u32>) {
        let spans = spans.start..spans.end.min(self.layer.spans.len());
        self.want_ahead(spans, Priority::Profile);
    }

    /// As [`LazyLayer::prefetch`], for single spans, which a start of an image needs: the layers of one
    /// start share its turns. The last start that fetched from a layer counts.
    pub fn prefetch_each(&self, spans: &[u32], start: StartId) {
        let most = self.layer.spans.len();
        let spans = spans.iter().copied().filter(|span| *span < most);
        // It is a part of filling the layer.
        self.layer.fill_progress.begin();
        let context = &self.driver.context;
        context.schedule.lock().join_start(self.layer.id, start);
        self.want_ahead(spans, Priority::Profile);
    }

    /// As [`LazyLayer::prefetch_each`], at the priority of what lies ahead of a sequential reader.
    pub fn fetch_ahead(&self, spans: &[u32]) {
        let most = self.layer.spans.len();
        let spans = spans.iter().copied().filter(|span| *span < most);
        self.want_ahead(spans, Priority::Readahead);
    }

    /// Rate of the link to the layer's origin in bytes per second, when it was last filled.
    #[must_use]
    pub fn link_rate(&self) -> Option<u64> {
        let schedule = self.driver.context.schedule.lock();
        schedule.link_rate(self.layer.id)
    }

    /// Begins a log of the spans that readers request, stored or not.
    #[must_use]
    pub fn log_reads(&self) -> Arc<ReadLog> {
        self.layer.read_logs.begin()
    }

    /// Notes that a start-up profile is played, or has ended: while one is, and after that until a
    /// reader needs what it did not fetch, sequential readers get no readahead of their own.
    pub fn set_playing(&self, playing: bool) {
        let profiles = &self.layer.profiles;
        let change = |count: usize| match playing {
            true => count.checked_add(1),
            false => count.checked_sub(1),
        };
        let _ = profiles.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        if playing {
            self.layer.profile_suffices.store(true, Ordering::Relaxed);
        }
    }

    /// Stops all work for the layer. Waiting readers get [`ReadError::Closed`]; stored spans can
    /// still be read with [`LayerData::try_read`].
    pub fn close(&self) {
        self.driver.close(&self.layer);
    }

    /// The layer in the store.
    #[must_use]
    pub fn stored(&self) -> &Arc<StoredLayer> {
        &self.layer.stored
    }

    /// Returns the largest span, as [`Oversized::find`]. A layer that is stored needs no memory for
    /// spans.
    #[must_use]
    pub fn oversized(&self) -> Option<Oversized> {
        let budget = self.driver.context.config.memory_budget;
        let oversized = Oversized::find(&self.layer.spans, budget);
        oversized.filter(|_| !self.layer.stored.is_complete())
    }

    /// Number of spans that background filling handled so far.
    #[must_use]
    pub fn background(&self) -> BackgroundCounts {
        self.layer.fill_progress.counts()
    }

    /// Returns the time that background filling took, once, after its end.
    #[must_use]
    pub fn take_fill_time(&self) -> Option<Duration> {
        self.layer.fill_progress.take_time()
    }

    /// Time since the last read of any layer of the fetcher, stored or not.
    #[must_use]
    pub fn readers_quiet_for(&self) -> Duration {
        self.driver.context.activity.unread_for()
    }

    fn range(&self, offset: u64, len: u64) -> Result<Range<u64>, ReadError> {
        let size = self.layer.spans.uncompressed_size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(offset..end),
            _ => Err(ReadError::OutOfRange { offset, len, size }),
        }
    }

    fn is_complete(&self) -> bool {
        self.layer.stored.fetched_bytes() >= self.layer.stored.size()
    }

    /// Records the position of a reader, and fetches ahead of it if it is sequential.
    fn note_read(&self, read: Range<u64>) {
        if self.layer.profile_suffices.load(Ordering::Relaxed) {
            return;
        }
        let (layer, most) = (&self.layer, self.driver.context.config.max_readahead);
        if most == 0 {
            return;
        }
        let before = layer.walks.lock().note(&read, &layer.spans, most);
        let after = layer.streams.lock().note(read, &layer.spans, most);
        for ahead in [before, after].into_iter().flatten() {
            self.want_ahead(ahead, Priority::Readahead);
        }
    }

    fn log_read(&self, range: &Range<u64>) {
        let layer = &self.layer;
        let spans = || layer.spans.covering(range.clone());
        if !self.is_complete() {
            spans().for_each(|span| layer.reads.note(span));
        } else if let Some(span) = spans().next() {
            layer.reads.note(span);
        }
        layer.read_logs.note(range, spans);
    }

    /// Wants spans that no reader waits for, unless the store cannot take them.
    fn want_ahead(&self, spans: impl IntoIterator<Item = u32>, priority: Priority) {
        if self.driver.context.activity.store_accepts() && !self.layer.is_closed() {
            self.driver.want_all(&self.layer, spans, priority);
        }
    }

    /// Reads a range and fetches what is missing.
    fn fetch(&self, range: Range<u64>, wanted: Option<StillWanted>, done: ReadDone) {
        let context = &self.driver.context;
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let read = Arc::new(PendingRead::new(range.start, len, wanted, done));
        let mut needed: Vec<u32> = self.layer.spans.covering(range).collect();
        for _ in 0..ROUNDS {
            let stored = match self.want_for(&read, needed) {
                Ok(stored) => stored,
                Err(error) => return read.fail(error),
            };
            context.activity.note_use();
            context.raise_memory_priority(self.layer.id);
            needed = stored
                .into_iter()
                .filter(|span| !self.fill_from_store(*span, &read))
                .collect();
            if needed.is_empty() {
                self.driver.pump();
                return read.arrived();
            }
        }
        let blob = self.layer.source.describe();
        read.fail(ReadError::store(SpansLost { blob }));
    }

    /// Registers a read as waiter for those spans that are missing; returns those that are stored.
    fn want_for(&self, read: &Arc<PendingRead>, spans: Vec<u32>) -> Result<Vec<u32>, ReadError> {
        let context = &self.driver.context;
        let now = Instant::now();
        let mut schedule = context.schedule.lock();
        let (mut stored, mut failed) = (Vec::new(), None);
        for span in spans {
            let key = self.layer.key(span);
            if context.unsaved.fill(key, read) {
                continue;
            }
            let is_stored = self.layer.is_stored(span);
            match schedule.want(key, Priority::Demand, Some(read.clone()), is_stored, now) {
                WantResult::Stored => stored.push(span),
                WantResult::Pending => read.expect(),
                WantResult::Failed(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(stored), Err)
    }

    fn fill_from_store(&self, span: u32, read: &PendingRead) -> bool {
        let Some(range) = self.layer.uncompressed(span) else {
            return false;
        };
        let filled = read.fill_with(range, |at, part| self.layer.stored.read_at(at, part));
        matches!(filled, Some(Ok(ReadOutcome::Filled)))
    }
}

impl LayerData for LazyLayer {
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        let range = self.range(offset, buf.len() as u64)?;
        let filled = self.read_stored(offset, buf)?;
        self.log_read(&range);
        // A read that is not filled comes again through `read`.
        if filled && !range.is_empty() && !self.is_complete() {
            self.note_read(range);
        }
        Ok(filled)
    }

    fn read(&self, offset: u64, len: usize, done: ReadDone) {
        self.note_fetch(self.read_or_fetch(offset, len, None, done));
    }

    fn read_while(&self, offset: u64, len: usize, wanted: StillWanted, done: ReadDone) {
        self.note_fetch(self.read_or_fetch(offset, len, Some(wanted), done));
    }

    fn status(&self) -> LayerStatus {
        LayerStatus {
            digest: self.layer.stored.digest(),
            size: self.layer.stored.size(),
            fetched_size: self.layer.stored.fetched_bytes(),
            error: self.layer.error(),
        }
    }
}

impl LazyLayer {
    /// The same layer for a process that reads into the page cache ahead of containers: its reads are
    /// logged for theirs, and begin no readahead.
    #[must_use]
    pub fn for_page_cache(self: Arc<Self>) -> Arc<dyn LayerData> {
        Arc::new(PageCacheView(self))
    }

    /// As [`LayerData::try_read`], for [`LazyLayer::for_page_cache`].
    pub(crate) fn read_ahead_of_container(
        &self,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<bool, ReadError> {
        let range = self.range(offset, buf.len() as u64)?;
        let filled = self.read_stored(offset, buf)?;
        let spans = || self.layer.spans.covering(range.clone());
        self.layer.read_logs.note(&range, spans);
        Ok(filled)
    }

    /// Fills `buf`, a part of the layer, from stored spans. Returns `false` if some are missing.
    fn read_stored(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        self.driver.context.activity.note_read();
        match self.layer.stored.read_at(offset, buf) {
            Ok(ReadOutcome::Filled) => Ok(true),
            Ok(ReadOutcome::Missing(_)) => Ok(false),
            Err(error @ StoreError::OutOfRange { .. }) => Err(ReadError::store(error)),
            Err(error) => {
                // A fetch may still succeed.
                if let Some(held_back) = self.driver.context.log_limit.pass() {
                    tracing::warn!(layer = %self.layer.stored.digest(), error = %error, held_back, "cannot read layer store");
                }
                Ok(false)
            }
        }
    }

    /// As [`LayerData::read`]. Returns what is read, if it lies in the layer and is not empty.
    pub(crate) fn read_or_fetch(
        &self,
        offset: u64,
        len: usize,
        wanted: Option<StillWanted>,
        done: ReadDone,
    ) -> Option<Range<u64>> {
        match self.range(offset, len as u64) {
            Ok(range) if range.is_empty() => done(Ok(Bytes::new())),
            Ok(range) => {
                self.fetch(range.clone(), wanted, done);
                return Some(range);
            }
            Err(error) => done(Err(error)),
        }
        None
    }

    fn note_fetch(&self, read: Option<Range<u64>>) {
        if let Some(read) = read
            && !self.is_complete()
        {
            if self.layer.profiles.load(Ordering::Relaxed) == 0 {
                // It had to wait: the profile has not fetched it.
                self.layer.profile_suffices.store(false, Ordering::Relaxed);
            }
            self.note_read(read);
        }
    }
}

impl Drop for LazyLayer {
    fn drop(&mut self) {
        self.close();
    }
}
