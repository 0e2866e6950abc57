//! The codec, without a kernel.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;
use soci_fuse::{Attr, DirBuffer, Entry, Errno, Operation, ParseError, Reply, ReplySink, Request};

/// A request's bytes as the kernel lays them out.
fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = u32::try_from(40 + body.len()).unwrap();
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&opcode.to_ne_bytes());
    bytes.extend_from_slice(&99_u64.to_ne_bytes());
    bytes.extend_from_slice(&5_u64.to_ne_bytes());
    for number in [1000_u32, 1000, 4242, 0] {
        bytes.extend_from_slice(&number.to_ne_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

fn read_in(offset: u64, size: u32) -> Vec<u8> {
    let mut body = vec![0; 40];
    body[8..16].copy_from_slice(&offset.to_ne_bytes());
    body[16..20].copy_from_slice(&size.to_ne_bytes());
    body
}

fn operation(bytes: &[u8]) -> Operation<'_> {
    let request = Request::parse(bytes).unwrap();
    assert_eq!((request.unique, request.node, request.pid), (99, 5, 4242));
    request.operation
}

#[test]
fn requests_of_the_kernel_are_understood() {
    assert_eq!(
        operation(&message(1, b"name\0")),
        Operation::Lookup { name: b"name" }
    );
    let (offset, size) = (1 << 40, 131_072);
    assert_eq!(
        operation(&message(15, &read_in(offset, size))),
        Operation::Read { offset, size }
    );
    let listing = Operation::ReadDir {
        offset,
        size,
        plus: true,
    };
    assert_eq!(operation(&message(44, &read_in(offset, size))), listing);
    let get = message(22, b"\x10\0\0\0\0\0\0\0user.x\0");
    assert_eq!(
        operation(&get),
        Operation::GetXattr {
            name: b"user.x",
            size: 16
        }
    );
    assert_eq!(
        operation(&message(36, &7_u64.to_ne_bytes())),
        Operation::Interrupt { unique: 7 }
    );
    assert_eq!(operation(&message(16, b"")), Operation::Change(16));
    assert_eq!(operation(&message(9999, b"?")), Operation::Unknown(9999));
    assert_eq!(operation(&message(42, &[0; 4000])), Operation::Forget);
}

#[test]
fn init_gives_both_words_of_flags() {
    let mut body = Vec::new();
    for word in [7_u32, 45, 131_072, 1 << 30 | 1, 1 << 7] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    let bytes = message(26, &body);
    let Operation::Init(offer) = operation(&bytes) else {
        panic!("no INIT");
    };
    assert_eq!(
        (offer.major, offer.minor, offer.max_readahead),
        (7, 45, 131_072)
    );
    assert_eq!(offer.flags, 1 << 39 | 1 << 30 | 1);
}

#[test]
fn cut_off_requests_are_refused_with_the_id_to_answer() {
    let full = message(15, &read_in(0, 1));
    for length in 0..full.len() {
        let error = Request::parse(&full[..length]).unwrap_err();
        assert_eq!(error.unique(), (length >= 40).then_some(99));
    }
    // A header that tells the truth about a body that is too short.
    for (opcode, body) in [
        (15, &[0; 8][..]),
        (1, b"no end"),
        (1, b"\0"),
        (36, b"1"),
        (26, b""),
    ] {
        let bytes = message(opcode, body);
        let expected = ParseError::Arguments { unique: 99, opcode };
        assert_eq!(Request::parse(&bytes), Err(expected));
    }
}

#[derive(Default)]
struct Sent(Mutex<Vec<Vec<u8>>>);

impl ReplySink for Sent {
    fn send(&self, _: u64, message: &[IoSlice<'_>]) {
        let bytes = message
            .iter()
            .flat_map(|part| part.iter().copied())
            .collect();
        self.0.lock().push(bytes);
    }
}

/// What one reply sends: error number and body.
fn sent(answer: impl FnOnce(Reply)) -> (i32, Vec<u8>) {
    let sink = Arc::new(Sent::default());
    answer(Reply::new(3, sink.clone()));
    let messages = sink.0.lock();
    let [message] = messages.as_slice() else {
        panic!("{} answers", messages.len());
    };
    let word = |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
    assert_eq!(word(0) as usize, message.len());
    assert_eq!((word(8), word(12)), (3, 0));
    (-word(4).cast_signed(), message[16..].to_vec())
}

#[test]
fn every_reply_is_sent_exactly_once_even_if_forgotten() {
    assert_eq!(sent(drop), (Errno::IO.raw_os_error(), vec![]));
    assert_eq!(
        sent(|reply| drop(reply.defer(&Request::parse(&message(3, b"")).unwrap()))),
        (Errno::IO.raw_os_error(), vec![])
    );
    assert_eq!(sent(Reply::ok), (0, vec![]));
    assert_eq!(sent(|reply| reply.data(b"x")), (0, b"x".to_vec()));
    assert_eq!(sent(|reply| reply.error(Errno::NOENT)), (2, vec![]));
    let panicked = sent(|reply| {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _reply = reply;
            panic!("on purpose");
        }));
        assert!(result.is_err());
    });
    assert_eq!(panicked.0, Errno::IO.raw_os_error());
}

#[test]
fn xattr_answers_follow_the_room_that_was_offered() {
    assert_eq!(
        sent(|reply| reply.xattr(b"four", 0)),
        (0, vec![4, 0, 0, 0, 0, 0, 0, 0])
    );
    assert_eq!(
        sent(|reply| reply.xattr(b"four", 3)).0,
        Errno::RANGE.raw_os_error()
    );
    assert_eq!(sent(|reply| reply.xattr(b"four", 4)), (0, b"four".to_vec()));
    assert_eq!(sent(|reply| reply.xattr(b"", 10)), (0, vec![]));
}

#[test]
fn entries_have_the_kernels_layout() {
    let attr = Attr {
        ino: 7,
        mode: 0o40755,
        mtime: -1,
        nlink: 2,
        ..Attr::default()
    };
    let entry = Entry {
        attr: Some(attr),
        entry_ttl: Duration::new(5, 6),
        attr_ttl: Duration::new(8, 9),
    };
    let (_, body) = sent(|reply| reply.entry(&entry));
    assert_eq!(body.len(), 128);
    assert_eq!(body[..8], 7_u64.to_ne_bytes());
    assert_eq!(body[16..24], 5_u64.to_ne_bytes());
    assert_eq!(body[24..32], 8_u64.to_ne_bytes());
    assert_eq!(body[32..40], [6, 0, 0, 0, 9, 0, 0, 0]);
    // The attributes start at 40; their mode is 60 further.
    assert_eq!(body[100..104], 0o40755_u32.to_ne_bytes());
    let mut listing = DirBuffer::new(4096, false);
    assert!(listing.push(b"abc", 7, 0o40755, 3, || entry));
    let bytes = listing.as_bytes();
    assert_eq!(bytes.len(), 32);
    assert_eq!(bytes[16..24], [3, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(&bytes[24..], b"abc\0\0\0\0\0");
}

#[test]
fn device_numbers_are_packed_as_the_kernel_does() {
    assert_eq!(soci_fuse::encode_device(1, 3), Some(0x103));
    assert_eq!(soci_fuse::encode_device(8, 0x12345), Some(0x1230_0845));
    assert_eq!(soci_fuse::encode_device(1 << 12, 0), None);
    assert_eq!(soci_fuse::encode_device(0, 1 << 20), None);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        soci_fuse::fuzz::request(&data);
    }

    #[test]
    fn no_body_makes_the_parser_panic(
        opcode in 0_u32..60, body in proptest::collection::vec(any::<u8>(), 0..100)
    ) {
        let bytes = message(opcode, &body);
        soci_fuse::fuzz::request(&bytes);
        if let Ok(Request { operation: Operation::Lookup { name }, .. }) = Request::parse(&bytes) {
            prop_assert!(!name.contains(&0) && !name.is_empty() && body.starts_with(name));
        }
    }

    #[test]
    fn no_listing_is_longer_than_its_room(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        soci_fuse::fuzz::directory(&data);
    }
}
