//! The outcome of each Prepare of a layer is logged, as strings under the keys that operators' tools
//! look for.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::OnceLock;

use parking_lot::Mutex;
use soci_layer::LayerRefusal;
use tonic::Code;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::client::{assert_code, layer_labels};
use crate::double::{PROVIDER, Unpacking};
use crate::fixture::Machine;

type Fields = BTreeMap<String, String>;

/// All events of this process: the daemon logs from its own tasks.
static EVENTS: Mutex<Vec<Fields>> = Mutex::new(Vec::new());
/// The fields of the spans around each event of the provider.
static PROVIDER_SPANS: Mutex<Vec<Fields>> = Mutex::new(Vec::new());

struct Capture;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut collected = Collected(Fields::new());
        attributes.record(&mut collected);
        let span = context.span(id).unwrap();
        span.extensions_mut().insert(collected);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if event.metadata().target() == PROVIDER {
            let mut fields = Fields::new();
            for span in context.event_scope(event).into_iter().flatten() {
                if let Some(collected) = span.extensions().get::<Collected>() {
                    fields.extend(collected.0.clone());
                }
            }
            PROVIDER_SPANS.lock().push(fields);
            return;
        }
        let mut collected = Collected(Fields::new());
        event.record(&mut collected);
        EVENTS.lock().push(collected.0);
    }
}

struct Collected(Fields);

impl Visit for Collected {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0
            .insert(field.name().to_owned(), format!("string {value}"));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

fn capture() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let subscriber = tracing_subscriber::registry().with(Capture);
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
}

/// The events about a key that only one test uses.
fn events(key: &str) -> Vec<Fields> {
    let key = format!("string {key}");
    let events = EVENTS.lock();
    let of_key = |event: &&Fields| event.get("key") == Some(&key);
    events.iter().filter(of_key).cloned().collect()
}

#[tokio::test]
async fn a_lazy_layer_is_logged_as_prepared() {
    capture();
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    let answer = daemon
        .prepare_layer("logged lazy", "", "target", "one")
        .await;
    assert_code(&answer, Code::AlreadyExists);
    let [event] = &events("logged lazy")[..] else {
        panic!("{:?}", events("logged lazy"));
    };
    assert_eq!(event["remote-snapshot-prepared"], "string true");
    assert_eq!(event["parent"], "string ");
    assert_eq!(event["layerDigest"], "string one");
    assert!(!event.contains_key("defer-snapshot-runtime"));
}

#[tokio::test]
async fn a_deferred_layer_is_logged_with_its_reason() {
    capture();
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.layer(&daemon, "base", "", |_| ()).await;
    daemon
        .prepare_layer("logged deferred", "base", "target", "unknown")
        .await
        .unwrap();
    let [refused, deferred] = &events("logged deferred")[..] else {
        panic!("{:?}", events("logged deferred"));
    };
    assert_eq!(refused["remote-snapshot-prepared"], "string false");
    assert_eq!(deferred["defer-snapshot-runtime"], "string true");
    for event in [refused, deferred] {
        assert_eq!(event["parent"], "string base");
        assert_eq!(event["reason"], "string no-index");
        assert!(event["error"].contains("none knows unknown"), "{event:?}");
    }
}

/// A layer that exists is logged as lazy only if it is: another namespace may have unpacked it.
#[tokio::test]
async fn a_layer_that_exists_is_logged_as_what_it_is() {
    capture();
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("lazy");
    daemon.pull_lazily("lazy target", "", "lazy").await;
    let labels = layer_labels("unpacked target", "unpacked");
    daemon
        .prepare_with("unpacking", "", labels.clone())
        .await
        .unwrap();
    daemon
        .commit_with("unpacked target", "unpacking", labels)
        .await
        .unwrap();
    for (key, target, lazy) in [
        ("again lazy", "lazy target", "string true"),
        ("again unpacked", "unpacked target", "string false"),
    ] {
        let answer = daemon.prepare_layer(key, "", target, "any").await;
        assert_code(&answer, Code::AlreadyExists);
        let [event] = &events(key)[..] else {
            panic!("{:?}", events(key));
        };
        assert_eq!(event["remote-snapshot-prepared"], lazy);
        assert_eq!(event["target"], format!("string {target}"));
    }
}

#[tokio::test]
async fn an_unpacked_layer_is_logged_with_why_it_is_not_lazy() {
    capture();
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.layer(&daemon, "base", "", |_| ()).await;
    let refusal = LayerRefusal::no_ztoc("too small");
    let unpacking = Unpacking::File("file", "content");
    machine
        .layers
        .set_unpacking("layer", refusal.clone(), unpacking);
    let answer = daemon
        .prepare_layer("logged local", "base", "target", "layer")
        .await;
    assert_code(&answer, Code::AlreadyExists);
    let [refused, local] = &events("logged local")[..] else {
        panic!("{:?}", events("logged local"));
    };
    assert_eq!(refused["remote-snapshot-prepared"], "string false");
    assert_eq!(refused["reason"], "string no-ztoc");
    assert_eq!(local["local-snapshot-prepared"], "string true");
    assert_eq!(local["parent"], "string base");

    machine
        .layers
        .set_unpacking("layer", refusal, Unpacking::HalfWay);
    daemon
        .prepare_layer("logged failure", "base", "other target", "layer")
        .await
        .unwrap();
    let [refused, local, deferred] = &events("logged failure")[..] else {
        panic!("{:?}", events("logged failure"));
    };
    assert_eq!(refused["remote-snapshot-prepared"], "string false");
    assert_eq!(local["local-snapshot-prepared"], "string false");
    assert!(local["error"].contains("disk full"), "{local:?}");
    assert_eq!(deferred["defer-snapshot-runtime"], "string true");
    assert_eq!(deferred["reason"], "string no-ztoc");
}

#[tokio::test]
async fn an_event_of_the_provider_names_image_and_layer() {
    capture();
    let machine = Machine::new();
    let daemon = machine.start().await;
    let refusal = LayerRefusal::no_ztoc("too small");
    let unpacking = Unpacking::File("file", "content");
    machine.layers.set_unpacking("local", refusal, unpacking);
    machine.lazy_layer("restored");
    for (key, layer) in [("spans local", "local"), ("spans lazy", "restored")] {
        let answer = daemon.prepare_layer(key, "", key, layer).await;
        assert_code(&answer, Code::AlreadyExists);
    }
    let spans = |key: &str, value: &str| {
        let value = format!("string {value}");
        let spans = PROVIDER_SPANS.lock();
        let found = spans
            .iter()
            .filter(|fields| fields.get(key) == Some(&value));
        found.cloned().collect::<Vec<_>>()
    };
    let expected = |layer: &str| {
        [
            ("image", "registry/image:tag"),
            ("layerDigest", layer),
            ("namespace", "testing"),
        ]
        .map(|(key, value)| (key.to_owned(), format!("string {value}")))
    };
    for (key, layer, count) in [("spans local", "local", 2), ("spans lazy", "restored", 1)] {
        let found = spans("key", key);
        assert_eq!(found.len(), count, "{found:?}");
        for fields in found {
            let fields: Vec<_> = fields
                .into_iter()
                .filter(|(name, _)| name != "key")
                .collect();
            assert_eq!(fields, expected(layer));
        }
    }

    daemon.stop(true).await;
    let before = spans("layerDigest", "restored").len();
    machine.start().await;
    let after = spans("layerDigest", "restored");
    assert_eq!(after.len(), before + 1);
    assert!(
        after
            .last()
            .unwrap()
            .clone()
            .into_iter()
            .eq(expected("restored"))
    );
}
