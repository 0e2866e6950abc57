//! Lazy pulls from registries that want credentials. Needs root, FUSE, containerd, runc,
//! docker-registry and the two programs.

use std::path::Path;

use crate::eager::{as_fallback, pulls_without_index};
use crate::support::{NAMESPACE, NO_BACKGROUND, indexed, lazy_mounts, run, wait_for_lazy_mounts};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use soci_testkit::fake::{Fake, serve};
use soci_testkit::image::{small_image, small_image_data};
use soci_testkit::{Auth, Run, SociCli, SociDaemonOptions, Stack, StackOptions, TestRoot};

const USER: &str = "reader";
const PASSWORD: &str = "correct-horse-battery";

/// A daemon whose Docker configuration lies in `docker`, which is still empty.
fn stack(docker: &Path) -> Stack {
    let config = format!("{NO_BACKGROUND}{}", as_fallback());
    let mut daemon = SociDaemonOptions::with_config(&config);
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
    let name = stack.reference("private");
    let options = ["--plain-http", "--user", &user];
    said += &pulls_without_index(&stack, &soci, &options, (&name, "private"));
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

const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const OTHER: &str = "registry.invalid";
const ECR_PASSWORD: &str = "password-of-the-role";

/// A credential provider plugin of the kubelet, and its configuration.
fn plugin(folder: &Path) {
    let config = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
         - name: plugin\n  matchImages: ['{OTHER}']\n  defaultCacheDuration: 1h\n  \
         apiVersion: credentialprovider.kubelet.k8s.io/v1\n"
    );
    std::fs::write(folder.join("config.yaml"), config).unwrap();
    let response = format!(
        r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","auth":{{"{OTHER}":{{"username":"{USER}","password":"{PASSWORD}"}}}}}}"#
    );
    let request = folder.join("request");
    let program = format!(
        "#!/bin/sh\ncat >> {}\ncat <<EOF\n{response}\nEOF\n",
        request.display()
    );
    soci_testkit::write_program(&folder.join("plugin"), &program).unwrap();
}

/// The role of the node for one registry, a plugin of the kubelet for another; both are reached as
/// `hosts.toml` says.
#[test]
fn the_role_of_the_node_and_a_plugin_of_the_kubelet_read_lazy_layers() {
    let root = TestRoot::new().unwrap();
    let layout = root.dir("layout").unwrap();
    small_image(&layout, "small").unwrap();
    let (hosts, plugins) = (root.dir("certs.d").unwrap(), root.dir("plugins").unwrap());
    plugin(&plugins);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let aws = runtime.block_on(Fake::start(|_, request| {
        let token = BASE64.encode(format!("AWS:{ECR_PASSWORD}"));
        let response = format!(
            r#"{{"authorizationData":[{{"authorizationToken":"{token}","expiresAt":4102444800.0}}]}}"#
        );
        Some(serve(request, &response.into()))
    }));
    let config = format!(
        "{NO_BACKGROUND}{}[ecr_keychain]\nenable_keychain = true\n\
         [kubelet_credential_providers]\nconfig_path = '{plugins}/config.yaml'\nbin_dir = '{plugins}'\n\
         [resolver]\nconfig_path = '{hosts}'\n",
        as_fallback(),
        plugins = plugins.display(),
        hosts = hosts.display()
    );
    let mut daemon = SociDaemonOptions::with_config(&config);
    let docker = root.dir("docker").unwrap().display().to_string();
    let environment = [
        ("DOCKER_CONFIG", docker),
        ("AWS_ENDPOINT_URL", aws.url("")),
        ("AWS_ACCESS_KEY_ID", "ROLE".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "key-of-the-role".to_owned()),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value));
    daemon.environment.extend(environment);
    let stack = Stack::start(StackOptions {
        daemon,
        ..StackOptions::default()
    })
    .unwrap();
    let accounts = [
        ("of-ecr", ECR, "AWS", ECR_PASSWORD),
        ("of-other", OTHER, USER, PASSWORD),
    ];
    let demanded = accounts.map(|(repository, _, user, password)| {
        (
            repository.to_owned(),
            (user.to_owned(), password.to_owned()),
        )
    });
    stack.proxy.demand(Auth::BasicByRepository(demanded.into()));
    let digest = soci_oci::Digest::of(&small_image_data().to_vec()).hex();
    let mut said = String::new();
    let hosts_dir = hosts.display().to_string();
    for (repository, registry, user, password) in accounts {
        indexed(&stack, &layout, repository);
        let folder = root.dir(&format!("certs.d/{registry}")).unwrap();
        let server = format!("server = \"http://{}\"\n", stack.proxy.address());
        std::fs::write(folder.join("hosts.toml"), server).unwrap();
        let reference = format!("{registry}/{repository}:soci");
        let user = format!("{user}:{password}");
        // Each image has mounts of its own.
        let namespace = format!("{NAMESPACE}-{repository}");
        let soci = stack.soci(&namespace).unwrap();
        let options = ["--hosts-dir", &hosts_dir, "--user", &user];
        let pull = ["pull"].into_iter().chain(options);
        said += &soci.output(pull.chain([reference.as_str()])).unwrap();
        assert!(lazy_mounts(&stack) > 0, "{}", stack.log_tails());
        let check = Run::new(&reference, "soci").command(["/bin/sha256sum", "/data/noise"]);
        let output = stack.containerd.ctr(&namespace).run_ok(&check);
        let output = output.unwrap_or_else(|error| panic!("{error:#}\n{}", stack.log_tails()));
        assert!(output.starts_with(&digest), "{output}");
        // Nothing is left for the other registry to be read from.
        stack
            .containerd
            .ctr(&namespace)
            .output(["images", "rm", "--sync", &reference])
            .unwrap();
        wait_for_lazy_mounts(&stack.daemon.root(), 0);
        let name = format!("{registry}/{repository}");
        said += &pulls_without_index(&stack, &soci, &options, (&name, repository));
    }
    assert!(!aws.requests().is_empty());
    let signed = |request: &soci_testkit::fake::Received| {
        let authorization = request.header("authorization").unwrap_or_default();
        authorization.contains("Credential=ROLE/")
    };
    assert!(aws.requests().iter().all(signed));
    let asked = std::fs::read_to_string(plugins.join("request")).unwrap();
    assert!(asked.contains(OTHER) && !asked.contains(ECR), "{asked}");
    said += &stack.daemon.log().tail(1000);
    for secret in [PASSWORD, ECR_PASSWORD, "key-of-the-role"] {
        assert!(!said.contains(secret), "{said}");
    }
}
