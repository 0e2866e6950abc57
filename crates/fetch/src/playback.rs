//! Playing a start-up profile: fetching the spans that a start of the image needs, in the order of
//! their use over all its layers, before they are requested.
//!
//! A profile is a guess. What it fetches is bounded in all, further bounded until a container reads
//! at all, and held to what readers use of it from then on. On a slow link, where it would delay the
//! rest of the pull, it begins when a container reads.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

/// Compressed bytes that are wanted at a time.
const WINDOW: u64 = 64 << 20;
/// Compressed bytes that a profile may fetch.
const MOST: u64 = 1 << 30;
/// Compressed bytes that it may fetch before a container reads.
const BEFORE_READS: u64 = 256 << 20;
/// Compressed bytes that it may fetch although readers use little of it.
const TRIAL: u64 = 64 << 20;
/// A reader uses enough if it reads this part of what was fetched.
const USED_PART: u64 = 4;
/// Time after the first read from which on use counts.
const GRACE: Duration = Duration::from_secs(2);
/// Time without progress after which the rest is given up.
const STUCK: Duration = Duration::from_secs(60);
/// Compressed bytes that are wanted at a time until it is known how fast the link is.
const PROBE: u64 = 16 << 20;
/// Compressed bytes that have to arrive before a link counts as fast.
const PROBED: u64 = 4 << 20;
/// Time after which a link that is not known to be fast counts as slow.
const PROBE_TIME: Duration = Duration::from_secs(1);
/// Spans of a profile.
const MOST_SPANS: usize = 8192;

/// A span of one of the layers of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProfileSpan {
    /// Number of the layer within the profile.
    pub layer: usize,
    /// Number of the span within the layer.
    pub span: u32,
}

/// What a playback has to know of a layer, and does with it.
pub trait PlayedLayer {
    /// Compressed size of a span in bytes; `None`: the layer has no such span.
    fn size(&self, span: u32) -> Option<u64>;
    /// Whether a span is stored.
    fn is_stored(&self, span: u32) -> bool;
    /// Bytes that a span takes in the store.
    fn length(&self, span: u32) -> u64;
    /// Bytes that the store has room for without evicting anything: that of all layers.
    fn room(&self) -> u64;
    /// Whether a reader requested a span.
    fn was_read(&self, span: u32) -> bool;
    /// Rate of the link to the layer in bytes per second, if it is known.
    fn link_rate(&self) -> Option<u64>;
    /// Fetches spans that no reader waits for.
    fn fetch(&self, spans: &[u32]);
}

/// How far a playback is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Played {
    /// Compressed bytes that were fetched, or are being fetched, for it.
    pub bytes: u64,
    /// Part of them that readers used.
    pub used: u64,
    /// Whether it waits because too little is used.
    pub held: bool,
    /// Whether it waits for the first read, because the link is slow.
    pub waits: bool,
    /// Whether it has ended.
    pub ended: bool,
}

/// How fast a link is, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Unknown,
    Fast,
    Slow,
}

/// Finds out how fast a link is.
#[derive(Debug)]
struct LinkProbe {
    /// Rate in bytes per second from which on a link is fast.
    least: u64,
    /// Since when compressed bytes were wanted, and how many have arrived.
    since: Option<(Instant, u64)>,
    link: Link,
}

impl LinkProbe {
    const fn new(least: u64) -> Self {
        Self {
            least,
            since: None,
            link: if least == 0 {
                Link::Fast
            } else {
                Link::Unknown
            },
        }
    }

    /// Notes the rate that is known otherwise, and the bytes that have arrived since the last call.
    fn note(&mut self, known: Option<u64>, arrived: u64, now: Instant) -> Link {
        if self.least == 0 {
            return Link::Fast;
        }
        if let Some(rate) = known {
            self.link = if rate < self.least {
                Link::Slow
            } else {
                Link::Fast
            };
            return self.link;
        }
        if let (Link::Unknown, Some((since, bytes))) = (self.link, &mut self.since) {
            *bytes = bytes.saturating_add(arrived);
            let elapsed = now.saturating_duration_since(*since);
            let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            let rate = bytes.saturating_mul(1000) / millis.max(1);
            if *bytes >= PROBED && rate >= self.least {
                self.link = Link::Fast;
            } else if elapsed >= PROBE_TIME {
                self.link = Link::Slow;
            }
        }
        self.link
    }

    /// Notes that bytes are wanted.
    fn wanted(&mut self, now: Instant) {
        self.since.get_or_insert((now, 0));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not wanted yet, for example because its layer is not open.
    Waiting,
    /// Being fetched.
    Wanted,
    /// Fetched.
    Fetched,
    /// Stored before, or not to be had.
    Skipped,
}

/// The playback of the profile of one image.
#[derive(Debug)]
pub struct Playback {
    spans: Vec<(ProfileSpan, State)>,
    progress: Option<Instant>,
    played: Played,
    /// Number of layers that are fetched from at a time.
    layers_at_once: usize,
    probe: LinkProbe,
}

/// What a playback has of the layers that are open, in compressed bytes.
#[derive(Default)]
struct Fetched {
    bytes: u64,
    used: u64,
    /// Arrived since the last look.
    arrived: u64,
    outstanding: u64,
    /// Bytes of the store that what is outstanding will take.
    promised: u64,
    /// The layers of what is outstanding.
    busy: HashSet<usize>,
}

impl Playback {
    /// Plays these spans, in this order. Repeated ones are dropped, and those above a limit.
    #[must_use]
    pub fn new(spans: impl IntoIterator<Item = ProfileSpan>) -> Self {
        let mut seen = HashSet::new();
        let spans = spans.into_iter().take(MOST_SPANS);
        Self {
            spans: spans
                .filter(|span| seen.insert(*span))
                .map(|span| (span, State::Waiting))
                .collect(),
            progress: None,
            played: Played::default(),
            layers_at_once: usize::MAX,
            probe: LinkProbe::new(0),
        }
    }

    /// Sets the rate of links below which it begins at the first read, in bytes per second.
    #[must_use]
    pub const fn with_least_link_rate(mut self, least: u64) -> Self {
        self.probe = LinkProbe::new(least);
        self
    }

    /// Limits the number of layers that are fetched from at a time.
    #[must_use]
    pub const fn with_layers_at_once(mut self, layers: usize) -> Self {
        self.layers_at_once = layers;
        self
    }

    /// Fetches what may be fetched now. To be called every tenth of a second until it has ended; after
    /// that it only counts what is used.
    /// `layers` holds the layers that are open, by their number; `first_read` is when a container
    /// first read from one of them.
    pub fn step<L: PlayedLayer>(
        &mut self,
        layers: &[Option<L>],
        first_read: Option<Instant>,
        now: Instant,
    ) -> Played {
        if self.played.ended {
            self.played.used = self.used(layers);
            return self.played;
        }
        let began = *self.progress.get_or_insert(now);
        let mut fetched = self.look(layers, now);
        let mut rates = layers.iter().flatten().filter_map(PlayedLayer::link_rate);
        let link = self.probe.note(rates.next(), fetched.arrived, now);
        let window = match (first_read, link) {
            (None, Link::Unknown) => PROBE,
            _ => WINDOW,
        };
        let waits = first_read.is_none() && link == Link::Slow;
        let limit = match first_read {
            None if waits => 0,
            None => BEFORE_READS,
            Some(at) if now < at + GRACE => MOST,
            Some(_) => TRIAL.max(fetched.used.saturating_mul(USED_PART)).min(MOST),
        };
        let held = self.fetch(layers, &mut fetched, window, limit, now) && !waits;
        let open = |state: State| matches!(state, State::Waiting | State::Wanted);
        let left = self.spans.iter().any(|(_, state)| open(*state));
        let since = self.progress.unwrap_or(began);
        let stuck = first_read.is_some_and(|at| now >= since.max(at) + STUCK);
        self.played = Played {
            bytes: fetched.bytes,
            used: fetched.used,
            held,
            waits: waits && left,
            ended: !left || stuck,
        };
        self.played
    }

    /// Notes what has arrived and what is stored; returns what the playback has of it.
    fn look<L: PlayedLayer>(&mut self, layers: &[Option<L>], now: Instant) -> Fetched {
        let mut fetched = Fetched::default();
        for (span, state) in &mut self.spans {
            let Some(layer) = layers.get(span.layer).and_then(Option::as_ref) else {
                continue;
            };
            let Some(size) = layer.size(span.span) else {
                *state = State::Skipped;
                continue;
            };
            match *state {
                State::Wanted if layer.is_stored(span.span) => {
                    *state = State::Fetched;
                    fetched.arrived += size;
                    self.progress = Some(now);
                }
                State::Wanted => {
                    fetched.outstanding += size;
                    let length = layer.length(span.span);
                    fetched.promised = fetched.promised.saturating_add(length);
                    fetched.busy.insert(span.layer);
                }
                State::Waiting if layer.is_stored(span.span) => *state = State::Skipped,
                State::Waiting | State::Fetched | State::Skipped => {}
            }
            if matches!(state, State::Wanted | State::Fetched) {
                fetched.bytes += size;
                fetched.used += if layer.was_read(span.span) { size } else { 0 };
            }
        }
        fetched
    }

    /// Fetches the next spans, as many as the window, the store and the limit have room for. Returns
    /// whether it is the limit that keeps it from more.
    fn fetch<L: PlayedLayer>(
        &mut self,
        layers: &[Option<L>],
        fetched: &mut Fetched,
        window: u64,
        limit: u64,
        now: Instant,
    ) -> bool {
        let mut lists = vec![Vec::new(); layers.len()];
        let mut is_limited = false;
        for (span, state) in &mut self.spans {
            if *state != State::Waiting {
                continue;
            }
            let layer = layers.get(span.layer).and_then(Option::as_ref);
            let size = layer.and_then(|layer| layer.size(span.span));
            let (Some(layer), Some(size)) = (layer, size) else {
                continue;
            };
            if fetched.bytes + size > limit {
                is_limited = true;
                break;
            }
            if fetched.outstanding > 0 && fetched.outstanding + size > window {
                break;
            }
            let promised = fetched.promised.saturating_add(layer.length(span.span));
            if promised > layer.room() {
                *state = State::Skipped;
                continue;
            }
            let busy = &fetched.busy;
            if busy.len() >= self.layers_at_once && !busy.contains(&span.layer) {
                continue;
            }
            fetched.busy.insert(span.layer);
            *state = State::Wanted;
            fetched.outstanding += size;
            fetched.promised = promised;
            fetched.bytes += size;
            self.progress = Some(now);
            self.probe.wanted(now);
            if let Some(list) = lists.get_mut(span.layer) {
                list.push(span.span);
            }
        }
        for (layer, list) in layers.iter().zip(&lists) {
            if let Some(layer) = layer.as_ref().filter(|_| !list.is_empty()) {
                layer.fetch(list);
            }
        }
        is_limited
    }

    /// Compressed bytes of what was fetched and is used by now; of closed layers as counted before.
    fn used<L: PlayedLayer>(&self, layers: &[Option<L>]) -> u64 {
        let spans = self.spans.iter();
        let fetched = spans.filter(|(_, state)| matches!(state, State::Wanted | State::Fetched));
        let used = fetched.filter_map(|(span, _)| {
            let layer = layers.get(span.layer)?.as_ref()?;
            layer.size(span.span).filter(|_| layer.was_read(span.span))
        });
        used.sum::<u64>().max(self.played.used)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const SPAN: u64 = 2 << 20;

    #[derive(Default)]
    struct Fake {
        spans: u32,
        fetched: RefCell<Vec<u32>>,
        stored: RefCell<BTreeSet<u32>>,
        read: RefCell<BTreeSet<u32>>,
        room: u64,
        rate: std::cell::Cell<Option<u64>>,
    }

    impl Fake {
        fn new(spans: u32) -> Option<Self> {
            Some(Self {
                spans,
                room: u64::MAX,
                ..Self::default()
            })
        }

        fn arrive(&self) {
            self.stored
                .borrow_mut()
                .extend(self.fetched.borrow().iter());
        }
    }

    impl PlayedLayer for Fake {
        fn size(&self, span: u32) -> Option<u64> {
            (span < self.spans).then_some(SPAN)
        }
        fn is_stored(&self, span: u32) -> bool {
            self.stored.borrow().contains(&span)
        }
        fn length(&self, _: u32) -> u64 {
            2 * SPAN
        }
        fn room(&self) -> u64 {
            let stored = self.stored.borrow().len() as u64;
            self.room.saturating_sub(stored * 2 * SPAN)
        }
        fn was_read(&self, span: u32) -> bool {
            self.read.borrow().contains(&span)
        }
        fn link_rate(&self) -> Option<u64> {
            self.rate.get()
        }
        fn fetch(&self, spans: &[u32]) {
            self.fetched.borrow_mut().extend(spans);
        }
    }

    fn spans(layer: usize, spans: impl IntoIterator<Item = u32>) -> Vec<ProfileSpan> {
        let of = |span| ProfileSpan { layer, span };
        spans.into_iter().map(of).collect()
    }

    #[test]
    fn layers_are_played_in_one_order_as_they_open_and_each_span_once() {
        let order = [spans(1, [3, 3, 1]), spans(0, [9, 2]), spans(1, [77, 0])].concat();
        let mut play = Playback::new(order);
        let now = Instant::now();
        let mut layers = [None, Fake::new(5)];
        assert_eq!(play.step(&layers, None, now).bytes, 3 * SPAN);
        layers[0] = Fake::new(5);
        let played = play.step(&layers, None, now);
        assert_eq!((played.bytes, played.ended), (4 * SPAN, false));
        let [first, second] = layers.each_ref().map(|layer| layer.as_ref().unwrap());
        assert_eq!(
            *first.fetched.borrow(),
            [2],
            "9 is not a span of this layer"
        );
        assert_eq!(*second.fetched.borrow(), [3, 1, 0]);
        first.arrive();
        second.arrive();
        assert!(play.step(&layers, None, now).ended);
        // What is read later is used as well.
        second.read.borrow_mut().extend([3, 4]);
        assert_eq!(play.step(&layers, Some(now), now).used, SPAN);
    }

    #[test]
    fn a_limit_of_layers_holds_the_others_back_until_one_is_fetched() {
        let order = [
            spans(0, [1, 2]),
            spans(1, [3]),
            spans(0, [4]),
            spans(1, [0]),
        ]
        .concat();
        let mut play = Playback::new(order).with_layers_at_once(1);
        let layers = [Fake::new(5), Fake::new(5)];
        let [first, second] = layers.each_ref().map(|layer| layer.as_ref().unwrap());
        let now = Instant::now();
        play.step(&layers, None, now);
        assert_eq!(*first.fetched.borrow(), [1, 2, 4]);
        assert!(second.fetched.borrow().is_empty());
        first.arrive();
        assert!(!play.step(&layers, None, now).ended);
        assert_eq!(*second.fetched.borrow(), [3, 0]);
        second.arrive();
        assert!(play.step(&layers, None, now).ended);
    }

    #[test]
    fn on_a_link_that_is_known_to_be_slow_it_begins_at_the_first_read() {
        let mut play = Playback::new(spans(0, 0..100)).with_least_link_rate(50_000_000);
        let layers = [Fake::new(100)];
        let layer = layers[0].as_ref().unwrap();
        let begin = Instant::now();
        layer.rate.set(Some(20_000_000));
        for second in 0..100 {
            let now = begin + Duration::from_secs(second);
            let played = play.step(&layers, None, now);
            assert!(played.waits && !played.ended && !played.held);
        }
        assert!(layer.fetched.borrow().is_empty());
        let first = begin + Duration::from_secs(100);
        let played = play.step(&layers, Some(first), first);
        assert!(!played.waits);
        assert_eq!(played.bytes, WINDOW);
        // A link may be faster than it was.
        let mut play = Playback::new(spans(0, 0..100)).with_least_link_rate(50_000_000);
        let layers = [Fake::new(100)];
        let layer = layers[0].as_ref().unwrap();
        layer.rate.set(Some(20_000_000));
        assert!(play.step(&layers, None, begin).waits);
        layer.rate.set(Some(60_000_000));
        assert_eq!(play.step(&layers, None, begin).bytes, WINDOW);
    }

    #[test]
    fn the_beginning_of_a_profile_shows_how_fast_an_unknown_link_is() {
        let begin = Instant::now();
        let probed = |arrived: u32, after: Duration| {
            let mut play = Playback::new(spans(0, 0..500)).with_least_link_rate(50_000_000);
            let layers = [Fake::new(500)];
            let layer = layers[0].as_ref().unwrap();
            assert_eq!(play.step(&layers, None, begin).bytes, PROBE);
            layer.stored.borrow_mut().extend(0..arrived);
            play.step(&layers, None, begin + after)
        };
        let tenth = Duration::from_millis(100);
        // 8 MiB in 0.1 s.
        let played = probed(4, tenth);
        assert_eq!((played.bytes, played.waits), (WINDOW + 4 * SPAN, false));
        // Nothing is known after 0.1 s; after a second nearly all has arrived, and that is slow.
        let played = probed(1, tenth);
        assert_eq!((played.bytes, played.waits), (PROBE + SPAN, false));
        let played = probed(7, PROBE_TIME);
        assert_eq!((played.bytes, played.waits), (PROBE, true));
    }

    #[test]
    fn a_profile_that_is_not_used_stops() {
        let mut play = Playback::new(spans(0, 0..2000));
        let layers = [Fake::new(2000)];
        let layer = layers[0].as_ref().unwrap();
        let begin = Instant::now();
        for step in 0..100 {
            let played = play.step(&layers, None, begin + GRACE * step);
            assert!(played.bytes <= BEFORE_READS);
            layer.arrive();
        }
        // The wrong program reads: nothing more is fetched, until it uses what is there.
        let first = begin + GRACE * 100;
        let later = first + GRACE;
        let played = play.step(&layers, Some(first), later);
        assert!(played.held && !played.ended);
        assert_eq!(played.bytes, BEFORE_READS);
        layer.read.borrow_mut().extend(0..60);
        let played = play.step(&layers, Some(first), later);
        assert!(played.bytes > BEFORE_READS && !played.ended);
        layer.arrive();
        assert!(!play.step(&layers, Some(first), later).ended);
        assert!(play.step(&layers, Some(first), later + STUCK).ended);
    }

    #[test]
    fn of_more_spans_than_the_limit_the_first_are_played() {
        let most = u32::try_from(MOST_SPANS).unwrap();
        let play = Playback::new(spans(0, 0..most + 10));
        let listed = play.spans.iter().map(|(span, _)| span.span);
        assert!(listed.eq(0..most));
    }

    #[test]
    fn what_the_store_has_no_room_for_is_left_out() {
        for (room, fetched) in [(u64::MAX, 10), (7 * SPAN, 3), (SPAN, 0)] {
            let mut play = Playback::new(spans(0, 0..10));
            let mut layers = [Fake::new(10)];
            layers[0].as_mut().unwrap().room = room;
            let layer = layers[0].as_ref().unwrap();
            let now = Instant::now();
            // What is on its way counts as stored.
            let played = play.step(&layers, None, now);
            assert_eq!(played.bytes, fetched * SPAN);
            layer.arrive();
            assert_eq!(layer.stored.borrow().len() as u64, fetched);
            let played = play.step(&layers, Some(now), now);
            assert_eq!((played.bytes, played.ended), (fetched * SPAN, true));
            assert!(!played.held);
        }
    }

    proptest! {
        /// Whatever it lists, and whatever readers do.
        #[test]
        fn what_it_fetches_is_bounded(
            list in prop::collection::vec((0..3_usize, 0..5000_u32), 0..3000),
            steps in prop::collection::vec((any::<bool>(), 0..5000_u32, 0..5_u64), 1..60),
        ) {
            let list = list.into_iter().map(|(layer, span)| ProfileSpan { layer, span });
            let mut play = Playback::new(list);
            let layers = [Fake::new(900), Fake::new(900)];
            let (mut now, mut first) = (Instant::now(), None);
            for (arrives, reads, seconds) in steps {
                now += Duration::from_secs(seconds);
                let before = play.played.bytes;
                let played = play.step(&layers, first, now);
                let of = |part: fn(&Fake) -> usize| -> u64 {
                    layers.iter().flatten().map(|layer| part(layer) as u64).sum()
                };
                let fetched = of(|layer| layer.fetched.borrow().len()) * SPAN;
                let stored = of(|layer| layer.stored.borrow().len()) * SPAN;
                prop_assert_eq!(played.bytes, fetched);
                prop_assert!(fetched - stored <= WINDOW.max(SPAN));
                prop_assert!(first.is_some() || fetched <= BEFORE_READS);
                let used = TRIAL.max(played.used * USED_PART);
                let settled = first.is_some_and(|at| now >= at + GRACE);
                prop_assert!(!settled || fetched <= used || fetched == before);
                for layer in layers.iter().flatten() {
                    let fetched = layer.fetched.borrow();
                    let once: BTreeSet<_> = fetched.iter().collect();
                    prop_assert_eq!(once.len(), fetched.len());
                    prop_assert!(fetched.iter().all(|span| *span < 900));
                    if arrives {
                        layer.arrive();
                    }
                    layer.read.borrow_mut().insert(reads);
                }
                first = first.or((reads % 3 == 0).then_some(now));
            }
        }
    }
}
