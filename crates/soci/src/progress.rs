//! Progress bars on a terminal (stderr), a line per layer on stdout.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use soci_index::{LayerOutcome, Progress, Step};
use soci_oci::{Descriptor, Digest};

use crate::{interrupt, output};

/// A bar per layer, drawn only when stderr is a terminal.
#[derive(Debug)]
pub(crate) struct Bars {
    all: MultiProgress,
    shown: AtomicBool,
    bars: Mutex<BTreeMap<Digest, ProgressBar>>,
}

impl Bars {
    /// No bars yet; none ever when `quiet` or without a terminal.
    pub(crate) fn new(quiet: bool) -> Self {
        let shown = !quiet && output::stderr_is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            all: MultiProgress::with_draw_target(target),
            shown: AtomicBool::new(shown),
            bars: Mutex::default(),
        }
    }

    fn shown(&self) -> bool {
        self.shown.load(Ordering::Relaxed)
    }

    /// Starts a layer's bar, or starts it again for another step.
    pub(crate) fn begin(&self, layer: &Descriptor, step: &'static str) {
        let mut bars = self.bars.lock();
        if !self.shown() {
            return;
        }
        let bar = bars
            .entry(layer.digest)
            .or_insert_with(|| self.all.add(ProgressBar::new(layer.size)));
        if let Ok(style) = ProgressStyle::with_template(template(columns())) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(layer.digest.hex().chars().take(12).collect::<String>());
        bar.set_message(step);
        bar.reset();
        bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// So many more bytes of a layer are done.
    pub(crate) fn advance(&self, layer: Digest, bytes: u64) {
        if self.shown()
            && let Some(bar) = self.bars.lock().get(&layer)
        {
            bar.inc(bytes);
        }
    }

    /// Removes the bar of a layer that is done.
    pub(crate) fn end(&self, layer: Digest) {
        let bar = self.bars.lock().remove(&layer);
        if let Some(bar) = bar {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
    }

    /// Prints without tearing the bars.
    pub(crate) fn suspend(&self, print: impl FnOnce()) {
        if self.shown() {
            self.all.suspend(print);
        } else {
            print();
        }
    }

    /// Removes all bars from the screen; later updates draw nothing.
    pub(crate) fn finish(&self) {
        let layers: Vec<Digest> = {
            let bars = self.bars.lock();
            self.shown.store(false, Ordering::Relaxed);
            bars.keys().copied().collect()
        };
        layers.into_iter().for_each(|layer| self.end(layer));
    }
}

impl Drop for Bars {
    /// However the command ends, no bar stays on the screen.
    fn drop(&mut self) {
        self.finish();
    }
}

/// Columns of the terminal that the bars are drawn on.
fn columns() -> u16 {
    console::Term::stderr()
        .size_checked()
        .map_or(80, |(_, columns)| columns)
}

/// The form of a bar that fits into so many columns: a line that wraps is hard to read.
fn template(columns: u16) -> &'static str {
    match columns {
        0..26 => "{prefix} {percent:>3}%",
        26..80 => "{prefix} {msg:8} {percent:>3}%",
        _ => "{prefix} {msg:8} [{bar:18}] {bytes:>10}/{total_bytes:<10} {bytes_per_sec}",
    }
}

/// The bar of an image that is being filled.
#[derive(Debug)]
pub(crate) struct FillBar(ProgressBar);

impl FillBar {
    /// A bar; hidden when `quiet` or without a terminal.
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = ProgressBar::new(0);
        match !quiet && output::stderr_is_terminal() {
            true => bar.set_draw_target(ProgressDrawTarget::stderr()),
            false => bar.set_draw_target(ProgressDrawTarget::hidden()),
        }
        if let Ok(style) = ProgressStyle::with_template(fill_template(columns())) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }

    /// Shows how far the image is.
    pub(crate) fn show(&self, image: &soci_status::api::Image) {
        self.0.set_length(image.lazy_bytes);
        self.0.set_position(image.stored_bytes);
        let rate = indicatif::BinaryBytes(image.bytes_per_second);
        self.0.set_prefix(image.fill.clone());
        self.0.set_message(format!("{rate}/s"));
    }
}

impl Drop for FillBar {
    /// However the command ends, no bar stays on the screen.
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The form of the bar of an image that fits into so many columns. The rate is the daemon's.
fn fill_template(columns: u16) -> &'static str {
    match columns {
        0..32 => "{prefix:9} {percent:>3}%",
        32..80 => "{prefix:9} {percent:>3}% {msg}",
        _ => "{prefix:9} [{bar:20}] {percent:>3}% {bytes:>10}/{total_bytes:<10} {msg}",
    }
}

/// What `soci convert` and `soci create` show.
#[derive(Debug)]
pub(crate) struct ConvertProgress {
    bars: Bars,
    quiet: bool,
}

impl ConvertProgress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            bars: Bars::new(quiet),
            quiet,
        }
    }

    pub(crate) fn finish(&self) {
        self.bars.finish();
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            self.bars.suspend(|| output::line(line));
        }
    }
}

impl Progress for ConvertProgress {
    fn begin(&self, layer: &Descriptor, step: Step) {
        let step = match step {
            Step::Index => "indexing",
            Step::Copy => "copying",
        };
        self.bars.begin(layer, step);
    }

    fn advance(&self, layer: Digest, bytes: u64) {
        self.bars.advance(layer, bytes);
    }

    fn layer(&self, layer: &Descriptor, outcome: &LayerOutcome) {
        self.bars.end(layer.digest);
        self.say(&outcome.line(layer));
    }

    fn prefetch(&self, layer: Digest, artifact: Digest) {
        self.say(&format!(
            "Created prefetch artifact for layer {layer}: {artifact}"
        ));
    }

    fn committing(&self) {
        interrupt::committing();
    }

    fn warn(&self, message: &str) {
        self.bars.suspend(|| output::warning(message));
    }
}

/// Takes the bars off the screen, also when the work is dropped in its middle.
pub(crate) struct ClearAtEnd(pub(crate) std::sync::Arc<ConvertProgress>);

impl Drop for ClearAtEnd {
    fn drop(&mut self) {
        self.0.finish();
    }
}

#[cfg(test)]
mod tests {
    use indicatif::InMemoryTerm;

    use super::*;

    #[test]
    fn a_bar_fits_into_a_line_of_any_terminal() {
        for columns in [20, 44, 79, 80, 200] {
            let term = InMemoryTerm::new(5, 200);
            let target = ProgressDrawTarget::term_like(Box::new(term.clone()));
            let style = ProgressStyle::with_template(template(columns))
                .unwrap()
                .progress_chars("=> ");
            let bar = ProgressBar::with_draw_target(Some(1023 << 20), target).with_style(style);
            bar.set_prefix("0123456789ab");
            bar.set_message("indexing");
            bar.set_position(1022 << 20);
            bar.force_draw();
            let drawn = term.contents();
            assert!(drawn.starts_with("0123456789ab"), "{drawn:?}");
            assert!(drawn.chars().count() <= usize::from(columns), "{drawn:?}");
        }
    }
}
