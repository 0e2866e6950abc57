//! Waiting until an image is stored: the daemon fills it as long as this program repeats its request.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use soci_errors::printable;
use soci_status::api::Image;
use tokio::time::Instant;

use crate::output;
use crate::progress::FillBar;

/// Time between two requests. The daemon forgets one after ten seconds.
const PERIOD: Duration = Duration::from_millis(500);
/// Longest time for which a daemon that is being replaced is waited for.
const AWAY: Duration = Duration::from_secs(30);

/// Exit code: filling has stopped, and does not resume by itself.
pub(crate) const STOPPED: u8 = 2;
/// Exit code: the time is up, as of timeout(1).
pub(crate) const LATE: u8 = 124;

/// An error with an exit code of its own.
#[derive(Debug)]
pub(crate) struct ExitError {
    /// The exit code.
    pub(crate) code: u8,
    text: String,
}

impl fmt::Display for ExitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ExitError {}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal<'a> {
    /// The socket of the daemon.
    pub(crate) socket: &'a Path,
    /// A reference, or the digest of a manifest.
    pub(crate) image: &'a str,
    pub(crate) namespace: &'a str,
    /// The part that must be stored, 1 to 100.
    pub(crate) percent: u8,
    pub(crate) timeout: Option<Duration>,
    /// Show no progress.
    pub(crate) quiet: bool,
}

/// How far an image is, for programs.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Filled {
    pub(crate) image: String,
    pub(crate) manifest: String,
    /// Everything is stored.
    pub(crate) complete: bool,
    /// Compressed bytes of the lazy layers, and how many of them are stored.
    pub(crate) lazy_bytes: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) percent: f64,
    /// Time that was waited.
    pub(crate) seconds: f64,
}

impl Filled {
    /// The line for people.
    pub(crate) fn line(&self) -> String {
        let stored = indicatif::BinaryBytes(self.stored_bytes);
        match self.complete {
            true => format!(
                "{}: complete, {stored} stored; it needs its registry no more",
                self.image
            ),
            false => format!(
                "{}: {:.0} % stored, {stored} of {}",
                self.image,
                self.percent,
                indicatif::BinaryBytes(self.lazy_bytes)
            ),
        }
    }
}

/// Requests that the daemon fills an image, and waits until enough of it is stored.
///
/// # Errors
/// The daemon does not know the image or does not answer; with an [`ExitError`], filling has stopped
/// or the time is up.
pub(crate) async fn wait(goal: Goal<'_>) -> Result<Filled> {
    let bar = FillBar::new(goal.quiet);
    let (begin, mut answered) = (Instant::now(), Instant::now());
    let mut last: Option<Image> = None;
    loop {
        match soci_status::fill(goal.socket, goal.image, goal.namespace).await {
            Ok(Some(answer)) => {
                answered = Instant::now();
                let image = sum(answer.images);
                bar.show(&image);
                if is_reached(&image, goal.percent) {
                    return Ok(filled(&image, begin.elapsed()));
                }
                if image.fill == "no-room" {
                    return Err(stopped(&image).into());
                }
                last = Some(image);
            }
            Ok(None) => bail!(
                "no layer of {} is on this node: pull it first, and see `soci status` for the names \
                 of images",
                goal.image
            ),
            // A daemon that is being replaced answers soon.
            Err(_) if last.is_some() && answered.elapsed() < AWAY => {}
            Err(error) => return Err(error.into()),
        }
        let left = goal
            .timeout
            .map(|limit| limit.saturating_sub(begin.elapsed()));
        if left == Some(Duration::ZERO) {
            return Err(late(&goal, last.as_ref()).into());
        }
        tokio::time::sleep(left.unwrap_or(PERIOD).min(PERIOD)).await;
    }
}

/// The images of one name as one: a tag that moved names several.
fn sum(images: Vec<Image>) -> Image {
    let mut images = images.into_iter();
    let mut all = images.next().unwrap_or_default();
    for image in images {
        all.complete &= image.complete;
        all.lazy_bytes = all.lazy_bytes.saturating_add(image.lazy_bytes);
        all.stored_bytes = all.stored_bytes.saturating_add(image.stored_bytes);
        all.bytes_per_second = all.bytes_per_second.saturating_add(image.bytes_per_second);
        if !image.complete {
            all.fill = image.fill;
        }
        all.error = all.error.or(image.error);
    }
    all
}

fn is_reached(image: &Image, percent: u8) -> bool {
    let enough =
        u128::from(image.stored_bytes) * 100 >= u128::from(image.lazy_bytes) * u128::from(percent);
    image.complete || (percent < 100 && enough && image.lazy_bytes > 0)
}

fn filled(image: &Image, took: Duration) -> Filled {
    Filled {
        image: image.reference.clone(),
        manifest: image.manifest_digest.clone(),
        complete: image.complete,
        lazy_bytes: image.lazy_bytes,
        stored_bytes: image.stored_bytes,
        percent: image.stored_percent(),
        seconds: took.as_secs_f64(),
    }
}

fn stopped(image: &Image) -> ExitError {
    if let Some(error) = &image.error {
        return ExitError {
            code: STOPPED,
            text: printable(&format!("{} is not complete: {error}", image.reference)).into_owned(),
        };
    }
    ExitError {
        code: STOPPED,
        text: format!(
            "{} is not filled any further: {:.0} % are stored, and the disk has no more room above the \
             reserve ([layer_store] min_free_percent), or the layer store is nearly as large as it may \
             be (max_size_bytes); remove images, or change the limits",
            image.reference,
            image.stored_percent()
        ),
    }
}

fn late(goal: &Goal<'_>, last: Option<&Image>) -> ExitError {
    let limit = goal.timeout.unwrap_or_default();
    let so_far = last.map_or_else(String::new, |image| {
        format!(
            ": {:.0} % are stored, filling is {:?}",
            image.stored_percent(),
            image.fill
        )
    });
    ExitError {
        code: LATE,
        text: format!(
            "{} is not stored within --timeout {limit:?}{so_far}",
            goal.image
        ),
    }
}

/// Prints the result.
pub(crate) fn print(filled: &Filled, json: bool, quiet: bool) -> Result<()> {
    match (json, quiet) {
        (true, _) => output::json(filled)?,
        (false, true) => {}
        (false, false) => output::line(filled.line()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(stored: u64, lazy: u64, complete: bool) -> Image {
        Image {
            reference: "registry.example/app:1".to_owned(),
            stored_bytes: stored,
            lazy_bytes: lazy,
            complete,
            fill: if complete { "complete" } else { "filling" }.to_owned(),
            ..Image::default()
        }
    }

    #[test]
    fn the_goal_is_reached_with_the_percentage_and_the_whole_only_when_complete() {
        assert!(is_reached(&image(50, 100, false), 50));
        assert!(!is_reached(&image(49, 100, false), 50));
        // A layer of it may be missing, or still be unpacked by the client.
        assert!(!is_reached(&image(100, 100, false), 100));
        assert!(is_reached(&image(100, 100, true), 100));
        // An image without a lazy layer.
        assert!(is_reached(&image(0, 0, true), 30));
        assert!(!is_reached(&image(0, 0, false), 30));
    }

    #[test]
    fn images_of_one_name_are_complete_when_all_are() {
        let both = sum(vec![image(10, 10, true), image(5, 10, false)]);
        assert!(!both.complete);
        assert_eq!((both.stored_bytes, both.lazy_bytes), (15, 20));
        assert_eq!(both.fill, "filling");
        assert!(sum(vec![image(1, 1, true), image(2, 2, true)]).complete);
    }

    #[test]
    fn what_stops_the_wait_says_how_far_it_is_and_what_to_do() {
        let text = stopped(&image(30, 100, false)).to_string();
        assert!(
            text.contains("30 %") && text.contains("min_free_percent"),
            "{text}"
        );
        let mut refused = image(100, 100, false);
        refused.error = Some("cannot store its SOCI index: no space to write /c".to_owned());
        let text = stopped(&sum(vec![refused])).to_string();
        assert!(text.contains("is not complete: cannot store"), "{text}");
        let goal = Goal {
            socket: Path::new("/s"),
            image: "app",
            namespace: "default",
            percent: 100,
            timeout: Some(Duration::from_secs(5)),
            quiet: true,
        };
        let error = late(&goal, Some(&image(30, 100, false)));
        assert_eq!(error.code, LATE);
        assert!(error.to_string().contains("--timeout 5s: 30 %"), "{error}");
    }
}
