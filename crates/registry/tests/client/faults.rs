//! Registries that are slow, overloaded or gone.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use soci_registry::{BlobSource, Client, Deadline, ErrorKind, NoCredentials};
use soci_testkit::LocalPort;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fake::{Fake, With, broken, client, config, descriptor, noise, pass, serve, status};

const ANSWER: &[u8] = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1-3/10\r\n\
    Content-Length: 3\r\n\r\nbcd";

/// Reads the head of a request without a body.
async fn read_request(connection: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.unwrap());
    }
}

#[tokio::test]
async fn errors_name_the_request_and_the_registrys_message() {
    for (code, kind, advice) in [
        (404, ErrorKind::NotFound, "check the name"),
        (403, ErrorKind::Forbidden, "lacks this right"),
        (418, ErrorKind::Protocol, ""),
    ] {
        let fake = Fake::start(move |_, _| {
            Some(status(code).body(r#"{"errors":[{"code":"WHY","message":"because\u0007"}]}"#))
        })
        .await;
        let reference = fake.reference("a/b:t");
        let error = client().manifest(&reference, "t").await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_eq!(error.status(), Some(code));
        let text = error.to_string();
        let url = fake.url("/v2/a/b/manifests/t");
        let start = format!("GET {url}: status {code} (WHY: because)");
        assert!(text.starts_with(&start) && text.contains(advice), "{text}");
        assert_eq!(fake.requests().len(), 1, "not tried again");
    }
}

#[tokio::test]
async fn overload_and_server_errors_are_tried_again_until_they_end() {
    for code in [429, 500, 502, 503, 504] {
        let data = noise(100);
        let served = data.clone();
        let fake = Fake::start(move |number, request| {
            Some(if number < 2 {
                status(code).with("retry-after", "0")
            } else {
                serve(request, &served)
            })
        })
        .await;
        let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
        assert_eq!(
            blob.read_range(1..9, Deadline::far()).await.unwrap(),
            data.slice(1..9)
        );
        assert_eq!(fake.requests().len(), 3);
        assert_eq!(blob.retry_count(), 2);
    }
}

#[tokio::test]
async fn retries_end_with_the_last_error_and_its_request() {
    let fake = Fake::start(|_, _| Some(status(429).with("retry-after", "7"))).await;
    let error = client()
        .resolve(&fake.reference("a/b:t"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooManyRequests);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    assert_eq!(fake.requests().len(), 4);
}

#[tokio::test]
async fn a_request_that_is_never_answered_is_made_again() {
    let data = noise(100);
    let served = data.clone();
    let fake =
        Fake::start(move |number, request| (number > 0).then(|| serve(request, &served))).await;
    let mut config = config();
    config.response_header_timeout = Duration::from_millis(300);
    config.dial_timeout = Duration::from_millis(200);
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&data));
    assert_eq!(
        blob.read_range(0..9, Deadline::far()).await.unwrap(),
        data.slice(0..9)
    );
    assert!(fake.requests().len() >= 2);
}

#[tokio::test]
async fn a_hang_before_the_answer_is_reported_as_a_timeout() {
    let fake = Fake::start(|_, _| None).await;
    let mut config = config();
    config.retries.max_retries = 0;
    config.response_header_timeout = Duration::from_millis(50);
    config.dial_timeout = Duration::from_millis(100);
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let error = client.resolve(&fake.reference("a/b:t")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_read_ends_at_its_deadline_with_the_last_failure() {
    // The first request fails, the second is never answered.
    let fake = Fake::start(|number, _| (number == 0).then(|| status(503))).await;
    let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&noise(100)));
    let deadline = Deadline::after(Duration::from_secs(2));
    let error = blob.read_range(1..9, deadline).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert_eq!(deadline.remaining(), Duration::ZERO);
    let text = error.to_string();
    assert!(
        text.contains("a/b@sha256:") && text.contains("deadline") && text.contains("status 503"),
        "{text}"
    );
    let last = std::error::Error::source(&error).unwrap();
    assert!(last.to_string().contains("status 503"), "{last}");
}

#[tokio::test]
async fn a_retry_after_beyond_the_deadline_is_not_waited_for() {
    let fake = Fake::start(|_, _| Some(status(429).with("retry-after", "250"))).await;
    let mut config = config();
    config.retries.max_wait = Duration::from_secs(300);
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&noise(100)));
    let deadline = Deadline::after(Duration::from_secs(200));
    let error = blob.read_range(1..9, deadline).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooManyRequests, "{error}");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(250)));
    assert!(deadline.remaining() > Duration::ZERO);
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn a_body_that_keeps_arriving_is_not_cut_off_by_the_deadline() {
    let data = noise(10_000);
    let served = data.clone();
    let (release, rest) = tokio::sync::oneshot::channel::<()>();
    let rest = parking_lot::Mutex::new(Some(rest));
    let fake = Fake::start(move |_, _| {
        let rest = rest.lock().take()?;
        let (start, end) = (served.slice(0..4_000), served.slice(4_000..));
        let start = futures::stream::iter([Ok::<_, std::io::Error>(start)]);
        let end = futures::stream::once(async move {
            rest.await.unwrap();
            Ok(end)
        });
        let body = Body::from_stream(start.chain(end));
        Some(status(200).with("content-length", "10000").body(body))
    })
    .await;
    let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
    let minute = Duration::from_secs(60);
    let deadline = Deadline::after(minute);
    let mut stream = blob.stream_range(0..10_000, deadline).await.unwrap();
    pass(minute).await;
    assert_eq!(deadline.remaining(), Duration::ZERO);
    release.send(()).unwrap();
    let mut got = Vec::new();
    while let Some(piece) = stream.next().await {
        got.extend_from_slice(&piece.unwrap());
    }
    assert!(got == data);
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn a_body_that_breaks_after_the_deadline_is_not_resumed() {
    let data = noise(10_000);
    let served = data.clone();
    let fake =
        Fake::start(move |_, _| Some(broken(status(200), 10_000, served.slice(0..4_000)))).await;
    let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
    let minute = Duration::from_secs(60);
    let mut stream = blob
        .stream_range(0..10_000, Deadline::after(minute))
        .await
        .unwrap();
    pass(minute).await;
    let mut error = None;
    while let Some(piece) = stream.next().await {
        error = piece.err();
    }
    assert_eq!(error.unwrap().kind(), ErrorKind::BadBody);
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn a_body_that_stops_coming_is_resumed() {
    let data = noise(10_000);
    let served = data.clone();
    let fake = Fake::start(move |number, request| {
        if number > 0 {
            return Some(serve(request, &served));
        }
        let start = futures::stream::iter([Ok::<_, std::io::Error>(served.slice(0..4_000))]);
        let body = Body::from_stream(start.chain(futures::stream::pending()));
        Some(status(200).with("content-length", "10000").body(body))
    })
    .await;
    let mut config = config();
    config.idle_timeout = Duration::from_secs(3);
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let got = client
        .blob_bytes(&fake.reference("a/b:t"), &descriptor(&data))
        .await
        .unwrap();
    assert!(got == data);
    assert_eq!(fake.requests()[1].range(), Some((4_000, 9_999)));
}

#[tokio::test]
async fn a_trickle_is_cut_off() {
    let fake = Fake::start(|_, _| {
        let drops = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        });
        let body = Body::from_stream(drops);
        Some(status(200).with("content-length", "1000000").body(body))
    })
    .await;
    let mut config = config();
    config.request_timeout = Duration::from_millis(300);
    config.retries.max_retries = 0;
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let mut wanted = descriptor(b"x");
    wanted.size = 1_000_000;
    let error = client
        .blob_bytes(&fake.reference("a/b:t"), &wanted)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[tokio::test]
async fn a_reset_connection_is_tried_again() {
    // Plain TCP: the first connection is closed before an answer, the second is answered.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        for answer in [false, true] {
            let (mut connection, _) = listener.accept().await.unwrap();
            read_request(&mut connection).await;
            if answer {
                connection.write_all(ANSWER).await.unwrap();
                return connection;
            }
        }
        unreachable!()
    });
    let reference = format!("{address}/a/b:t").parse().unwrap();
    let blob = client().blob(&reference, &descriptor(b"abcdefghij"));
    assert_eq!(blob.read_range(1..4, Deadline::far()).await.unwrap(), "bcd");
    server.await.unwrap();
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unreachable() {
    let closed = LocalPort::claim().unwrap();
    let reference = format!("{}/a/b:t", closed.address()).parse().unwrap();
    let error = client().resolve(&reference).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    let refused = soci_errors::causes(&error)
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::ConnectionRefused);
    assert!(refused, "{error:?}");
}

#[tokio::test]
async fn connections_are_used_again() {
    // Plain TCP: one connection that answers three requests; a second is never accepted.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut only, _) = listener.accept().await.unwrap();
        for _ in 0..3 {
            read_request(&mut only).await;
            only.write_all(ANSWER).await.unwrap();
        }
    });
    let reference = format!("{address}/a/b:t").parse().unwrap();
    let blob = client().blob(&reference, &descriptor(b"abcdefghij"));
    for _ in 0..3 {
        assert_eq!(blob.read_range(1..4, Deadline::far()).await.unwrap(), "bcd");
    }
    server.await.unwrap();
}

#[tokio::test]
async fn what_a_pull_waits_for_ends_soon_when_the_registry_does_not_work() {
    // A server error again and again; a request to wait for two minutes; nothing there.
    for kind in 0..3 {
        let fake = Fake::start(move |_, _| {
            Some(match kind {
                0 => status(503),
                _ => status(429).with("retry-after", "120"),
            })
        })
        .await;
        let mut config = config();
        config.retries.max_retries = u32::MAX;
        config.retries.max_wait = Duration::from_secs(300);
        config.document_patience = Some(Duration::from_millis(300));
        let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
        let reference = fake.reference("a/b:t");
        let host = fake.host();
        let fake = (kind < 2).then_some(fake);
        let asking = client.manifest(&reference, "t");
        let error = tokio::time::timeout(Duration::from_secs(60), asking)
            .await
            .unwrap()
            .unwrap_err();
        assert!(error.is_transient(), "{host}: {error}");
        if kind == 1 {
            assert_eq!(fake.unwrap().requests().len(), 1);
        }
    }
}

#[tokio::test]
async fn parts_of_layers_are_retried_as_often_as_their_own_limit_says() {
    let data = noise(100);
    for (max_retries, fails, succeeds) in [(0, 1, false), (2, 4, false), (5, 4, true)] {
        let served = data.clone();
        let fake = Fake::start(move |number, request| {
            Some(match number < fails {
                true => status(503),
                false => serve(request, &served),
            })
        })
        .await;
        let mut config = config();
        // Those of everything else.
        config.retries.max_retries = 3;
        config.span_retries = Some(soci_registry::RetryPolicy {
            max_retries,
            ..config.retries
        });
        let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
        let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&data));
        let got = blob.read_range(1..9, Deadline::far()).await;
        assert_eq!(got.is_ok(), succeeds, "{max_retries}: {got:?}");
        let tried = fails.min(usize::try_from(max_retries).unwrap()) + 1;
        assert_eq!(fake.requests().len(), tried, "{max_retries}");
    }
}
