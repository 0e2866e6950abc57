//! ECR's passwords as a source of credentials.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use soci_oci::Reference;
use soci_registry::{Candidate, Credential, CredentialError, CredentialScope, Credentials};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::endpoints::{AwsEnvironment, Https, send};
use super::error::{AwsFailure, EcrError};
use super::host::EcrHost;
use super::role::{self, RoleKeys};
use super::signature::Unsigned;

/// The service that returns passwords, in words.
const SERVICE: &str = "ECR's GetAuthorizationToken";
/// Time before its end at which a password or key is not used any more.
const MARGIN: Duration = Duration::from_secs(300);
/// Time for which a failure counts: each request to a registry would ask again.
const FAILED_FOR: Duration = Duration::from_secs(30);
/// Longest life of a password that states none.
const DEFAULT_LIFE: Duration = Duration::from_secs(3600);

/// Credentials for registries of Amazon ECR.
pub struct EcrKeychain {
    environment: AwsEnvironment,
    https: Result<Https, EcrError>,
    /// The keys of the role.
    role: Mutex<Option<RoleKeys>>,
    /// Passwords by region: one is for all registries that the role may read there. Its lock is held
    /// while it is fetched.
    passwords: Mutex<HashMap<EcrHost, Password>>,
}

struct Password {
    result: Result<Credential, EcrError>,
    until: Instant,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    authorization_data: OneOrMany,
}

/// The public registry answers with one, private ones with a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    Many(Vec<Authorization>),
    One(Authorization),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    authorization_token: String,
    #[serde(default)]
    expires_at: Option<f64>,
}

impl std::fmt::Debug for EcrKeychain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EcrKeychain(…)")
    }
}

impl EcrKeychain {
    /// Creates the source; makes no request yet.
    #[must_use]
    pub fn new(environment: AwsEnvironment) -> Self {
        Self {
            environment,
            https: Https::new(),
            role: Mutex::default(),
            passwords: Mutex::default(),
        }
    }

    async fn password(&self, host: EcrHost) -> Result<Credential, EcrError> {
        let mut passwords = self.passwords.lock().await;
        // One password for all private registries of a region.
        let key = EcrHost {
            account: host.account.is_some().then(String::new),
            ..host
        };
        if let Some(known) = passwords.get(&key)
            && known.until > Instant::now()
        {
            return known.result.clone();
        }
        let fetched = self.fetch(&key).await;
        let (result, life) = match fetched {
            Ok((credential, life)) => (Ok(credential), life),
            Err(error) => (Err(error), FAILED_FOR),
        };
        let until = Instant::now() + life;
        passwords.retain(|_, password| password.until > Instant::now());
        passwords.insert(
            key,
            Password {
                result: result.clone(),
                until,
            },
        );
        result
    }

    /// Fetches a password; returns it with the time for which it may be used.
    async fn fetch(&self, host: &EcrHost) -> Result<(Credential, Duration), EcrError> {
        let https = self.https.as_ref().map_err(Clone::clone)?;
        let mut role = self.role.lock().await;
        let usable = |role: &RoleKeys| role.expire.is_none_or(|at| life(at) > Duration::ZERO);
        let known = role.take().filter(usable);
        let known = match known {
            Some(known) => known,
            None => role::find(&self.environment, https, &host.region, host.domain).await?,
        };
        let keys = role.insert(known).keys.clone();
        let url = self.environment.ecr(host);
        let parsed = url::Url::parse(&url).map_err(|_| AwsFailure::Address.of(SERVICE))?;
        let authority = match (parsed.host_str(), parsed.port()) {
            (Some(name), Some(port)) => format!("{name}:{port}"),
            (name, _) => name.unwrap_or_default().to_owned(),
        };
        let (service, target) = match host.account {
            Some(_) => (
                "ecr",
                "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
            ),
            None => ("ecr-public", "SpencerFrontendService.GetAuthorizationToken"),
        };
        let unsigned = Unsigned {
            method: "POST",
            path: "/",
            query: "",
            headers: vec![
                ("content-type", "application/x-amz-json-1.1".to_owned()),
                ("host", authority),
                ("x-amz-target", target.to_owned()),
            ],
            body: b"{}",
            region: &host.region,
            service,
        };
        let mut request = https.aws.post(format!("{url}/")).body("{}");
        for (name, value) in unsigned.sign(&keys, Timestamp::now()) {
            // The connection sets it.
            if name != "host" {
                request = request.header(name, value);
            }
        }
        let answered = send(request).await;
        let body = answered.inspect_err(|_| {
            // The keys may be wrong: the next attempt looks for others.
            *role = None;
        });
        let body = body.map_err(|failure| failure.of(SERVICE))?;
        parse(&body).ok_or(AwsFailure::NoToken.of(SERVICE))
    }
}

/// The time until shortly before a moment.
fn life(at: Timestamp) -> Duration {
    let left = at.duration_since(Timestamp::now());
    Duration::try_from(left)
        .unwrap_or_default()
        .saturating_sub(MARGIN)
}

fn parse(body: &[u8]) -> Option<(Credential, Duration)> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = match answer.authorization_data {
        OneOrMany::Many(all) => all.into_iter().next()?,
        OneOrMany::One(one) => one,
    };
    let decoded = STANDARD.decode(token.authorization_token).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    let expires = token.expires_at.and_then(|seconds| {
        let since = Duration::try_from_secs_f64(seconds).ok()?;
        Timestamp::UNIX_EPOCH.checked_add(since).ok()
    });
    let credential = Credential::Basic {
        user: user.to_owned(),
        password: password.to_owned(),
    };
    Some((credential, expires.map_or(DEFAULT_LIFE, life)))
}

#[async_trait]
impl Credentials for EcrKeychain {
    async fn candidates(
        &self,
        registry_host: &str,
        _: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        let Some(host) = EcrHost::parse(registry_host) else {
            return Ok(Vec::new());
        };
        let credential = self
            .password(host)
            .await
            .map_err(CredentialError::from_source)?;
        Ok(vec![Candidate::new(credential, CredentialScope::Host)])
    }
}
