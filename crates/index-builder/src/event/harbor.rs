//! Harbor's webhooks in their own format (Harbor documentation, "Configure Webhook Notifications").

use serde::Deserialize;
use serde_json::Value;

use super::push::{EventError, Push, Reported, digest, read_event, read_in};

#[derive(Deserialize)]
struct Event {
    r#type: String,
    event_data: Value,
}

/// What was pushed, in both formats of Harbor.
#[derive(Deserialize)]
pub(super) struct Data {
    resources: Vec<Resource>,
    repository: Repository,
}

#[derive(Deserialize)]
struct Resource {
    digest: String,
    #[serde(default)]
    tag: Option<String>,
    resource_url: String,
}

#[derive(Deserialize)]
struct Repository {
    repo_full_name: String,
}

pub(super) fn read(event: Value) -> Result<Vec<Reported>, EventError> {
    let event: Event = read_event(event)?;
    if event.r#type != "PUSH_ARTIFACT" {
        return Ok(vec![Reported::Other(format!("event {:?}", event.r#type))]);
    }
    let data: Data = read_in("event_data", event.event_data)?;
    pushes(data, None)
}

/// The pushes of an event, which `event` names if it has a name.
pub(super) fn pushes(data: Data, event: Option<&str>) -> Result<Vec<Reported>, EventError> {
    let repository = data.repository.repo_full_name;
    let of = |resource: &Resource| {
        let Some((registry, _)) = resource.resource_url.split_once('/') else {
            return Err(EventError::new(format!(
                "resource_url {:?} has no registry",
                resource.resource_url
            )));
        };
        // Without a tag the digest stands in its place.
        let tag = resource.tag.as_deref().filter(|tag| !tag.contains(':'));
        let image = digest(&resource.digest)?;
        let push = Push::new(registry, &repository, tag, Some(image))?;
        let event = event.map(|event| format!("{event} {}", push.in_registry()));
        Ok(Reported::Push(push.of_event(event.as_deref())))
    };
    data.resources.iter().map(of).collect()
}
