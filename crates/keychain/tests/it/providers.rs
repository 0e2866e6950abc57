//! The kubelet's credential provider plugins, as programs that are really run.

use std::path::Path;
use std::time::Duration;

use soci_keychain::{CredentialProviders, ProviderSettings};
use soci_oci::Reference;
use soci_registry::{Credential, CredentialError, Credentials as _};

fn configure(folder: &Path, providers: &[(&str, &str)]) {
    let providers: String = providers
        .iter()
        .map(|(name, images)| {
            format!(
                "- name: {name}\n  matchImages: [{images}]\n  defaultCacheDuration: 1h\n  \
                 apiVersion: credentialprovider.kubelet.k8s.io/v1\n  args: [get]\n  \
                 env: [{{name: SECRET, value: hunter2}}]\n"
            )
        })
        .collect();
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n{providers}"
    );
    std::fs::write(folder.join("config.yaml"), text).unwrap();
}

/// A program that counts its runs and keeps its last request.
fn program(folder: &Path, name: &str, body: &str) {
    let path = folder.join(name);
    let at = folder.display();
    let text =
        format!("#!/bin/sh\ncat > {at}/{name}.request\necho x >> {at}/{name}.runs\n{body}\n");
    soci_testkit::write_program(&path, &text).unwrap();
}

fn runs(folder: &Path, name: &str) -> usize {
    let runs = std::fs::read_to_string(folder.join(format!("{name}.runs")));
    runs.unwrap_or_default().lines().count()
}

/// A response of a kind that keeps credentials for `key`, with a password for each pattern.
fn response(key: &str, extra: &str, patterns: &[&str]) -> String {
    let auth: Vec<String> = patterns
        .iter()
        .map(|pattern| format!(r#""{pattern}":{{"username":"$1","password":"$SECRET-{pattern}"}}"#))
        .collect();
    let json = format!(
        r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"{key}"{extra},"auth":{{{}}}}}"#,
        auth.join(",")
    );
    format!("cat <<EOF\n{json}\nEOF")
}

fn providers(folder: &Path, limit: Duration) -> CredentialProviders {
    CredentialProviders::new(ProviderSettings {
        config: folder.join("config.yaml"),
        bin_dir: folder.to_owned(),
        run_limit: Some(limit),
    })
}

const LONG: Duration = Duration::from_secs(60);

async fn passwords(
    providers: &CredentialProviders,
    image: &str,
) -> Result<Vec<String>, CredentialError> {
    let image: Reference = image.parse().unwrap();
    let found = providers.candidates(image.registry(), Some(&image)).await?;
    Ok(found
        .into_iter()
        .map(|candidate| match candidate.credential {
            Credential::Basic { user, password } => {
                assert_eq!(user, "get");
                password
            }
            other => panic!("{other:?}"),
        })
        .collect())
}

#[tokio::test]
async fn programs_are_run_for_their_images_and_their_responses_kept_as_they_say() {
    for (key, extra, runs_expected) in [
        ("Image", "", 3),
        ("Registry", "", 2),
        ("Global", "", 1),
        // Not kept at all.
        ("Registry", r#","cacheDuration":"0s""#, 4),
        ("Registry", r#","cacheDuration":"6h0m0s""#, 2),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        configure(
            folder,
            &[("one", "'*.example', 'r.example'"), ("other", "other.test")],
        );
        program(folder, "one", &response(key, extra, &["*.example"]));
        program(folder, "other", &response(key, extra, &["other.test"]));
        let providers = providers(folder, LONG);
        for image in [
            "a.example/x:1",
            "a.example/x:2",
            "a.example/y:1",
            "b.example/x:1",
        ] {
            let found = passwords(&providers, image).await.unwrap();
            assert_eq!(found, ["hunter2-*.example"], "{key} {image}");
        }
        assert_eq!(runs(folder, "one"), runs_expected, "{key}{extra}");
        assert_eq!(runs(folder, "other"), 0);
        let request = std::fs::read_to_string(folder.join("one.request")).unwrap();
        for part in [
            r#""apiVersion":"credentialprovider.kubelet.k8s.io/v1""#,
            r#""kind":"CredentialProviderRequest""#,
            ".example/",
        ] {
            assert!(request.contains(part), "{request}");
        }
        assert!(
            passwords(&providers, "else.test/x:1")
                .await
                .unwrap()
                .is_empty()
        );
        assert!(!format!("{providers:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn credentials_for_other_hosts_and_repositories_do_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    configure(folder, &[("one", "'*.example'")]);
    let patterns = [
        "other.example",
        "r.example/team",
        "r.example/other",
        "*.test",
    ];
    program(folder, "one", &response("Image", "", &patterns));
    let providers = providers(folder, LONG);
    let found = passwords(&providers, "r.example/team/app:1").await.unwrap();
    assert_eq!(found, ["hunter2-r.example/team"]);
}

#[tokio::test]
async fn a_program_that_hangs_fails_or_prints_garbage_is_named_once_and_quoted_never() {
    for (body, limit, part) in [
        // Time enough for it to count its run.
        ("exec sleep 600", Duration::from_secs(5), "did not end"),
        ("echo hunter2; exit 3", LONG, "failed"),
        ("echo hunter2", LONG, "no CredentialProviderResponse"),
        ("head -c 2000000 /dev/zero", LONG, "more than"),
        (
            r#"echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1alpha1","cacheKeyType":"Image"}'"#,
            LONG,
            "another kind or version",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        configure(folder, &[("bad", "'*.example'"), ("good", "good.example")]);
        program(folder, "bad", body);
        program(folder, "good", &response("Image", "", &["good.example"]));
        let providers = providers(folder, limit);
        for _ in 0..3 {
            let error = passwords(&providers, "r.example/a:1")
                .await
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("bad") && error.contains(part),
                "{body}: {error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert_eq!(runs(folder, "bad"), 1, "{body}");
        // Another program is asked all the same.
        let found = passwords(&providers, "good.example/a:1").await.unwrap();
        assert_eq!(found, ["hunter2-good.example"]);
    }
    let folder = tempfile::tempdir().unwrap();
    configure(folder.path(), &[("missing", "'*.example'")]);
    let providers = providers(folder.path(), LONG);
    let error = passwords(&providers, "r.example/a:1")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("missing cannot be started"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_cannot_be_used_is_named_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let providers = providers(folder, LONG);
    let error = passwords(&providers, "r.example/a:1")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("config.yaml"), "{error}");
    configure(folder, &[("one", "other.test")]);
    tokio::time::advance(Duration::from_secs(11)).await;
    assert!(
        passwords(&providers, "r.example/a:1")
            .await
            .unwrap()
            .is_empty()
    );
}
