//! Where AWS's services are, as the environment says it to every program that uses AWS, and requests
//! to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{RequestBuilder, StatusCode};

use super::error::{AwsFailure, EcrError};
use super::host::EcrHost;

/// Longest wait for a connection. The metadata service is one hop away, or not there.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest response in bytes.
const MAX_RESPONSE: usize = 256 << 10;

/// The environment variables with which AWS's programs are configured.
#[derive(Clone, Default)]
pub struct AwsEnvironment(BTreeMap<String, String>);

impl AwsEnvironment {
    /// The environment of this process.
    #[must_use]
    pub fn of_process() -> Self {
        // Names that begin otherwise are not looked at.
        let all = std::env::vars_os().filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            (name.starts_with("AWS_") && !value.is_empty()).then_some((name, value))
        });
        Self(all.collect())
    }

    /// An environment with these variables.
    #[must_use]
    pub fn of(variables: &[(&str, &str)]) -> Self {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        Self(variables.iter().map(owned).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn file(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    fn is_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// The region of the node or pod, if it is stated.
    pub(super) fn region(&self) -> Option<&str> {
        self.get("AWS_REGION")
            .or_else(|| self.get("AWS_DEFAULT_REGION"))
    }

    /// The end point of ECR's API for a registry.
    pub(super) fn ecr(&self, host: &EcrHost) -> String {
        let own = match host.account {
            Some(_) => "AWS_ENDPOINT_URL_ECR",
            None => "AWS_ENDPOINT_URL_ECR_PUBLIC",
        };
        if let Some(url) = self.get(own).or_else(|| self.get("AWS_ENDPOINT_URL")) {
            return url.trim_end_matches('/').to_owned();
        }
        let fips = host.fips || self.is_true("AWS_USE_FIPS_ENDPOINT");
        let (region, domain) = (&host.region, host.domain);
        match (&host.account, fips) {
            (None, _) => format!("https://api.ecr-public.{region}.{domain}"),
            (Some(_), false) => format!("https://api.ecr.{region}.{domain}"),
            (Some(_), true) => format!("https://ecr-fips.{region}.{domain}"),
        }
    }

    /// The end point of the token service.
    pub(super) fn sts(&self, region: &str, domain: &str) -> String {
        let own = self
            .get("AWS_ENDPOINT_URL_STS")
            .or_else(|| self.get("AWS_ENDPOINT_URL"));
        own.map_or_else(
            || format!("https://sts.{region}.{domain}"),
            |url| url.trim_end_matches('/').to_owned(),
        )
    }

    /// The end point of the instance's metadata service; `None` if it must not be asked.
    pub(super) fn instance_metadata(&self) -> Option<String> {
        if self.is_true("AWS_EC2_METADATA_DISABLED") {
            return None;
        }
        let url = self.get("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        let ipv6 = self
            .get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE")
            .is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
        let url = url.unwrap_or(match ipv6 {
            true => "http://[fd00:ec2::254]",
            false => "http://169.254.169.254",
        });
        Some(url.trim_end_matches('/').to_owned())
    }
}

/// Clients for requests to AWS and to services of this machine, which no proxy knows.
pub(super) struct Https {
    pub(super) aws: reqwest::Client,
    pub(super) local: reqwest::Client,
}

impl Https {
    pub(super) fn new() -> Result<Self, EcrError> {
        let builder = || {
            reqwest::Client::builder()
                .dns_resolver(Arc::new(soci_registry::resolver()))
                .connect_timeout(DIAL_TIMEOUT)
                .timeout(REQUEST_TIMEOUT)
                // No service of AWS redirects, and keys must not follow.
                .redirect(reqwest::redirect::Policy::none())
        };
        let built = |builder: reqwest::ClientBuilder| {
            let client = builder.build();
            client.map_err(|error| EcrError::Setup(Arc::new(error)))
        };
        Ok(Self {
            aws: built(builder())?,
            local: built(builder().no_proxy())?,
        })
    }
}

/// Sends a request and returns the body of a response with status 200. No message holds a header, a
/// body or a query: they are secrets.
pub(super) async fn send(request: RequestBuilder) -> Result<Vec<u8>, AwsFailure> {
    let mut response = request.send().await.map_err(AwsFailure::request)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(AwsFailure::request)? {
        if body.len() + piece.len() > MAX_RESPONSE {
            return Err(AwsFailure::TooLarge(MAX_RESPONSE));
        }
        body.extend_from_slice(&piece);
    }
    if status == StatusCode::OK {
        return Ok(body);
    }
    Err(AwsFailure::Status {
        status: status.as_u16(),
        code: error_code(&body),
    })
}

/// The code of an error in JSON or XML: a plain word such as `AccessDeniedException`.
fn error_code(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let code = match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(object) => {
            let keys = ["__type", "code", "Code"];
            let mut codes = keys.iter().filter_map(|key| object.get(key)?.as_str());
            codes.next()?.rsplit('#').next()?.to_owned()
        }
        Err(_) => element(&text, "Code")?,
    };
    let plain = code.len() <= 80 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    plain.then_some(code)
}

/// The text of an XML element without others in it.
pub(super) fn element(text: &str, name: &str) -> Option<String> {
    let (_, after) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = after.split_once("</")?;
    let inner = inner.trim();
    let decoded = inner
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&");
    (!decoded.is_empty()).then_some(decoded)
}
