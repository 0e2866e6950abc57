//! The keys of the role of this node or pod, in the order in which AWS's own programs look for them:
//! the environment, a web identity (IRSA), the container's role (ECS, EKS Pod Identity), the
//! instance's profile. Profiles in `~/.aws` are not read.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;

use super::endpoints::{AwsEnvironment, Https, element, send};
use super::error::{AwsFailure, EcrError};
use super::signature::Keys;

/// Hosts that may see the container's token without TLS, beside those of this machine: the agents of
/// ECS and EKS.
const AGENTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"];
/// Where a relative address is.
const ECS_AGENT: &str = "http://169.254.170.2";
/// Lifetime that is requested for a session with the instance's metadata service, in seconds.
const SESSION_SECONDS: &str = "300";

/// Keys, and when they expire; `None`: never.
pub(super) struct RoleKeys {
    pub(super) keys: Keys,
    pub(super) expire: Option<Timestamp>,
}

/// Keys as the container's agent and the instance's metadata service write them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Written {
    access_key_id: String,
    secret_access_key: String,
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    expiration: Option<String>,
}

/// Finds the keys of the role. `region` and `domain` are those of the registry.
pub(super) async fn find(
    environment: &AwsEnvironment,
    https: &Https,
    region: &str,
    domain: &str,
) -> Result<RoleKeys, EcrError> {
    let of = |name| environment.get(name);
    if let (Some(id), Some(secret)) = (of("AWS_ACCESS_KEY_ID"), of("AWS_SECRET_ACCESS_KEY")) {
        let keys = Keys {
            id: id.to_owned(),
            secret: secret.to_owned(),
            session: of("AWS_SESSION_TOKEN").map(str::to_owned),
        };
        return Ok(RoleKeys { keys, expire: None });
    }
    if of("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() {
        let region = environment.region().unwrap_or(region);
        let found = web_identity(environment, https, region, domain).await;
        return found.map_err(|failure| failure.of("AWS's token service (web identity)"));
    }
    let relative = of("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    let full = of("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    if let Some(url) = relative
        .map(|path| format!("{ECS_AGENT}{path}"))
        .or_else(|| full.map(str::to_owned))
    {
        let found = container(environment, https, &url).await;
        return found.map_err(|failure| failure.of("the container's credential service"));
    }
    let Some(metadata) = environment.instance_metadata() else {
        return Err(EcrError::NoRole);
    };
    let found = instance(https, &metadata).await;
    found.map_err(|failure| failure.of("the instance's metadata service"))
}

fn written(body: &[u8]) -> Result<RoleKeys, AwsFailure> {
    let written: Written = serde_json::from_slice(body).map_err(|_| AwsFailure::NoKeys)?;
    Ok(RoleKeys {
        keys: Keys {
            id: written.access_key_id,
            secret: written.secret_access_key,
            session: written.token.filter(|token| !token.is_empty()),
        },
        expire: written.expiration.and_then(|at| at.parse().ok()),
    })
}

async fn read(path: PathBuf) -> Result<String, AwsFailure> {
    let file = path.clone();
    let read = soci_task::blocking::<_, io::Error>(move || std::fs::read_to_string(file));
    match read.await {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(AwsFailure::File {
            path,
            source: Arc::new(error),
        }),
    }
}

/// Trades the token of a pod's service account for keys.
async fn web_identity(
    environment: &AwsEnvironment,
    https: &Https,
    region: &str,
    domain: &str,
) -> Result<RoleKeys, AwsFailure> {
    let path = environment
        .file("AWS_WEB_IDENTITY_TOKEN_FILE")
        .unwrap_or_default();
    let token = read(path).await?;
    let role = environment
        .get("AWS_ROLE_ARN")
        .ok_or(AwsFailure::Unset("AWS_ROLE_ARN"))?;
    let session = environment
        .get("AWS_ROLE_SESSION_NAME")
        .unwrap_or("soci-snapshotter");
    let form = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("Action", "AssumeRoleWithWebIdentity")
        .append_pair("Version", "2011-06-15")
        .append_pair("RoleArn", role)
        .append_pair("RoleSessionName", session)
        .append_pair("WebIdentityToken", &token)
        .finish();
    let request = https
        .aws
        .post(format!("{}/", environment.sts(region, domain)))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form);
    let body = send(request).await?;
    let text = String::from_utf8_lossy(&body);
    let of = |name| element(&text, name);
    match (of("AccessKeyId"), of("SecretAccessKey")) {
        (Some(id), Some(secret)) => Ok(RoleKeys {
            keys: Keys {
                id,
                secret,
                session: of("SessionToken"),
            },
            expire: of("Expiration").and_then(|at| at.parse().ok()),
        }),
        _ => Err(AwsFailure::NoKeys),
    }
}

/// Asks the agent of ECS or EKS.
async fn container(
    environment: &AwsEnvironment,
    https: &Https,
    url: &str,
) -> Result<RoleKeys, AwsFailure> {
    let parsed = url::Url::parse(url).map_err(|_| AwsFailure::Address)?;
    let host = parsed.host_str().unwrap_or_default();
    let local = match parsed.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    if !(parsed.scheme() == "https"
        || parsed.scheme() == "http" && (local || AGENTS.contains(&host)))
    {
        let host = host.to_owned();
        return Err(AwsFailure::UntrustedHost { host });
    }
    let mut request = https.local.get(parsed);
    // The token changes; a file of it is read each time.
    let token = match environment.file("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        Some(path) => Some(read(path).await?),
        None => environment
            .get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
            .map(str::to_owned),
    };
    if let Some(token) = token {
        request = request.header("authorization", token);
    }
    written(&send(request).await?)
}

/// Asks the instance's metadata service, version 2.
async fn instance(https: &Https, metadata: &str) -> Result<RoleKeys, AwsFailure> {
    let session = https
        .local
        .put(format!("{metadata}/latest/api/token"))
        .header("x-aws-ec2-metadata-token-ttl-seconds", SESSION_SECONDS);
    let session = send(session).await?;
    let session = String::from_utf8_lossy(&session).trim().to_owned();
    let get = async |path: &str| {
        let request = https
            .local
            .get(format!(
                "{metadata}/latest/meta-data/iam/security-credentials/{path}"
            ))
            .header("x-aws-ec2-metadata-token", &session);
        send(request).await
    };
    let roles = get("").await?;
    let roles = String::from_utf8_lossy(&roles);
    let role = roles.lines().next().unwrap_or_default().trim();
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@-_".contains(&byte);
    if role.is_empty() || !role.bytes().all(fine) {
        return Err(AwsFailure::NoProfile);
    }
    written(&get(role).await?)
}
