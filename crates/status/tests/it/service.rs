//! The service and its client over a unix socket.

use std::path::Path;

use async_trait::async_trait;
use soci_status::api::{Daemon, GetResponse, Health, Image, Layer, LayerState};
use soci_status::{SourceError, Sources, StatusError, StatusSource};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

struct DaemonPart;

#[async_trait]
impl StatusSource for DaemonPart {
    async fn fill(&self, status: &mut GetResponse) -> Result<(), SourceError> {
        status.daemon = Some(Daemon {
            pid: 7,
            ..Daemon::default()
        });
        Ok(())
    }
}

struct ImagesPart;

#[async_trait]
impl StatusSource for ImagesPart {
    async fn fill(&self, status: &mut GetResponse) -> Result<(), SourceError> {
        let layer = Layer {
            state: LayerState::Lazy.into(),
            health: Health::Broken.into(),
            size_bytes: Some(200),
            fetched_bytes: Some(50),
            ..Layer::default()
        };
        status.images.push(Image {
            layers: vec![layer],
            ..Image::default()
        });
        Ok(())
    }
}

struct Failing;

#[async_trait]
impl StatusSource for Failing {
    async fn fill(&self, _: &mut GetResponse) -> Result<(), SourceError> {
        Err(SourceError::new("the database is closed"))
    }
}

fn serve(socket: &Path, server: tonic::transport::server::Router) {
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    tokio::spawn(server.serve_with_incoming(incoming));
}

#[tokio::test]
async fn an_answer_is_put_together_from_its_sources() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s.sock");
    let sources = Sources::default().with(DaemonPart).with(ImagesPart);
    serve(&socket, Server::builder().add_service(sources.service()));
    let status = soci_status::get(&socket).await.unwrap();
    assert_eq!(status.daemon.as_ref().unwrap().pid, 7);
    assert_eq!(status.images[0].layers[0].fetched_percent(), Some(25.0));
    let json = serde_json::to_value(&status).unwrap();
    let layer = &json["images"][0]["layers"][0];
    assert_eq!(layer["state"], "lazy");
    assert_eq!(layer["health"], "broken");
    assert_eq!(layer["sizeBytes"], 200);
    assert!(
        layer.get("error").is_none() && json.get("holder").is_none(),
        "{json}"
    );
}

#[tokio::test]
async fn servers_that_do_not_answer_cannot_or_are_older_are_distinguished() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent.sock");
    let error = soci_status::get(&absent).await.unwrap_err();
    assert!(matches!(&error, StatusError::NotThere { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("is soci-snapshotter-grpc running"),
        "{error}"
    );

    let socket = dir.path().join("older.sock");
    let (_, health) = tonic_health::server::health_reporter();
    serve(&socket, Server::builder().add_service(health));
    let error = soci_status::get(&socket).await.unwrap_err();
    assert!(matches!(&error, StatusError::Unknown(_)), "{error:?}");

    let socket = dir.path().join("failing.sock");
    let sources = Sources::default().with(Failing);
    serve(&socket, Server::builder().add_service(sources.service()));
    let error = soci_status::get(&socket).await.unwrap_err();
    assert!(
        error.to_string().contains("the database is closed"),
        "{error}"
    );
}
