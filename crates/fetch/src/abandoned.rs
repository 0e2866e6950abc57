//! Looks from time to time for readers that are gone, whose requests need not continue.

use std::sync::Weak;
use std::time::Duration;

use crate::driver::Driver;

/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(500);

/// Drops abandoned requests until the fetcher is dropped.
pub(crate) async fn run(driver: Weak<Driver>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(driver) = driver.upgrade() else {
            return;
        };
        if driver.context.schedule.lock().has_waiters() {
            driver.apply(|schedule, now| schedule.abandon(|read| read.is_wanted(), now));
        }
    }
}
