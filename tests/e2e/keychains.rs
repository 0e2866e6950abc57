//! The kubelet's way: pulls through the daemon's CRI image service, in front of containerd's own. Needs
//! root, FUSE, containerd with CRI, docker-registry and the two programs.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use crate::eager::{as_fallback, pulls_without_index};
use crate::support::releases::on_each_containerd;
use crate::support::{NO_BACKGROUND, lazy_mounts, lazy_mounts_below, stack, wait_for_lazy_mounts};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use soci_testkit::cri::api::image_service_client::ImageServiceClient;
use soci_testkit::cri::api::{
    AuthConfig, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ListImagesRequest,
    PullImageRequest, RemoveImageRequest,
};
use soci_testkit::image::small_image;
use soci_testkit::{
    Auth, Containerd, ContainerdOptions, CriOptions, Proxy, Registry, Release, SociCli, SociDaemon,
    SociDaemonOptions, TestRoot,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

const USER: &str = "reader";
const PASSWORD: &str = "correct-horse-battery";

pub(crate) type Images = ImageServiceClient<Channel>;

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec {
        image: image.to_owned(),
        ..ImageSpec::default()
    })
}

async fn pull(images: &mut Images, image: &str, password: &str) -> Result<String, Status> {
    let user = (!password.is_empty()).then_some((USER, password));
    pull_as(images, image, user).await
}

pub(crate) async fn pull_as(
    images: &mut Images,
    image: &str,
    user: Option<(&str, &str)>,
) -> Result<String, Status> {
    let request = PullImageRequest {
        image: spec(image),
        auth: user.map(|(user, password)| AuthConfig {
            username: user.to_owned(),
            password: password.to_owned(),
            ..AuthConfig::default()
        }),
        ..PullImageRequest::default()
    };
    let answer = images.pull_image(request).await?;
    Ok(answer.into_inner().image_ref)
}

/// Pulls; containerd may still back off from a daemon that was started again.
pub(crate) async fn pull_patiently(
    images: &mut Images,
    image: &str,
    user: Option<(&str, &str)>,
) -> Result<String, Status> {
    let mut pulled = pull_as(images, image, user).await;
    for _ in 0..60 {
        match &pulled {
            Err(status)
                if status.code() == Code::Unavailable
                    || status.message().contains("unavailable") =>
            {
                tokio::time::sleep(Duration::from_millis(500)).await;
                pulled = pull_as(images, image, user).await;
            }
            _ => break,
        }
    }
    pulled
}

pub(crate) async fn remove(images: &mut Images, image: &str) {
    let image = spec(image);
    let removed = images.remove_image(RemoveImageRequest { image });
    removed.await.unwrap();
}

pub(crate) struct Node {
    pub(crate) containerd: Containerd,
    pub(crate) daemon: SociDaemon,
    pub(crate) proxy: Proxy,
    pub(crate) registry: Registry,
}

impl Node {
    pub(crate) fn start(release: Release, docker: &Path) -> Self {
        let registry = Registry::start().unwrap();
        let proxy = Proxy::start(registry.address()).unwrap();
        let mut options = SociDaemonOptions::with_config(NO_BACKGROUND);
        let docker = ("DOCKER_CONFIG".to_owned(), docker.display().to_string());
        options.environment.push(docker);
        let folder = TestRoot::new().unwrap();
        options.containerd = Some(Containerd::address_in(&folder));
        let mut daemon = SociDaemon::start(options.clone()).unwrap();
        let options_of_containerd = ContainerdOptions {
            // No pod is started.
            cri: Some(CriOptions::with_soci("localhost/pause:none")),
            release,
            ..ContainerdOptions::with_soci(daemon.socket())
        };
        let containerd = Containerd::start_in(folder, &options_of_containerd).unwrap();
        // Each must know the socket of the other.
        options.config += &format!(
            "[cri_keychain]\nenable_keychain = true\nimage_service_path = {:?}\n",
            containerd.address().display().to_string()
        );
        daemon.terminate().unwrap();
        daemon.start_again_with(options).unwrap();
        Self {
            containerd,
            daemon,
            proxy,
            registry,
        }
    }

    pub(crate) fn lazy_mounts(&self) -> usize {
        lazy_mounts_below(&self.daemon.root())
    }
}

/// A cluster whose API server answers every list with one secret, and whose watches are quiet.
fn cluster(secret: String) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (mut connection, secret) = (connection.unwrap(), secret.clone());
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    if connection.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.extend(byte);
                }
                let head = String::from_utf8(head).unwrap();
                assert!(head.starts_with("GET /api/v1/secrets?"), "{head}");
                if head.contains("watch=true") {
                    // Until the daemon ends.
                    let _ = connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
                    let _ = connection.read(&mut byte);
                    return;
                }
                let list = format!(
                    r#"{{"kind":"SecretList","metadata":{{"resourceVersion":"1"}},"items":[{secret}]}}"#
                );
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{list}",
                    list.len()
                );
                let _ = connection.write_all(answer.as_bytes());
            });
        }
    });
    address
}

#[test]
fn image_pull_secrets_of_the_cluster_read_lazy_layers_also_after_a_restart() {
    let root = TestRoot::new().unwrap();
    let layout = root.dir("layout").unwrap();
    let built = small_image(&layout, "small").unwrap();
    let docker = root.dir("docker").unwrap();
    let mut stack = stack(NO_BACKGROUND);
    let proxy = stack.proxy.address();
    stack.proxy.demand(Auth::Basic {
        user: USER.to_owned(),
        password: PASSWORD.to_owned(),
    });
    let docker_config = BASE64.encode(format!(
        r#"{{"auths":{{"{proxy}":{{"username":"{USER}","password":"{PASSWORD}"}}}}}}"#
    ));
    let api = cluster(format!(
        r#"{{"metadata":{{"name":"pull","namespace":"apps","resourceVersion":"1"}},"data":{{".dockerconfigjson":"{docker_config}"}}}}"#
    ));
    let kubeconfig = root.path().join("kubeconfig");
    std::fs::write(
        &kubeconfig,
        format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: c}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'http://{api}'}}}}]\n"
        ),
    )
    .unwrap();
    let mut options = SociDaemonOptions::with_config(&format!(
        "{NO_BACKGROUND}{}[kubeconfig_keychain]\nenable_keychain = true\nkubeconfig_path = {kubeconfig:?}\n",
        as_fallback()
    ));
    let docker = ("DOCKER_CONFIG".to_owned(), docker.display().to_string());
    options.environment.push(docker);
    stack.daemon.terminate().unwrap();
    stack.daemon.start_again_with(options).unwrap();
    stack.wait_for_snapshotter().unwrap();

    let reference = stack.reference("private:soci");
    let user = format!("{USER}:{PASSWORD}");
    convert(&layout, &reference, &user);
    let soci = stack.soci("e2e").unwrap();
    soci.output(["pull", "--plain-http", "--user", &user, &reference])
        .unwrap();
    assert_eq!(
        lazy_mounts(&stack),
        built.layers.len(),
        "{}",
        stack.log_tails()
    );
    let name = stack.reference("private");
    let options = ["--plain-http", "--user", &user];
    pulls_without_index(&stack, &soci, &options, (&name, "private"));
    assert!(!stack.daemon.log().all().join("\n").contains(PASSWORD));

    // Nothing that was fetched is there: the layers are mounted with what the cluster gives.
    stack.daemon.interrupt().unwrap();
    for folder in ["soci", "content"] {
        std::fs::remove_dir_all(stack.daemon.root().join(folder)).unwrap();
    }
    stack.daemon.start_again().unwrap();
    wait_for_lazy_mounts(&stack.daemon.root(), built.layers.len());
}

fn convert(layout: &Path, reference: &str, user: &str) {
    let target = format!("docker://{reference}");
    let layout = layout.display().to_string();
    let options = ["--min-layer-size", "0", "--user", user];
    let soci = SociCli::standalone().unwrap();
    soci.convert(&options, &layout, &target).unwrap();
}

on_each_containerd! {
    the_kubelets_credentials_read_lazy_layers_until_the_image_is_removed,
}

fn the_kubelets_credentials_read_lazy_layers_until_the_image_is_removed(release: Release) {
    let root = TestRoot::new().unwrap();
    let layout = root.dir("layout").unwrap();
    let built = small_image(&layout, "small").unwrap();
    let node = Node::start(release, &root.dir("docker").unwrap());
    node.proxy.demand(Auth::Basic {
        user: USER.to_owned(),
        password: PASSWORD.to_owned(),
    });
    let image = format!("{}/private:soci", node.proxy.address());
    let user = format!("{USER}:{PASSWORD}");
    convert(&layout, &image, &user);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = containerd_client::connect(node.daemon.socket())
            .await
            .unwrap();
        let mut images = Images::new(channel);
        for wrong in ["", "wrong"] {
            pull(&mut images, &image, wrong).await.unwrap_err();
            assert_eq!(node.lazy_mounts(), 0);
        }
        let user = Some((USER, PASSWORD));
        let pulled = pull_patiently(&mut images, &image, user).await;
        let id =
            pulled.unwrap_or_else(|status| panic!("{status}\n{}", node.containerd.log().tail(20)));
        assert_eq!(
            node.lazy_mounts(),
            built.layers.len(),
            "{}",
            node.daemon.log().tail(20)
        );

        let listed = images.list_images(ListImagesRequest::default());
        let listed = listed.await.unwrap().into_inner();
        let found = listed.images.iter().find(|one| one.id == id).unwrap();
        assert!(found.repo_tags.contains(&image), "{found:?}");
        let status = images.image_status(ImageStatusRequest {
            image: spec(&image),
            ..ImageStatusRequest::default()
        });
        let status = status.await.unwrap().into_inner();
        assert_eq!(status.image.unwrap().id, id);
        let info = images.image_fs_info(ImageFsInfoRequest::default()).await;
        assert!(info.unwrap().into_inner().image_filesystems.len() <= 1);

        remove(&mut images, &image).await;
        for _ in 0..1800 {
            if node.lazy_mounts() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(node.lazy_mounts(), 0);
    });
    let log = node.daemon.log().all().join("\n");
    assert!(!log.contains(PASSWORD), "the password is in the log");
}
