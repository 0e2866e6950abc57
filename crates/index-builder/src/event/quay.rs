//! Quay's notification "push to repository" (Quay documentation, "Repository notifications"). It
//! names tags and no digests.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::push::{EventError, Push, Reported, read_event};

#[derive(Deserialize)]
struct Event {
    docker_url: String,
    updated_tags: Tags,
}

/// Older versions name the image of each tag.
#[derive(Deserialize)]
#[serde(untagged)]
enum Tags {
    List(Vec<String>),
    Map(BTreeMap<String, Value>),
}

pub(super) fn read(event: Value) -> Result<Vec<Reported>, EventError> {
    if event.get("updated_tags").is_none() {
        return Ok(vec![Reported::Other(
            "a notification of Quay that is not about a push".to_owned(),
        )]);
    }
    let event: Event = read_event(event)?;
    let Some((registry, repository)) = event.docker_url.split_once('/') else {
        return Err(EventError::new(format!(
            "docker_url {:?} has no registry",
            event.docker_url
        )));
    };
    let tags = match event.updated_tags {
        Tags::List(tags) => tags,
        Tags::Map(tags) => tags.into_keys().collect(),
    };
    let push = |tag: &String| Push::new(registry, repository, Some(tag), None).map(Reported::Push);
    tags.iter().map(push).collect()
}
