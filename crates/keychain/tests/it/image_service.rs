//! The image service through the proxy: what the real one gets and answers is what was sent.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use soci_keychain::{CriKeychain, ImageServiceProxy, ImagesInUse};
use soci_registry::{Credential, Credentials as _};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Code, Status};
use tower::{Service, ServiceExt as _};

const PASSWORD: &str = "hunter2";

/// A request that the real service got: its path, a header, its bytes.
type Seen = (String, Option<String>, Bytes);

/// The real image service: keeps what it gets, and answers with the bytes `answer`, or an error.
#[derive(Clone, Default)]
struct Backend {
    seen: Arc<Mutex<Vec<Seen>>>,
    fails: Arc<Mutex<bool>>,
}

const ANSWER: &[u8] = b"\x00\x00\x00\x00\x07\xba\x06\x04oops";

impl NamedService for Backend {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<http::Request<Body>> for Backend {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let header = request.headers().get("x-trace");
            let header = header.map(|value| value.to_str().unwrap().to_owned());
            let body = request.into_body().collect().await.unwrap().to_bytes();
            this.seen.lock().push((path, header, body));
            if *this.fails.lock() {
                return Ok(Status::not_found("no such image").into_http());
            }
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let body = Full::new(Bytes::from_static(ANSWER))
                .with_trailers(std::future::ready(Some(Ok(trailers))));
            let mut answer = http::Response::new(Body::new(body));
            answer
                .headers_mut()
                .insert("content-type", "application/grpc".parse().unwrap());
            Ok(answer)
        })
    }
}

struct Stack {
    backend: Backend,
    keychain: CriKeychain,
    client: Channel,
    folder: tempfile::TempDir,
}

async fn serve<S>(service: S, socket: &PathBuf)
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let listener = UnixListener::bind(socket).unwrap();
    let router = Server::builder().add_service(service);
    tokio::spawn(router.serve_with_incoming(UnixListenerStream::new(listener)));
}

impl Stack {
    /// Without the backend, which is started by [`Stack::start_backend`].
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keychain = CriKeychain::default();
        let real = folder.path().join("real.sock");
        let address = format!("unix://{}", real.display());
        let proxy = ImageServiceProxy::new(&address, keychain.clone());
        assert_eq!(proxy.image_service(), real);
        let socket = folder.path().join("proxy.sock");
        serve(proxy, &socket).await;
        let client = Endpoint::from_static("http://proxy")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await
            .unwrap();
        Self {
            backend: Backend::default(),
            keychain,
            client,
            folder,
        }
    }

    async fn start_backend(&self) {
        serve(self.backend.clone(), &self.folder.path().join("real.sock")).await;
    }

    /// One call with a message; gives the answer's bytes and status.
    async fn call(&self, method: &str, message: &[u8]) -> (Bytes, Code) {
        let mut body = vec![0];
        body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        body.extend(message);
        let request = http::Request::post(format!("http://x/runtime.v1.ImageService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("x-trace", "abc")
            .body(Body::new(Full::new(Bytes::from(body))))
            .unwrap();
        let answer = self
            .client
            .clone()
            .ready()
            .await
            .unwrap()
            .call(request)
            .await
            .unwrap();
        let in_head = Status::from_header_map(answer.headers());
        let body = answer.into_body().collect().await.unwrap();
        let in_tail = body.trailers().and_then(Status::from_header_map);
        let status = in_head.or(in_tail).unwrap();
        (body.to_bytes(), status.code())
    }

    async fn user(&self, image: &str) -> Option<String> {
        let reference: soci_oci::Reference = image.parse().unwrap();
        let host = reference.registry().to_owned();
        match self
            .keychain
            .lookup(&host, Some(&reference))
            .await
            .unwrap()?
        {
            Credential::Basic { user, password } => {
                assert_eq!(password, PASSWORD);
                Some(user)
            }
            other => panic!("{other:?}"),
        }
    }
}

fn field(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag << 3 | 2, u8::try_from(value.len()).unwrap()];
    bytes.extend(value);
    bytes
}

/// A PullImageRequest with fields that no version has: 13 here, 14 in the credentials.
fn pull(image: &str, user: &str) -> Vec<u8> {
    let auth = [
        field(1, user.as_bytes()),
        field(2, PASSWORD.as_bytes()),
        field(14, b"unknown"),
    ]
    .concat();
    [
        field(1, &field(1, image.as_bytes())),
        field(2, &auth),
        field(13, b"unknown, too"),
    ]
    .concat()
}

#[tokio::test]
async fn calls_are_forwarded_byte_for_byte_unknown_ones_too() {
    let stack = Stack::start().await;
    stack.start_backend().await;
    let message = pull("r.example/a:1", "me");
    for method in [
        "PullImage",
        "RemoveImage",
        "ListImages",
        "ImageStatus",
        "ImageFsInfo",
        "OfALaterVersion",
    ] {
        let (answer, code) = stack.call(method, &message).await;
        assert_eq!((&*answer, code), (ANSWER, Code::Ok), "{method}");
        let (path, header, body) = stack.backend.seen.lock().pop().unwrap();
        assert_eq!(path, format!("/runtime.v1.ImageService/{method}"));
        assert_eq!(header.as_deref(), Some("abc"));
        assert_eq!(body[5..], message);
    }
}

struct NothingInUse;

#[async_trait::async_trait]
impl ImagesInUse for NothingInUse {
    async fn needs(&self, _: &soci_oci::Reference) -> bool {
        false
    }
}

#[tokio::test]
async fn credentials_of_a_pull_are_remembered_until_the_image_is_removed() {
    let stack = Stack::start().await;
    stack.start_backend().await;
    stack.call("PullImage", &pull("r.example/a:1", "me")).await;
    assert_eq!(stack.user("r.example/a:1").await.as_deref(), Some("me"));
    // Another image of the repository may have the same layers.
    assert_eq!(stack.user("r.example/a:2").await.as_deref(), Some("me"));
    assert_eq!(stack.user("r.example/b:1").await, None);
    let remove = field(1, &field(1, b"r.example/a:1"));
    stack.call("RemoveImage", &remove).await;
    stack.keychain.removal().await;
    stack.keychain.forget_unneeded(&NothingInUse).await;
    assert_eq!(stack.user("r.example/a:1").await, None);
}

#[tokio::test]
async fn errors_of_the_image_service_come_back_and_its_credentials_do_not_count() {
    let stack = Stack::start().await;
    stack.start_backend().await;
    stack
        .call("PullImage", &pull("r.example/a:1", "right"))
        .await;
    *stack.backend.fails.lock() = true;
    let (_, code) = stack
        .call("PullImage", &pull("r.example/a:1", "wrong"))
        .await;
    assert_eq!(code, Code::NotFound);
    assert_eq!(stack.user("r.example/a:1").await.as_deref(), Some("right"));
}

#[tokio::test]
async fn an_image_service_that_is_not_there_is_unavailable_and_may_come_later() {
    let stack = Stack::start().await;
    let message = pull("r.example/a:1", "me");
    let (_, code) = stack.call("PullImage", &message).await;
    assert_eq!(code, Code::Unavailable);
    assert_eq!(stack.user("r.example/a:1").await, None);
    stack.start_backend().await;
    let (_, code) = stack.call("PullImage", &message).await;
    assert_eq!(code, Code::Ok);
    assert_eq!(stack.user("r.example/a:1").await.as_deref(), Some("me"));
}

#[tokio::test]
async fn a_request_to_pull_over_4_mib_is_refused_unread() {
    let stack = Stack::start().await;
    stack.start_backend().await;
    // The prefix counts as well.
    let most = (4 << 20) - 5;
    let (_, code) = stack.call("PullImage", &vec![0; most + 1]).await;
    assert_eq!(code, Code::ResourceExhausted);
    assert_eq!(stack.backend.seen.lock().len(), 0);
    let (_, code) = stack.call("PullImage", &vec![0; most]).await;
    assert_eq!(code, Code::Ok);
}

#[tokio::test]
async fn bytes_that_are_not_a_message_are_forwarded_unread() {
    let stack = Stack::start().await;
    stack.start_backend().await;
    for message in [&b""[..], b"\xff\xff\xff", &[0x0a, 0x7f, 1]] {
        let (_, code) = stack.call("PullImage", message).await;
        assert_eq!(code, Code::Ok);
        assert_eq!(stack.backend.seen.lock().pop().unwrap().2[5..], *message);
    }
    assert!(!format!("{:?}", stack.keychain).contains(PASSWORD));
}
