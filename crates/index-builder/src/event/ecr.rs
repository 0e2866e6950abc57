//! The event "ECR Image Action" of Amazon EventBridge (Amazon ECR user guide, "Amazon ECR events
//! and EventBridge").

use serde::Deserialize;
use serde_json::Value;

use super::push::{EventError, Push, Reported, digest, read_event, read_in};

const SOURCE: &str = "aws.ecr";
const DETAIL_TYPE: &str = "ECR Image Action";

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Event {
    #[serde(default)]
    id: Option<String>,
    source: String,
    detail_type: String,
    #[serde(default)]
    account: String,
    #[serde(default)]
    region: String,
    #[serde(default)]
    detail: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Detail {
    action_type: String,
    result: String,
    repository_name: String,
    #[serde(default)]
    image_digest: Option<String>,
    #[serde(default)]
    image_tag: Option<String>,
}

pub(super) fn read(event: Value) -> Result<Reported, EventError> {
    let event: Event = read_event(event)?;
    if event.source != SOURCE || event.detail_type != DETAIL_TYPE {
        return Ok(Reported::Other(format!(
            "event {:?} of {:?}",
            event.detail_type, event.source
        )));
    }
    let detail: Detail = read_in("detail", event.detail)?;
    if detail.action_type != "PUSH" || detail.result != "SUCCESS" {
        return Ok(Reported::Other(format!(
            "{} of {} with result {}",
            detail.action_type, detail.repository_name, detail.result
        )));
    }
    let registry = host(&event.account, &event.region)?;
    let image = detail.image_digest.as_deref().map(digest).transpose()?;
    if image.is_none() && detail.image_tag.as_deref().unwrap_or_default().is_empty() {
        return Err(EventError::new(
            "it has neither detail.image-digest nor detail.image-tag",
        ));
    }
    let tag = detail.image_tag.as_deref();
    let push = Push::new(&registry, &detail.repository_name, tag, image)?;
    Ok(Reported::Push(push.of_event(event.id.as_deref())))
}

/// The private registry of an account in a region.
fn host(account: &str, region: &str) -> Result<String, EventError> {
    if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(EventError::new(format!(
            "account {account:?} is not 12 digits"
        )));
    }
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if region.is_empty() || region.len() > 32 || !region.bytes().all(fine) {
        return Err(EventError::new(format!(
            "region {region:?} is not the name of a region"
        )));
    }
    // The domains of the partitions, as ECR's end points have them.
    let domain = match region {
        _ if region.starts_with("cn-") => "amazonaws.com.cn",
        _ if region.starts_with("us-isob-") => "sc2s.sgov.gov",
        _ if region.starts_with("us-isof-") => "csp.hci.ic.gov",
        _ if region.starts_with("us-iso-") => "c2s.ic.gov",
        _ if region.starts_with("eu-isoe-") => "cloud.adc-e.uk",
        _ => "amazonaws.com",
    };
    Ok(format!("{account}.dkr.ecr.{region}.{domain}"))
}
