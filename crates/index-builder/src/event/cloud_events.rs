//! Harbor's webhooks in the format of CloudEvents (CloudEvents specification 1.0, JSON format).

use serde::Deserialize;
use serde_json::Value;

use super::harbor;
use super::push::{EventError, Reported, read_event, read_in};

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    id: Option<String>,
    r#type: String,
    #[serde(default)]
    data: Value,
}

pub(super) fn read(event: Value) -> Result<Vec<Reported>, EventError> {
    let event: Event = read_event(event)?;
    if event.r#type != "harbor.artifact.pushed" {
        return Ok(vec![Reported::Other(format!("event {:?}", event.r#type))]);
    }
    let data: harbor::Data = read_in("data", event.data)?;
    harbor::pushes(data, event.id.as_deref())
}
