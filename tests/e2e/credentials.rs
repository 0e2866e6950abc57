//! Lazy pulls from registries that want credentials. Needs root, FUSE, containerd, runc,
//! docker-registry and the two programs.

use std::path::Path;

use crate::support::{NAMESPACE, NO_BACKGROUND, lazy_mounts, run};
use soci_testkit::image::{small_image, small_image_data};
use soci_testkit::{Auth, SociCli, SociDaemonOptions, Stack, StackOptions, TestRoot};

const USER: &str = "reader";
const PASSWORD: &str = "correct-horse-battery";

/// A daemon whose Docker configuration lies in `docker`, which is still empty.
fn stack(docker: &Path) -> Stack {
    let mut daemon = SociDaemonOptions::with_config(NO_BACKGROUND);
    let docker = docker.to_str().unwrap().to_owned();
    daemon
        .environment
        .push(("DOCKER_CONFIG".to_owned(), docker));
    Stack::start(StackOptions {
        daemon,
        ..StackOptions::default()
    })
    .unwrap()
}

/// What `docker login` leaves behind.
fn log_in(docker: &Path, registry: &str) {
    // base64 of `reader:correct-horse-battery`
    let auth = "cmVhZGVyOmNvcnJlY3QtaG9yc2UtYmF0dGVyeQ==";
    let config = format!(r#"{{"auths":{{"{registry}":{{"auth":"{auth}"}}}}}}"#);
    std::fs::write(docker.join("config.json"), config).unwrap();
}

/// Converts, pulls and runs through a proxy that wants these credentials, and looks for the
/// password in everything that was said.
fn lazily_with(auth: Auth) {
    let root = TestRoot::new().unwrap();
    let docker = root.dir("docker").unwrap();
    let layout = root.dir("layout").unwrap();
    small_image(&layout, "small").unwrap();
    let stack = stack(&docker);
    stack.proxy.demand(auth);
    let reference = stack.reference("private:soci");
    log_in(&docker, &stack.proxy.address().to_string());

    let target = format!("docker://{reference}");
    let user = format!("{USER}:{PASSWORD}");
    let layout = layout.display().to_string();
    let convert = [
        "convert",
        "--standalone",
        "--min-layer-size",
        "0",
        &layout,
        &target,
    ];
    let refused = SociCli::standalone()
        .unwrap()
        .command(convert)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("401") && said.contains("--user"), "{said}");
    let with_user = convert.into_iter().chain(["--user", &user]);
    let mut said = SociCli::standalone().unwrap().output(with_user).unwrap();

    let soci = stack.soci(NAMESPACE).unwrap();
    said += &soci
        .output(["pull", "--plain-http", "--user", &user, &reference])
        .unwrap();
    assert!(lazy_mounts(&stack) > 0, "{said}");
    let digest = soci_oci::Digest::of(&small_image_data().to_vec()).hex();
    let output = run(&stack, &reference, &["/bin/sha256sum", "/data/noise"]);
    assert!(output.starts_with(&digest), "{output}");
    said += &stack.daemon.log().tail(1000);
    for secret in [PASSWORD, "cmVhZGVyOmNvcnJlY3Q"] {
        assert!(!said.contains(secret), "{said}");
    }
}

#[test]
fn a_registry_that_requires_a_password_serves_lazy_layers_and_the_password_is_never_logged() {
    lazily_with(Auth::Basic {
        user: USER.to_owned(),
        password: PASSWORD.to_owned(),
    });
}

#[test]
fn tokens_that_expire_all_the_time_are_renewed_while_a_layer_is_read() {
    lazily_with(Auth::Bearer {
        user: Some((USER.to_owned(), PASSWORD.to_owned())),
        uses: Some(8),
    });
}
