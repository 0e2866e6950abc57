//! The notifications of a distribution registry: an envelope of events (distribution documentation,
//! "Work with notifications").

use serde::Deserialize;
use serde_json::Value;
use soci_oci::media_types;

use super::push::{EventError, Push, Reported, digest, read_event};

#[derive(Deserialize)]
struct Envelope {
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    id: Option<String>,
    action: String,
    #[serde(default)]
    target: Target,
    #[serde(default)]
    request: Request,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Target {
    media_type: String,
    digest: String,
    repository: String,
    tag: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Request {
    host: String,
}

pub(super) fn read(event: Value) -> Result<Vec<Reported>, EventError> {
    let envelope: Envelope = read_event(event)?;
    envelope.events.into_iter().map(one).collect()
}

fn one(event: Event) -> Result<Reported, EventError> {
    let Target {
        media_type,
        digest: stated,
        repository,
        tag,
    } = event.target;
    if event.action != "push" {
        return Ok(Reported::Other(format!("{} of {repository}", event.action)));
    }
    if !media_types::is_manifest(&media_type) && !media_types::is_index(&media_type) {
        // Each blob of an image has an event of its own.
        return Ok(Reported::Other(format!("push of a blob to {repository}")));
    }
    if event.request.host.is_empty() {
        return Err(EventError::new(
            "an event lacks request.host, the name of the registry",
        ));
    }
    let image = digest(&stated)?;
    let push = Push::new(
        &event.request.host,
        &repository,
        tag.as_deref(),
        Some(image),
    )?;
    Ok(Reported::Push(push.of_event(event.id.as_deref())))
}
