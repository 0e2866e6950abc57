//! Reading blobs: ranges, whole blobs in memory, streams.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use soci_registry::{
    BlobSource, Client, Deadline, ErrorKind, NoCredentials, ProtocolViolation, RegistryError,
};

use crate::fake::{Fake, With, broken, client, config, descriptor, noise, serve, status};

#[tokio::test]
async fn ranges_are_exactly_the_requested_bytes() {
    let data = noise(10_000);
    let served = data.clone();
    let fake = Fake::start(move |_, request| Some(serve(request, &served))).await;
    let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
    for (from, to) in [(0, 1), (0, 10_000), (9_999, 10_000), (17, 4_242)] {
        let got = blob
            .read_range(from as u64..to as u64, Deadline::far())
            .await
            .unwrap();
        assert_eq!(got, data.slice(from..to));
    }
    let before = fake.requests().len();
    assert!(
        blob.read_range(5..5, Deadline::far())
            .await
            .unwrap()
            .is_empty()
    );
    for bad in [0..10_001, 10_001..10_002] {
        let error = blob.read_range(bad, Deadline::far()).await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
    }
    assert_eq!(fake.requests().len(), before, "no request for these");
    let path = format!("/v2/a/b/blobs/{}", descriptor(&data).digest);
    assert!(fake.requests().iter().all(|r| r.path == path));
    assert!(!blob.ignores_ranges());
}

#[tokio::test]
async fn requests_say_who_we_are() {
    let data = noise(10);
    let served = data.clone();
    let fake = Fake::start(move |_, request| Some(serve(request, &served))).await;
    let reference = fake.reference("a/b:t");
    client()
        .blob_bytes(&reference, &descriptor(&data))
        .await
        .unwrap();
    let mut config = config();
    config.user_agent = "another/1".to_owned();
    let named = Client::new(config, Arc::new(NoCredentials)).unwrap();
    named
        .blob_bytes(&reference, &descriptor(&data))
        .await
        .unwrap();
    let requests = fake.requests();
    assert!(
        requests[0]
            .header("user-agent")
            .unwrap()
            .starts_with("soci-rs/")
    );
    assert_eq!(requests[1].header("user-agent"), Some("another/1"));
}

#[tokio::test]
async fn a_host_that_ignores_ranges_still_gives_exactly_the_range() {
    let data = noise(300_000);
    let served = data.clone();
    let fake = Fake::start(move |_, _| Some(status(200).body(served.clone()))).await;
    let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
    assert!(!blob.ignores_ranges());
    for (from, to) in [(200_001, 200_101), (0, 3), (299_999, 300_000)] {
        let got = blob
            .read_range(from as u64..to as u64, Deadline::far())
            .await
            .unwrap();
        assert_eq!(got, data.slice(from..to));
        assert!(blob.ignores_ranges());
    }
}

#[tokio::test]
async fn a_large_blob_from_a_host_that_ignores_ranges_comes_whole_not_in_parts() {
    let data = noise(20 << 20);
    let served = data.clone();
    let fake = Fake::start(move |_, _| Some(status(200).body(served.clone()))).await;
    let got = client()
        .blob_bytes(&fake.reference("a/b:t"), &descriptor(&data))
        .await
        .unwrap();
    assert!(got == data);
    assert_eq!(fake.requests().len(), 2, "one to learn it, one for all");
}

#[tokio::test]
async fn a_large_blob_comes_in_ranges_and_is_verified() {
    let data = noise((20 << 20) + 7);
    let served = data.clone();
    let fake = Fake::start(move |_, request| Some(serve(request, &served))).await;
    let got = client()
        .blob_bytes(&fake.reference("a/b:t"), &descriptor(&data))
        .await
        .unwrap();
    assert!(got == data);
    let mut ranges: Vec<_> = fake.requests().iter().filter_map(|r| r.range()).collect();
    ranges.sort_unstable();
    let part = 8 << 20;
    assert_eq!(
        ranges,
        [
            (0, part - 1),
            (part, 2 * part - 1),
            (2 * part, (20 << 20) + 6)
        ]
    );
}

#[tokio::test]
async fn a_server_may_send_less_than_the_range_and_the_rest_is_requested() {
    let data = noise(10_000);
    let served = data.clone();
    let fake = Fake::start(move |_, request| {
        let (first, last) = request.range().unwrap_or((0, 9_999));
        let last = last.min(first + 2_999);
        Some(
            status(206)
                .with("content-range", &format!("bytes {first}-{last}/10000"))
                .body(served.slice(first..=last)),
        )
    })
    .await;
    let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
    assert_eq!(
        blob.read_range(1..10_000, Deadline::far()).await.unwrap(),
        data.slice(1..)
    );
    assert_eq!(fake.requests().len(), 4);
}

#[tokio::test]
async fn wrong_content_ranges_are_refused() {
    let data = noise(1000);
    for said in [
        "bytes 0-9/1000",
        "bytes 11-20/1000",
        "bytes 10-29/1000",
        "bytes 10-18/1000",
    ] {
        let served = data.clone();
        let fake = Fake::start(move |_, _| {
            let body = served.slice(10..20);
            Some(status(206).with("content-range", said).body(body))
        })
        .await;
        let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
        let error = blob.read_range(10..20, Deadline::far()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{said}: {error}");
    }
}

#[tokio::test]
async fn a_range_of_the_right_length_is_taken_whatever_its_header_says() {
    let data = noise(1000);
    for said in [Some("bytes 10-19/999"), Some("nonsense"), Some(""), None] {
        let served = data.clone();
        let fake = Fake::start(move |_, _| {
            let response = status(206);
            let response = match said {
                Some(said) => response.with("content-range", said),
                None => response,
            };
            Some(response.body(served.slice(10..20)))
        })
        .await;
        let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
        let got = blob.read_range(10..20, Deadline::far()).await.unwrap();
        assert_eq!(got, data.slice(10..20), "{said:?}");
        assert_eq!(fake.requests().len(), 1);
    }
}

#[tokio::test]
async fn where_answers_to_ranges_cannot_be_used_whole_blobs_are_requested() {
    let data = noise(1000);
    for (name, value, body) in [
        (
            "content-type",
            "multipart/byteranges; boundary=x",
            &b"--x"[..],
        ),
        ("content-range", "bytes 0-9/1000", b"0123456789"),
        ("content-encoding", "gzip", b"0123456789"),
        ("x-other", "short, without a length that says so", b"012"),
    ] {
        let served = data.clone();
        let fake = Fake::start(move |_, request| {
            Some(if request.range().is_some() {
                status(206).with(name, value).body(Bytes::from_static(body))
            } else {
                status(200).body(served.clone())
            })
        })
        .await;
        let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
        for (from, to) in [(10, 20), (990, 1000)] {
            let got = blob.read_range(from..to, Deadline::far()).await.unwrap();
            let (from, to) = (usize::try_from(from), usize::try_from(to));
            assert_eq!(got, data.slice(from.unwrap()..to.unwrap()), "{name}");
        }
        assert!(blob.ignores_ranges());
        // What cannot be used is requested once.
        let ranged = fake
            .requests()
            .iter()
            .filter(|r| r.range().is_some())
            .count();
        assert_eq!(ranged, 1, "{name}");
    }
    let fake = Fake::start(move |_, _| {
        let body = Bytes::from_static(b"gzipped");
        Some(status(200).with("content-encoding", "gzip").body(body))
    })
    .await;
    let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
    let error = blob.read_range(10..20, Deadline::far()).await.unwrap_err();
    let RegistryError::Protocol { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(
        matches!(source, ProtocolViolation::Encoded(encoding) if encoding == "gzip"),
        "{error}"
    );
    assert!(!error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_body_longer_than_its_content_range_is_an_error() {
    let data = noise(1000);
    // All at once, or the surplus after the promised bytes.
    for cut in [0, 10] {
        let served = data.clone();
        let fake = Fake::start(move |_, _| {
            let pieces = [served.slice(0..cut), served.slice(cut..100)];
            let pieces = pieces.map(Ok::<_, std::io::Error>);
            let body = Body::from_stream(futures::stream::iter(pieces));
            Some(
                status(206)
                    .with("content-range", "bytes 0-9/1000")
                    .body(body),
            )
        })
        .await;
        let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
        let error = blob.read_range(0..10, Deadline::far()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadBody, "{error}");
    }
}

#[tokio::test]
async fn a_blob_of_another_size_than_its_descriptor_is_refused() {
    let data = noise(1000);
    let served = data.slice(0..900);
    let fake = Fake::start(move |_, request| Some(serve(request, &served))).await;
    let error = client()
        .blob_bytes(&fake.reference("a/b:t"), &descriptor(&data))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn a_truncated_body_is_never_served_but_resumed_where_it_broke() {
    let data = noise(100_000);
    let served = data.clone();
    let fake = Fake::start(move |number, request| {
        let (first, last) = request.range().unwrap_or((0, served.len() - 1));
        let response = match request.range() {
            None => status(200),
            Some(_) => {
                let said = format!("bytes {first}-{last}/{}", served.len());
                status(206).with("content-range", &said)
            }
        };
        Some(if number < 3 {
            broken(
                response,
                last + 1 - first,
                served.slice(first..first + 20_000),
            )
        } else {
            response.body(served.slice(first..=last))
        })
    })
    .await;
    let stream = client()
        .blob_stream(&fake.reference("a/b:t"), &descriptor(&data))
        .await
        .unwrap();
    let pieces: Vec<Bytes> = stream.try_collect().await.unwrap();
    assert!(pieces.concat() == data);
    let requests = fake.requests();
    assert_eq!(requests.len(), 4);
    assert_eq!(requests[0].range(), None);
    // What reached us before the break may be less than what was sent.
    let starts: Vec<_> = requests[1..].iter().map(|r| r.range().unwrap().0).collect();
    assert!(
        starts.is_sorted() && starts.iter().all(|s| *s <= 60_000),
        "{starts:?}"
    );
}

#[tokio::test]
async fn a_body_that_always_breaks_off_is_an_error_within_the_retry_budget() {
    let data = noise(1000);
    let fake = Fake::start(|_, request| {
        let (first, last) = request.range().unwrap();
        let response = status(206).with("content-range", &format!("bytes {first}-{last}/1000"));
        Some(broken(response, last + 1 - first, Bytes::new()))
    })
    .await;
    let blob = client().blob(&fake.reference("a/b:t"), &descriptor(&data));
    let error = blob.read_range(5..500, Deadline::far()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(fake.requests().len(), 4, "the first and three retries");
}

#[tokio::test]
async fn under_any_mixture_of_faults_only_the_right_bytes_are_served() {
    let data = noise(40_000);
    let served = data.clone();
    let dice = noise(4096);
    let fake = Fake::start(move |number, request| {
        let (first, last) = request.range().unwrap_or((0, served.len() - 1));
        let said = |last| format!("bytes {first}-{last}/{}", served.len());
        let middle = first + (last - first) / 2;
        Some(match dice[number % dice.len()] % 6 {
            0 => status(503),
            1 => status(200).body(served.clone()),
            2 => broken(status(200), served.len(), served.slice(0..=middle)),
            3 => status(206)
                .with("content-range", &said(middle))
                .body(served.slice(first..=middle)),
            4 => {
                let response = status(206).with("content-range", &said(last));
                broken(response, last + 1 - first, served.slice(first..=middle))
            }
            _ => serve(request, &served),
        })
    })
    .await;
    let mut config = config();
    config.retries.max_retries = 100;
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&data));
    for step in 0..20_usize {
        let (from, to) = (step * 1_777, 40_000 - step * 99);
        let got = blob
            .read_range(from as u64..to as u64, Deadline::far())
            .await
            .unwrap();
        assert!(got == data.slice(from..to), "{from}..{to}");
    }
}

#[tokio::test]
async fn a_corrupted_body_is_never_served_whole() {
    let data = noise(50_000);
    let mut bad = data.to_vec();
    bad[31_337] ^= 1;
    let bad = Bytes::from(bad);
    let fake = Fake::start(move |_, request| Some(serve(request, &bad))).await;
    let reference = fake.reference("a/b:t");
    let client = client();
    let wanted = descriptor(&data);
    let error = client.blob_bytes(&reference, &wanted).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{error}");
    assert_eq!(fake.requests().len(), 2, "one more attempt");
    let stream = client.blob_stream(&reference, &wanted).await.unwrap();
    let items: Vec<_> = stream.collect().await;
    let (last, before) = items.split_last().unwrap();
    assert!(before.iter().all(Result::is_ok));
    assert_eq!(last.as_ref().unwrap_err().kind(), ErrorKind::DigestMismatch);
}

#[tokio::test]
async fn a_body_corrupted_once_is_fetched_again() {
    let data = noise(5_000);
    let served = data.clone();
    let fake = Fake::start(move |number, request| {
        let mut body = served.to_vec();
        if number == 0 {
            body[77] ^= 1;
        }
        Some(serve(request, &body.into()))
    })
    .await;
    let got = client()
        .blob_bytes(&fake.reference("a/b:t"), &descriptor(&data))
        .await
        .unwrap();
    assert!(got == data);
}

#[tokio::test]
async fn a_blob_beyond_the_limit_is_not_read_into_memory() {
    let fake = Fake::start(|_, _| Some(status(500))).await;
    let mut huge = descriptor(b"x");
    huge.size = u64::MAX;
    let error = client()
        .blob_bytes(&fake.reference("a/b:t"), &huge)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(fake.requests().is_empty());
}

#[tokio::test]
async fn the_empty_blob_is_verified_too() {
    let fake = Fake::start(|_, _| Some(status(200))).await;
    let reference = fake.reference("a/b:t");
    let client = client();
    let got = client
        .blob_bytes(&reference, &descriptor(b""))
        .await
        .unwrap();
    assert!(got.is_empty());
    let mut wrong = descriptor(b"x");
    wrong.size = 0;
    let error = client.blob_bytes(&reference, &wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch);
}

#[tokio::test]
async fn where_head_is_refused_existence_is_checked_with_a_get() {
    let data = noise(10);
    let served = data.clone();
    let fake = Fake::start(move |_, request| {
        Some(match request.method {
            http::Method::HEAD => status(405),
            _ if request.path.contains("missing") => status(404),
            _ => serve(request, &served),
        })
    })
    .await;
    let client = client();
    let wanted = descriptor(&data);
    assert!(
        client
            .blob_exists(&fake.reference("a/b:t"), &wanted)
            .await
            .unwrap()
    );
    assert_eq!(fake.requests()[1].range(), Some((0, 0)));
    assert!(
        !client
            .blob_exists(&fake.reference("missing/b:t"), &wanted)
            .await
            .unwrap()
    );
    assert!(
        client
            .manifest_exists(&fake.reference("a/b:t"))
            .await
            .unwrap()
    );
}
