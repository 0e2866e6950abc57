//! Amazon ECR with the role of the node or pod, against stand-ins of AWS's services.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use soci_keychain::{AwsEnvironment, EcrKeychain};
use soci_registry::{Credential, Credentials as _};
use soci_testkit::fake::{Fake, Received, With as _, network_address, redirect, status};

const REGISTRY: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// All of AWS's services at one address: what they were asked, and how they fail.
#[derive(Clone, Default)]
struct Aws {
    asked: Arc<Mutex<Vec<String>>>,
    /// Paths that answer with 500.
    fails: Arc<Mutex<Vec<&'static str>>>,
    /// Seconds for which ECR's passwords are valid.
    life: Arc<Mutex<f64>>,
}

fn keys(of: &str) -> String {
    format!(
        r#"{{"Code":"Success","AccessKeyId":"{of}","SecretAccessKey":"secret-of-{of}","Token":"session-of-{of}","Expiration":"2099-01-01T00:00:00Z"}}"#
    )
}

async fn answer(
    State(aws): State<Aws>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let header = |name: &str| {
        let value = headers.get(name).map(|value| value.to_str().unwrap());
        value.unwrap_or_default().to_owned()
    };
    let path = uri.path().to_owned();
    let target = header("x-amz-target");
    aws.asked
        .lock()
        .push(format!("{method} {path} {target}").trim().to_owned());
    if aws.fails.lock().iter().any(|fails| path.starts_with(fails)) {
        let text = r#"{"__type":"a.b#AccessDeniedException","message":"hunter2 is wrong"}"#;
        return (StatusCode::BAD_REQUEST, text.to_owned());
    }
    let refuse = || (StatusCode::UNAUTHORIZED, String::new());
    let answer = match (method, path.as_str()) {
        (Method::PUT, "/latest/api/token") => {
            if header("x-aws-ec2-metadata-token-ttl-seconds").is_empty() {
                return refuse();
            }
            "imds-session".to_owned()
        }
        (Method::GET, path) if path.starts_with("/latest/meta-data/iam/security-credentials/") => {
            if header("x-aws-ec2-metadata-token") != "imds-session" {
                return refuse();
            }
            match path.rsplit('/').next().unwrap() {
                "" => "node-role".to_owned(),
                "node-role" => keys("INSTANCE"),
                _ => return refuse(),
            }
        }
        (Method::GET, "/v1/credentials") => {
            if header("authorization") != "agent-token" {
                return refuse();
            }
            keys("POD")
        }
        (Method::POST, "/") if target.is_empty() => {
            let form = String::from_utf8(body.to_vec()).unwrap();
            for part in [
                "Action=AssumeRoleWithWebIdentity",
                "RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr",
                "WebIdentityToken=web-token",
            ] {
                assert!(form.contains(part), "{form}");
            }
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
             <AccessKeyId>WEB</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
             <SessionToken>session-of-WEB</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>\
             </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
                .to_owned()
        }
        (Method::POST, "/") => {
            let authorization = header("authorization");
            let (_, rest) = authorization.split_once("Credential=").unwrap();
            let (id, scope) = rest.split_once('/').unwrap();
            let session = header("x-amz-security-token");
            assert!(session.is_empty() || session == format!("session-of-{id}"));
            assert_eq!(session.is_empty(), id == "STATIC");
            let service = match target.as_str() {
                "SpencerFrontendService.GetAuthorizationToken" => "us-east-1/ecr-public",
                _ => "eu-west-1/ecr",
            };
            assert!(
                scope.contains(&format!("/{service}/aws4_request")),
                "{scope}"
            );
            let count = aws.asked.lock().len();
            let token = STANDARD.encode(format!("AWS:password-for-{id}-{count}"));
            let now = std::time::SystemTime::UNIX_EPOCH
                .elapsed()
                .unwrap()
                .as_secs_f64();
            let until = now + *aws.life.lock();
            let data = format!(r#"{{"authorizationToken":"{token}","expiresAt":{until}}}"#);
            match service {
                "eu-west-1/ecr" => format!(r#"{{"authorizationData":[{data}]}}"#),
                _ => format!(r#"{{"authorizationData":{data}}}"#),
            }
        }
        _ => return (StatusCode::NOT_FOUND, String::new()),
    };
    (StatusCode::OK, answer)
}

impl Aws {
    async fn start() -> (Self, String) {
        let aws = Self::default();
        *aws.life.lock() = 43_200.0;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(aws.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (aws, url)
    }
}

fn keychain(url: &str, variables: &[(&str, &str)]) -> EcrKeychain {
    let mut all = vec![
        ("AWS_ENDPOINT_URL", url),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url),
    ];
    all.extend(variables);
    EcrKeychain::new(AwsEnvironment::of(&all))
}

async fn password(keychain: &EcrKeychain, host: &str) -> Option<String> {
    match keychain.lookup(host, None).await.unwrap()? {
        Credential::Basic { user, password } => {
            assert_eq!(user, "AWS");
            Some(password)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_kind_of_role_gets_a_password_and_other_registries_get_none() {
    let (aws, url) = Aws::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (web, agent) = (file("web", "web-token\n"), file("agent", "agent-token\n"));
    let full = format!("{url}/v1/credentials");
    let role = ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r");
    let cases: [(&str, Vec<(&str, &str)>); 5] = [
        ("INSTANCE", vec![]),
        (
            "POD",
            vec![
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &full),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &agent),
            ],
        ),
        (
            "POD",
            vec![
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &full),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "agent-token"),
            ],
        ),
        ("WEB", vec![("AWS_WEB_IDENTITY_TOKEN_FILE", &web), role]),
        (
            "STATIC",
            vec![
                ("AWS_ACCESS_KEY_ID", "STATIC"),
                ("AWS_SECRET_ACCESS_KEY", "s"),
                // Comes later in the chain.
                ("AWS_WEB_IDENTITY_TOKEN_FILE", &web),
            ],
        ),
    ];
    for (expected, variables) in cases {
        let keychain = keychain(&url, &variables);
        let first = password(&keychain, REGISTRY).await.unwrap();
        let start = format!("password-for-{expected}-");
        assert!(first.starts_with(&start), "{expected}: {first}");
        // Kept, also for another account's registry of the region.
        let asked = aws.asked.lock().len();
        let other = REGISTRY.replace("123456789012", "210987654321");
        for host in [REGISTRY, &other] {
            assert_eq!(password(&keychain, host).await.as_ref(), Some(&first));
        }
        for host in [
            "docker.io",
            "r.example",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil",
        ] {
            assert_eq!(password(&keychain, host).await, None);
        }
        assert_eq!(aws.asked.lock().len(), asked);
        let public = password(&keychain, "public.ecr.aws").await.unwrap();
        assert!(public.starts_with(&start) && public != first, "{public}");
    }
}

#[tokio::test]
async fn passwords_are_renewed_before_they_end() {
    let (aws, url) = Aws::start().await;
    *aws.life.lock() = 10.0;
    let keychain = keychain(&url, &[]);
    let first = password(&keychain, REGISTRY).await;
    *aws.life.lock() = 43_200.0;
    let second = password(&keychain, REGISTRY).await;
    assert_ne!(first, second);
    assert_eq!(password(&keychain, REGISTRY).await, second);
    // The keys were kept.
    let asked = aws.asked.lock();
    assert_eq!(asked.iter().filter(|one| one.starts_with("PUT")).count(), 1);
}

#[tokio::test]
async fn failures_name_the_service_hold_no_secret_and_count_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing").display().to_string();
    for (fails, variables, part) in [
        (
            "/latest",
            vec![],
            "metadata service: status 400 (AccessDeniedException)",
        ),
        ("/latest/meta-data", vec![], "metadata service"),
        (
            "/",
            vec![
                ("AWS_ACCESS_KEY_ID", "A"),
                ("AWS_SECRET_ACCESS_KEY", "hunter2"),
            ],
            "GetAuthorizationToken: status 400",
        ),
        (
            "-",
            vec![("AWS_WEB_IDENTITY_TOKEN_FILE", missing.as_str())],
            "missing",
        ),
        (
            "-",
            vec![(
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                "http://evil.example/x",
            )],
            "evil.example",
        ),
        (
            "-",
            vec![("AWS_EC2_METADATA_DISABLED", "true")],
            "AWS_EC2_METADATA_DISABLED",
        ),
    ] {
        let (aws, url) = Aws::start().await;
        aws.fails.lock().push(fails);
        let keychain = keychain(&url, &variables);
        let error = keychain
            .lookup(REGISTRY, None)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{fails}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
        let asked = aws.asked.lock().len();
        assert_eq!(
            keychain
                .lookup(REGISTRY, None)
                .await
                .unwrap_err()
                .to_string(),
            error
        );
        assert_eq!(aws.asked.lock().len(), asked, "{part}");
        assert!(!format!("{keychain:?}").contains("hunter2"));
    }
}

/// Looks a password up that there is none of. Returns why.
async fn failure(url: &str, variables: &[(&str, &str)]) -> String {
    let looked_up = keychain(url, variables).lookup(REGISTRY, None).await;
    looked_up.unwrap_err().to_string()
}

#[tokio::test]
async fn the_containers_token_leaves_this_machine_by_https_only() {
    let agent = Fake::start_at(network_address(), |_, _| Some(status(200).body(keys("X")))).await;
    let error = failure(
        "http://127.0.0.1:1",
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent.url("/v1")),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "agent-token"),
        ],
    )
    .await;
    let part = "neither this machine, an agent of ECS or EKS, nor reached by https";
    assert!(error.contains(part), "{error}");
    assert_eq!(agent.requests().len(), 0);
}

#[tokio::test]
async fn keys_and_tokens_follow_no_redirect() {
    let elsewhere = Fake::start(|_, _| Some(status(200).body("x"))).await;
    let target = elsewhere.url("/");
    let aws = Fake::start(move |_, _| Some(redirect(307, &target))).await;
    let own_keys = [
        ("AWS_ACCESS_KEY_ID", "A"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
    ];
    for variables in [&own_keys[..], &[]] {
        let error = failure(&aws.url(""), variables).await;
        assert!(error.contains("status 307"), "{error}");
    }
    assert_eq!(aws.requests().len(), 2);
    assert_eq!(elsewhere.requests().len(), 0);
}

/// A metadata service with a role of this name.
fn metadata(role: &'static str) -> impl Fn(usize, &Received) -> Option<axum::response::Response> {
    move |number, _| {
        Some(match number {
            0 => status(200).body("imds-session"),
            1 => status(200).body(role),
            _ => status(200).body(keys("INSTANCE")),
        })
    }
}

#[tokio::test]
async fn the_name_of_a_role_is_not_a_path() {
    for role in ["node-role/../../../evil?x", "..%2fevil", "a b", ""] {
        let metadata = Fake::start(metadata(role)).await;
        let error = failure(&metadata.url(""), &[]).await;
        assert!(error.contains("no profile"), "{role:?}: {error}");
        assert_eq!(metadata.requests().len(), 2, "{role:?}");
    }
}

#[tokio::test]
async fn a_response_of_a_service_over_256_kib_is_refused() {
    for (length, part) in [
        (256 << 10, "no profile"),
        ((256 << 10) + 1, "more than 262144 bytes"),
    ] {
        let metadata = Fake::start(move |number, _| {
            Some(match number {
                0 => status(200).body("imds-session"),
                _ => status(200).body(" ".repeat(length)),
            })
        })
        .await;
        let error = failure(&metadata.url(""), &[]).await;
        assert!(error.contains(part), "{error}");
    }
}
