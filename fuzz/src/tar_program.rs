//! Tar archives out of any bytes: the input is a program that writes entries, with names out of a small
//! alphabet, so that entries meet each other; a part of the inputs are archives as they are.

/// Parts of names. Long ones are at the limits of file systems.
const PARTS: [&[u8]; 16] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"..",
    b".",
    b"",
    b".wh.a",
    b".wh.b",
    b".wh..wh..opq",
    b".wh..wh.plnk",
    b".wh.",
    b"\xc3\xa9\xff",
    b"a\x1b\n",
    &[b'n'; 255],
    &[b'n'; 256],
];
/// Extended attributes.
const XATTRS: [&str; 6] = [
    "user.a",
    "user.b",
    "security.capability",
    "trusted.overlay.opaque",
    "user.overlay.opaque",
    "trusted.a",
];
/// Times as PAX records have them.
const TIMES: [&str; 6] = [
    "0",
    "1.5",
    "-1.25",
    "1700000000.123456789",
    "99999999999",
    "x",
];
/// Entries of one archive.
const ENTRIES: usize = 20_000;
/// Bytes of one archive.
const SIZE: usize = 16 << 20;

/// Returns the archive that an input stands for.
pub(crate) fn archive(data: &[u8]) -> Vec<u8> {
    match data.split_first() {
        Some((&first, rest)) if first < 32 => rest.to_vec(),
        Some((_, rest)) => Program {
            input: rest.iter().copied(),
            tar: Vec::new(),
            entries: 0,
        }
        .run(),
        None => Vec::new(),
    }
}

struct Program<I> {
    input: I,
    tar: Vec<u8>,
    entries: usize,
}

impl<I: Iterator<Item = u8>> Program<I> {
    fn next(&mut self) -> u8 {
        self.input.next().unwrap_or(0)
    }

    fn run(mut self) -> Vec<u8> {
        while let Some(operation) = self.input.next() {
            if self.entries > ENTRIES || self.tar.len() > SIZE {
                break;
            }
            match operation % 16 {
                0..=3 => self.file(b'0'),
                4 | 5 => self.file(b'5'),
                6 | 7 => self.file(b'2'),
                8 | 9 => self.file(b'1'),
                10 => self.file(b'3'),
                11 => {
                    let kind = [b'4', b'6', b'7', b'0'][usize::from(self.next() % 4)];
                    self.file(kind);
                }
                12 | 13 => self.pax(),
                14 => self.repeat(),
                _ => self.deep(),
            }
        }
        self.tar.resize(self.tar.len() + 1024, 0);
        self.tar
    }

    fn path(&mut self) -> Vec<u8> {
        let count = self.next();
        let parts: Vec<&[u8]> = (0..1 + count % 4)
            .map(|_| PARTS[usize::from(self.next() % 16)])
            .collect();
        let mut path = parts.join(&b'/');
        if count & 0x80 != 0 {
            path.insert(0, b'/');
        }
        path
    }

    fn file(&mut self, kind: u8) {
        let name = self.path();
        let link = match kind {
            b'1' | b'2' => self.path(),
            _ => Vec::new(),
        };
        let content = match kind {
            b'0' | b'7' => vec![self.next(); usize::from(self.next()) * 3],
            _ => Vec::new(),
        };
        let mode = u32::from(self.next()) << 4 | 0o400;
        self.entry(kind, &name, &link, mode, &content);
    }

    /// A header, with GNU's long names where the fields are too short, and the content.
    fn entry(&mut self, kind: u8, name: &[u8], link: &[u8], mode: u32, content: &[u8]) {
        if name.len() > 100 {
            self.header(b'L', b"././@LongLink", b"", 0, &[name, b"\0"].concat());
        }
        if link.len() > 100 {
            self.header(b'K', b"././@LongLink", b"", 0, &[link, b"\0"].concat());
        }
        self.header(kind, name, link, mode, content);
        self.entries += 1;
    }

    fn header(&mut self, kind: u8, name: &[u8], link: &[u8], mode: u32, content: &[u8]) {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8], room: usize| {
            let length = bytes.len().min(room);
            header[at..at + length].copy_from_slice(&bytes[..length]);
        };
        put(0, name, 100);
        put(100, format!("{mode:07o}\0").as_bytes(), 8);
        put(108, format!("{:07o}\0", mode % 7).as_bytes(), 8);
        put(116, format!("{:07o}\0", mode % 5).as_bytes(), 8);
        put(124, format!("{:011o}\0", content.len()).as_bytes(), 12);
        put(
            136,
            format!("{:011o}\0", 1_700_000_000 + mode % 9).as_bytes(),
            12,
        );
        put(156, &[kind], 1);
        put(157, link, 100);
        put(257, b"ustar\x0000", 8);
        if matches!(kind, b'3' | b'4') {
            put(329, format!("{:07o}\0", mode % 3).as_bytes(), 8);
            put(337, format!("{:07o}\0", mode % 4).as_bytes(), 8);
        }
        put(148, b"        ", 8);
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.tar.extend_from_slice(&header);
        self.tar.extend_from_slice(content);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
    }

    /// PAX records for the next entry, or for all that follow.
    fn pax(&mut self) {
        let mut records = Vec::new();
        let count = self.next();
        for _ in 0..count % 4 {
            let which = self.next();
            let value = self.next();
            let (key, value) = match which % 8 {
                0 => ("path".to_owned(), self.path()),
                1 => ("linkpath".to_owned(), self.path()),
                2 => (
                    "mtime".to_owned(),
                    TIMES[usize::from(value) % TIMES.len()].as_bytes().to_vec(),
                ),
                3 => (
                    "size".to_owned(),
                    (u32::from(value) * 3).to_string().into_bytes(),
                ),
                4 => ("uid".to_owned(), value.to_string().into_bytes()),
                _ => {
                    let name = XATTRS[usize::from(which / 8) % XATTRS.len()];
                    let value = match name {
                        "security.capability" => {
                            b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()
                        }
                        _ => vec![value; usize::from(value % 8)],
                    };
                    (format!("SCHILY.xattr.{name}"), value)
                }
            };
            records.extend(record(key.as_bytes(), &value));
        }
        let kind = if count & 0xf0 == 0 { b'g' } else { b'x' };
        self.header(kind, b"pax", b"", 0o644, &records);
    }

    /// Many entries beside each other.
    fn repeat(&mut self) {
        let prefix = self.path();
        let kind = [b'0', b'5', b'2', b'1'][usize::from(self.next() % 4)];
        let target = self.path();
        for at in 0..u32::from(self.next()) * 8 {
            if self.entries > ENTRIES || self.tar.len() > SIZE {
                break;
            }
            let name = [&prefix[..], at.to_string().as_bytes()].concat();
            let link = if matches!(kind, b'1' | b'2') {
                &target[..]
            } else {
                b""
            };
            self.entry(kind, &name, link, 0o755, b"");
        }
    }

    /// A file below many folders.
    fn deep(&mut self) {
        let part = PARTS[usize::from(self.next() % 16)];
        let depth = usize::from(self.next()) * 12;
        let path = [&vec![part; depth].join(&b'/')[..], b"/f"].concat();
        self.entry(b'0', &path, b"", 0o644, b"deep");
    }
}

/// A PAX record: its own length in decimal, a space, key, `=`, value, newline.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}
