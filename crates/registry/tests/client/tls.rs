//! TLS. Loopback registries are spoken to in plain HTTP, so TLS is reached through a redirect.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::Version;
use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use registry::{BlobSource, Client, ClientConfig, ErrorKind, NoCredentials, RemoteBlob};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::fake::{Fake, With, config, descriptor, noise, redirect, status};

/// Serves the whole of `data` at `https://localhost:<port>`, offering `protocols`.
struct Secure {
    port: u16,
    /// The certificate, which is its own authority.
    pem: String,
    versions: Arc<Mutex<Vec<Version>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Secure {
    async fn start(data: Bytes, protocols: &[&str]) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let versions: Arc<Mutex<Vec<Version>>> = Arc::default();
        let seen = Arc::clone(&versions);
        let app = Router::new().fallback(move |request: Request| {
            seen.lock().push(request.version());
            let data = data.clone();
            async move { status(200).body(data) }
        });
        let task = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (acceptor, app) = (acceptor.clone(), app.clone());
                tokio::spawn(async move {
                    // A client that does not trust us hangs up here.
                    if let Ok(stream) = acceptor.accept(connection).await {
                        let service = TowerToHyperService::new(app);
                        let _ = Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    }
                });
            }
        });
        Self {
            port,
            pem: made.cert.pem(),
            versions,
            task,
        }
    }

    /// A blob whose registry redirects to this server, read with `config`.
    async fn blob(&self, data: &Bytes, config: ClientConfig) -> (Fake, RemoteBlob) {
        let target = format!("https://localhost:{}/x", self.port);
        let fake = Fake::start(move |_, _| Some(redirect(307, &target))).await;
        let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
        let blob = client.blob(&fake.reference("a/b:t"), &descriptor(data));
        (fake, blob)
    }
}

#[tokio::test]
async fn a_configured_authority_is_trusted_and_h2_used_where_offered() {
    let data = noise(1000);
    for (protocols, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
    ] {
        let server = Secure::start(data.clone(), protocols).await;
        let mut config = config();
        config.extra_ca = vec![server.pem.clone().into_bytes()];
        let (_fake, blob) = server.blob(&data, config).await;
        assert_eq!(blob.read_range(0..1000).await.unwrap(), data);
        assert_eq!(*server.versions.lock(), [version]);
    }
}

#[tokio::test]
async fn an_unknown_authority_is_refused_unless_verification_is_off() {
    let data = noise(1000);
    let server = Secure::start(data.clone(), &["h2"]).await;
    let other = Secure::start(data.clone(), &["h2"]).await;
    let mut wrong = config();
    wrong.extra_ca = vec![other.pem.clone().into_bytes()];
    let (_fake, blob) = server.blob(&data, wrong).await;
    let error = blob.read_range(0..1000).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("--tlscacert"), "{error}");
    assert!(!error.is_transient(), "{error}");
    assert!(server.versions.lock().is_empty());
    let mut trusting = config();
    trusting.skip_verify = true;
    let (_fake, blob) = server.blob(&data, trusting).await;
    assert_eq!(blob.read_range(0..1000).await.unwrap(), data);
}

#[tokio::test]
async fn a_broken_certificate_file_is_a_configuration_error() {
    let data = noise(10);
    let server = Secure::start(data.clone(), &["h2"]).await;
    let mut broken = config();
    broken.extra_ca =
        vec![b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n".to_vec()];
    let (_fake, blob) = server.blob(&data, broken).await;
    let error = blob.read_range(0..10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    let mut none = config();
    none.extra_ca = vec![b"root:x:0:0\n".to_vec()];
    let (_fake, blob) = server.blob(&data, none).await;
    let error = blob.read_range(0..10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

#[tokio::test]
async fn plain_http_behind_an_https_address_is_named_and_not_tried_again() {
    let plain = Fake::start(|_, _| Some(status(200).body(noise(10)))).await;
    let target = format!("https://{}/x", plain.host());
    let fake = Fake::start(move |_, _| Some(redirect(307, &target))).await;
    let client = Client::new(config(), Arc::new(NoCredentials)).unwrap();
    let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&noise(10)));
    let error = blob.read_range(0..10).await.unwrap_err();
    assert!(error.to_string().contains("--plain-http"), "{error}");
    assert!(!error.is_transient(), "{error}");
}
