//! No secret shows in what is logged or reported.

use std::sync::Arc;

use soci_registry::{
    ChainedCredentials, Client, ClientIdentity, Credential, NoCredentials, StaticCredentials,
    TlsSettings,
};

use crate::fake::{Fake, With, basic, client_with, config, descriptor, redirect, status};

const SECRET: &str = "hunter2-s3cret";

#[tokio::test]
async fn debug_and_display_show_no_secret() {
    let credentials = [
        basic("me", SECRET),
        Credential::IdentityToken(SECRET.to_owned()),
        Credential::BearerToken(SECRET.to_owned()),
    ];
    for credential in credentials {
        assert!(!format!("{credential:?}").contains(SECRET));
        let fixed = StaticCredentials::new("localhost", credential);
        assert!(!format!("{fixed:?}").contains(SECRET));
        let chain = ChainedCredentials::new(vec![Arc::new(NoCredentials), Arc::new(fixed)]);
        assert!(!format!("{chain:?}").contains(SECRET));
        let mut config = config();
        config.tls = Arc::new(TlsSettings {
            identity: Some(ClientIdentity { pem: SECRET.into() }),
            ..TlsSettings::default()
        });
        assert!(!format!("{config:?}").contains(SECRET));
        let client = Client::new(config, Arc::new(chain)).unwrap();
        assert!(!format!("{client:?}").contains(SECRET));
        let reference = "localhost/a/b:t".parse().unwrap();
        let blob = client.blob(&reference, &descriptor(b"abc"));
        assert!(!format!("{blob:?}").contains(SECRET));
    }
}

#[tokio::test]
async fn errors_show_no_secret_even_if_the_server_repeats_it() {
    let token = format!("Bearer {SECRET}-token");
    // Refused by the token server, by the registry, and by where it redirects to.
    for stage in 0..4 {
        let accepted = token.clone();
        let fake = Fake::start(move |_, request| {
            let echo = format!("{:?} {}", request.headers, request.query);
            let host = request.header("host").unwrap();
            Some(if request.path == "/token" {
                match stage {
                    0 => status(403).body(format!("no {SECRET} for you, {SECRET}")),
                    1 => status(200).body(format!(r#"{{"token":["{SECRET}"]}}"#)),
                    _ => status(200).body(format!(r#"{{"token":"{SECRET}-token"}}"#)),
                }
            } else if request.header("authorization") != Some(&accepted) {
                let challenge = format!(r#"Bearer realm="http://{host}/token?x={SECRET}""#);
                status(401).with("www-authenticate", &challenge)
            } else if stage == 2 {
                status(403).body(echo)
            } else if request.path.starts_with("/v2") {
                redirect(
                    307,
                    &format!("http://x:{SECRET}@127.0.0.1:1/x?sig={SECRET}"),
                )
            } else {
                status(404)
            })
        })
        .await;
        let client = client_with(StaticCredentials::new(fake.host(), basic("me", SECRET)));
        let error = client
            .manifest(&fake.reference("a/b:t"), "t")
            .await
            .unwrap_err();
        let text = format!("{error} {error:?} {error:#?}");
        assert!(!text.contains(SECRET), "stage {stage}: {text}");
    }
}
