//! Filling layers in the background.
//!
//! After `silence_period` without a mount and without a read from the network, each `fetch_period`
//! starts one batch of the layer at the front of the queue, if the batch before has ended.

use std::sync::Weak;
use std::time::Duration;

use crate::driver::Driver;
use crate::priority::Priority;

/// Longest time for which an idle filler keeps waiting although its fetcher was dropped.
const IDLE: Duration = Duration::from_secs(60);

/// Fills layers until the fetcher is dropped or stopped.
pub(crate) async fn run(driver: Weak<Driver>) {
    let period = match driver.upgrade() {
        Some(driver) if !driver.context.config.background.disable => {
            driver.context.config.background.fetch_period
        }
        _ => return,
    };
    loop {
        tokio::time::sleep(period.max(Duration::from_millis(1))).await;
        let Some(driver) = driver.upgrade() else {
            return;
        };
        let Some(empty) = driver.background.is_empty() else {
            return;
        };
        if empty {
            let _ = tokio::time::timeout(IDLE, driver.background.changed()).await;
            continue;
        }
        let activity = &driver.context.activity;
        if !activity.is_quiet() || !activity.store_accepts() {
            continue;
        }
        // Starts what a reader's arrival had held up.
        driver.pump();
        if driver.context.schedule.lock().has_background() {
            continue;
        }
        if let Some((layer, spans)) = driver.background.next() {
            driver.want_all(&layer, spans, Priority::Background);
        }
    }
}
