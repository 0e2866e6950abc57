//! Push events in the forms in which registries send them. The form is recognised by the content,
//! so that one address takes them all.

mod cloud_events;
mod distribution;
mod ecr;
mod harbor;
mod push;
mod quay;

use serde_json::Value;

pub use self::push::{EventError, Push, Reported};

/// Most pushes of one event.
const MAX_PUSHES: usize = 1000;

/// Reads an event of ECR (EventBridge), of a distribution registry, of Harbor or of Quay.
///
/// # Errors
/// It is none of them, lacks a part, or names what is not an image.
pub fn parse(bytes: &[u8]) -> Result<Vec<Reported>, EventError> {
    let event: Value = serde_json::from_slice(bytes)
        .map_err(|error| EventError::new(format!("it is not JSON ({error})")))?;
    let has = |key: &str| event.get(key).is_some();
    let reported = if has("detail-type") {
        vec![ecr::read(event)?]
    } else if has("events") {
        distribution::read(event)?
    } else if has("specversion") {
        cloud_events::read(event)?
    } else if has("event_data") {
        harbor::read(event)?
    } else if has("docker_url") {
        quay::read(event)?
    } else {
        return Err(EventError::new(
            "it is not an event of EventBridge (detail-type), of a distribution registry (events), of \
             Harbor (event_data, specversion) or of Quay (docker_url)",
        ));
    };
    if reported.len() > MAX_PUSHES {
        return Err(EventError::new(format!(
            "it reports more than {MAX_PUSHES} pushes"
        )));
    }
    Ok(reported)
}
