//! Filling layers in the background, with what readers leave of link, processors and disk.
//!
//! It begins when a start is over, and rests as soon as a reader needs the network: no request is
//! made then, and those in flight end with the span that they bring. As long as readers are quiet
//! there is always a window of spans to fetch, in requests of 8 MB, up to eight at a time.
//!
//! With `fetch_period_msec` each period starts one batch, if the batch before has ended, as v0.15
//! does.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::background_queue::{Outlook, OutstandingWork};
use crate::driver::Driver;
use crate::priority::Priority;
use crate::span_key::{LayerId, SpanKey};

/// Longest time for which an idle filler keeps waiting although its fetcher was dropped.
const IDLE: Duration = Duration::from_secs(60);
/// Time between two looks where the configuration sets none.
const PERIOD: Duration = Duration::from_millis(50);
/// Compressed bytes that wait for a request or are being requested.
const WINDOW: u64 = 64 << 20;
/// Time between two reviews of all layers.
const REVIEW: Duration = Duration::from_millis(200);

/// Fills layers until the fetcher is dropped or stopped.
pub(crate) async fn run(driver: Weak<Driver>) {
    let period = match driver.upgrade() {
        Some(driver) => driver.context.config.background.fetch_period,
        None => return,
    };
    let mut reviewed: Option<Instant> = None;
    loop {
        tokio::time::sleep(period.unwrap_or(PERIOD).max(Duration::from_millis(1))).await;
        let Some(driver) = driver.upgrade() else {
            return;
        };
        let Some(empty) = driver.background.is_empty() else {
            return;
        };
        let activity = &driver.context.activity;
        if empty {
            activity.note_idle();
            activity.set_requested(false);
            let _ = tokio::time::timeout(IDLE, driver.background.changed()).await;
            activity.note_idle();
            continue;
        }
        let now = Instant::now();
        activity.set_requested(driver.background.is_requested(now));
        let may_fetch = activity.background_requests() > 0;
        let store_accepts = activity.store_accepts();
        if reviewed.is_none_or(|at| now >= at + REVIEW) {
            reviewed = Some(now);
            review(&driver, now, may_fetch, store_accepts);
        }
        if !may_fetch || !store_accepts {
            continue;
        }
        // Starts what a reader's arrival had held up.
        driver.pump();
        fetch(&driver, now, period);
    }
}

/// What the schedule of a driver fetches.
struct Fetched<'a>(&'a Driver, Instant);

impl OutstandingWork for Fetched<'_> {
    fn is_throttled(&self, layer: LayerId) -> bool {
        self.0.context.schedule.lock().is_throttled(layer, self.1)
    }

    fn is_outstanding(&self, layer: LayerId) -> bool {
        self.0.context.schedule.lock().has_background_of(layer)
    }

    fn is_wanted(&self, layer: LayerId, span: u32) -> bool {
        let schedule = self.0.context.schedule.lock();
        schedule.priority(SpanKey { layer, span }).is_some()
    }
}

fn review(driver: &Driver, now: Instant, may_fetch: bool, store_accepts: bool) {
    let fetched = Fetched(driver, now);
    driver.background.review(&Outlook {
        now,
        may_fetch,
        store_accepts,
        work: &fetched,
        is_failing: &|layer| driver.context.schedule.lock().is_failing(layer),
    });
}

/// Requests the next spans.
fn fetch(driver: &Arc<Driver>, now: Instant, period: Option<Duration>) {
    loop {
        let enough = {
            let schedule = driver.context.schedule.lock();
            match period {
                Some(_) => schedule.has_background(),
                None => schedule.background_bytes() >= WINDOW / 2,
            }
        };
        if enough {
            return;
        }
        let Some((layer, spans)) = driver.background.next(now, &Fetched(driver, now)) else {
            return;
        };
        driver.want_all(&layer, spans, Priority::Background);
        if period.is_some() {
            return;
        }
    }
}
