//! What loading an ELF file touches, read from its own headers: program headers, the dynamic
//! section, the tables it names, relocations and what they write, code.
//!
//! The bytes of the file arrive piece by piece, and libraries that parse ELF want them all; the few
//! structures that matter here are the loader's, never those of the linker (section headers lie at
//! the end of the file and are not loaded). Layouts: System V ABI, chapters 4 and 5, ELF-64,
//! little-endian; other files have no hints.
//!
//! The file is hostile. Each number is checked against the length of the file, and the work is
//! bounded whatever it says.

use std::collections::BTreeSet;
use std::ops::Range;

/// Number of program headers that are looked at.
const MOST_SEGMENTS: usize = 64;
/// Number of dynamic entries that are looked at.
const MOST_DYNAMIC: usize = 1024;
/// Number of needed libraries.
const MOST_NEEDED: usize = 128;
/// Length of a library's name, or of a search path, in bytes.
const MOST_NAME: usize = 1024;
/// Bytes of relocations that are looked at.
const MOST_RELOCATIONS: u64 = 64 << 20;
/// Bytes of relocations that are looked at in one step.
const PIECE: u64 = 1 << 20;
/// What relocations write is noted in blocks of this size, in bytes.
const BLOCK: u64 = 64 << 10;
/// Number of blocks that relocations write.
const MOST_BLOCKS: usize = 1 << 16;

/// Largest length of a table of symbols as a multiple of the length of their names: an entry has up
/// to 24 bytes, and a name hardly ever fewer than six.
const TABLE_TO_NAMES: u64 = 4;

/// Distance below which the initialization and the termination function are adjacent, in bytes.
const ADJACENT: u64 = 4096;
/// Length of a file below which its executable segment holds little but code, in bytes.
const SMALL: u64 = 8 << 20;

const HEADER: u64 = 64;
const SEGMENT: usize = 56;
const ENTRY: usize = 16;
const RELOCATION: usize = 24;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PF_X: u32 = 1;
const PT_GNU_RELRO: u32 = 0x6474_e552;

/// The relocation that adds the load address: x86-64, AArch64, RISC-V.
const RELATIVE: [u32; 3] = [8, 1027, 3];

/// What a step found out. Ranges are those of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ElfFindings {
    /// What is needed before the next step finds out more.
    pub next: Vec<Range<u64>>,
    /// What loading the file touches.
    pub touched: Vec<Range<u64>>,
    /// The code between the initialization and the termination function.
    pub code: Option<Range<u64>>,
    /// Names of libraries that are loaded as well.
    pub needed: Vec<Vec<u8>>,
    /// Where they are searched for before the usual places, separated by colons.
    pub search: Vec<u8>,
}

/// A walk through the structures of one ELF file.
#[derive(Debug)]
pub struct ElfWalk {
    len: u64,
    stage: Stage,
    segments: Vec<Segment>,
    /// The functions that the loader calls by address lie in these tables (of addresses).
    calls: Vec<Range<u64>>,
    relocations: Vec<Range<u64>>,
    relocations_left: u64,
    written: BTreeSet<u64>,
}

#[derive(Debug)]
enum Stage {
    Header,
    Segments(Range<u64>),
    Dynamic(Range<u64>),
    Names(Vec<(u64, bool)>),
    Relocations,
    Done,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    kind: u32,
    executable: bool,
    offset: u64,
    address: u64,
    length: u64,
}

impl ElfWalk {
    /// Begins with a file of this length.
    #[must_use]
    pub const fn new(len: u64) -> Self {
        Self {
            len,
            stage: Stage::Header,
            segments: Vec::new(),
            calls: Vec::new(),
            relocations: Vec::new(),
            relocations_left: MOST_RELOCATIONS,
            written: BTreeSet::new(),
        }
    }

    /// Whether there is nothing more to find out.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// Goes as far as the bytes allow that `read` has: it fills a buffer from an offset of the file
    /// and returns false if they are not there yet.
    pub fn step(&mut self, mut read: impl FnMut(u64, &mut [u8]) -> bool) -> ElfFindings {
        let mut found = ElfFindings::default();
        loop {
            let stage = std::mem::replace(&mut self.stage, Stage::Done);
            let (next, missing) = match stage {
                Stage::Header => self.header(&mut read),
                Stage::Segments(at) => self.segments(at, &mut read),
                Stage::Dynamic(at) => self.dynamic(at, &mut read, &mut found),
                Stage::Names(names) => self.names(names, &mut read, &mut found),
                Stage::Relocations => self.relocations(&mut read, &mut found),
                Stage::Done => return found,
            };
            self.stage = next;
            if !missing.is_empty() {
                found.next = missing;
                return found;
            }
        }
    }

    /// A range that lies in the file.
    fn range(&self, start: u64, length: u64) -> Option<Range<u64>> {
        let end = start.checked_add(length)?;
        (length > 0 && end <= self.len).then_some(start..end)
    }

    /// Offset in the file of an address, and the number of bytes from there to the end of its
    /// segment.
    fn at_address(&self, address: u64) -> Option<(u64, u64)> {
        let loads = self.segments.iter().filter(|s| s.kind == PT_LOAD);
        loads.into_iter().find_map(|segment| {
            let within = address.checked_sub(segment.address)?;
            let left = segment
                .length
                .checked_sub(within)
                .filter(|left| *left > 0)?;
            Some((segment.offset.checked_add(within)?, left))
        })
    }

    /// The code that ends with the termination function.
    fn code_between(&self, init: u64, fini: u64) -> Option<Range<u64>> {
        // lld places both functions after the code, next to each other.
        let first = match fini.checked_sub(init)? < ADJACENT {
            true => self.segment_start(init)?,
            false => init,
        };
        let (start, left) = self.at_address(first)?;
        let length = fini.checked_sub(first)?.saturating_add(64);
        self.range(start, length.min(left))
    }

    /// Address at which the segment with an address starts.
    fn segment_start(&self, address: u64) -> Option<u64> {
        let mut loads = self.segments.iter().filter(|s| s.kind == PT_LOAD);
        let found = loads.find(|segment| {
            let within = address.checked_sub(segment.address);
            within.is_some_and(|within| within < segment.length)
        });
        found.map(|segment| segment.address)
    }

    fn header(&self, read: &mut impl FnMut(u64, &mut [u8]) -> bool) -> (Stage, Vec<Range<u64>>) {
        let mut header = [0; 64];
        if self.len < HEADER {
            return (Stage::Done, Vec::new());
        }
        if !read(0, &mut header) {
            let header = 0..HEADER;
            return (Stage::Header, vec![header]);
        }
        // ELF-64, little-endian.
        let is_known = header.starts_with(b"\x7fELF\x02\x01");
        let count = usize::from(number16(&header, 56)).min(MOST_SEGMENTS);
        let size = usize::from(number16(&header, 54));
        let table = self.range(number64(&header, 32), (count * SEGMENT) as u64);
        match table.filter(|_| is_known && size == SEGMENT) {
            Some(table) => (Stage::Segments(table), Vec::new()),
            None => (Stage::Done, Vec::new()),
        }
    }

    fn segments(
        &mut self,
        at: Range<u64>,
        read: &mut impl FnMut(u64, &mut [u8]) -> bool,
    ) -> (Stage, Vec<Range<u64>>) {
        let Some(bytes) = filled(&at, read) else {
            return (Stage::Segments(at.clone()), vec![at]);
        };
        let (entries, _) = bytes.as_chunks::<SEGMENT>();
        for entry in entries {
            let (offset, length) = (number64(entry, 8), number64(entry, 32));
            if self.range(offset, length).is_some() {
                self.segments.push(Segment {
                    kind: number32(entry, 0),
                    executable: number32(entry, 4) & PF_X != 0,
                    offset,
                    address: number64(entry, 16),
                    length,
                });
            }
        }
        let dynamic = self.segments.iter().find(|s| s.kind == PT_DYNAMIC);
        match dynamic {
            Some(found) => {
                let length = found.length.min((MOST_DYNAMIC * ENTRY) as u64);
                let range = found.offset..found.offset.saturating_add(length);
                (Stage::Dynamic(range), Vec::new())
            }
            None => (Stage::Done, Vec::new()),
        }
    }

    fn dynamic(
        &mut self,
        at: Range<u64>,
        read: &mut impl FnMut(u64, &mut [u8]) -> bool,
        found: &mut ElfFindings,
    ) -> (Stage, Vec<Range<u64>>) {
        let Some(bytes) = filled(&at, read) else {
            return (Stage::Dynamic(at.clone()), vec![at]);
        };
        let section = DynamicSection::parse(&bytes);
        found.touched.push(at);
        let relro = self.segments.iter().filter(|s| s.kind == PT_GNU_RELRO);
        let relro: Vec<_> = relro
            .filter_map(|segment| self.range(segment.offset, segment.length))
            .collect();
        found.touched.extend(relro);
        // Tables without a length reach to the next one, or to the end of their segment. One that is
        // alone in a large segment is smaller than that: patchelf(1) moves tables to a segment of
        // their own and leaves the others. None is much larger than the names of its symbols.
        let most = section
            .strings_length
            .saturating_mul(TABLE_TO_NAMES)
            .max(BLOCK);
        let starts: Vec<(u64, u64)> = section
            .tables
            .iter()
            .filter_map(|address| self.at_address(*address))
            .collect();
        for (start, left) in &starts {
            let next = starts
                .iter()
                .map(|(other, _)| *other)
                .filter(|o| o > start)
                .min();
            let length = next.map_or(0, |next| next - start).min(*left).min(most);
            // The last one: some of it, as its length is unknown.
            let length = if length == 0 {
                (*left).min(BLOCK)
            } else {
                length
            };
            found.touched.extend(self.range(*start, length));
        }
        let strings = self.at_address(section.strings);
        if let Some((start, left)) = strings {
            found
                .touched
                .extend(self.range(start, section.strings_length.min(left)));
        }
        for (address, length) in &section.relocations {
            let Some((start, left)) = self.at_address(*address) else {
                continue;
            };
            if let Some(table) = self.range(start, (*length).min(left)) {
                found.touched.push(table.clone());
                self.relocations.push(table);
            }
        }
        let code = match section.code {
            Some((init, fini)) => self.code_between(init, fini),
            // Some libraries have neither function; a large one may have data in the segment.
            None if self.len <= SMALL => {
                let mut segments = self.segments.iter();
                let code = segments.find(|s| s.kind == PT_LOAD && s.executable);
                code.and_then(|segment| self.range(segment.offset, segment.length))
            }
            None => None,
        };
        found.code = code;
        self.calls = section.calls;
        let names = section.needed.iter().map(|at| (*at, false));
        let names = names.chain(section.search.map(|at| (at, true)));
        let names = names.filter_map(|(at, search)| {
            let (start, left) = strings?;
            let within = at < left.min(section.strings_length);
            within.then(|| (start.saturating_add(at), search))
        });
        (Stage::Names(names.collect()), Vec::new())
    }

    fn names(
        &self,
        names: Vec<(u64, bool)>,
        read: &mut impl FnMut(u64, &mut [u8]) -> bool,
        found: &mut ElfFindings,
    ) -> (Stage, Vec<Range<u64>>) {
        let (mut left, mut missing) = (Vec::new(), Vec::new());
        for (at, search) in names {
            let end = at.saturating_add(MOST_NAME as u64).min(self.len);
            let Some(bytes) = filled(&(at..end), read) else {
                left.push((at, search));
                missing.push(at..end);
                continue;
            };
            let text: Vec<u8> = bytes
                .iter()
                .copied()
                .take_while(|byte| *byte != 0)
                .collect();
            if text.is_empty() || text.len() == bytes.len() {
                continue;
            }
            match search {
                true => found.search = text,
                false => found.needed.push(text),
            }
        }
        match left.is_empty() {
            true => (Stage::Relocations, missing),
            false => (Stage::Names(left), missing),
        }
    }

    /// Looks at one piece of the relocations.
    fn relocations(
        &mut self,
        read: &mut impl FnMut(u64, &mut [u8]) -> bool,
        found: &mut ElfFindings,
    ) -> (Stage, Vec<Range<u64>>) {
        let table = self.relocations.pop();
        let Some(table) = table.filter(|_| self.relocations_left > 0) else {
            let blocks = std::mem::take(&mut self.written);
            let ranges = blocks.into_iter().map(|block| block * BLOCK);
            let ranges = ranges.map(|start| start..start.saturating_add(BLOCK).min(self.len));
            found.touched.extend(ranges);
            return (Stage::Done, Vec::new());
        };
        let piece = PIECE - PIECE % RELOCATION as u64;
        let end = table.end.min(table.start.saturating_add(piece));
        let Some(bytes) = filled(&(table.start..end), read) else {
            self.relocations.push(table.clone());
            let piece = table.start..end;
            return (Stage::Relocations, vec![piece]);
        };
        self.relocations_left = self.relocations_left.saturating_sub(end - table.start);
        if end < table.end {
            self.relocations.push(end..table.end);
        }
        let mut last = None;
        let (entries, _) = bytes.as_chunks::<RELOCATION>();
        for entry in entries {
            let (target, kind) = (number64(entry, 0), number32(entry, 8));
            let is_call = self.calls.iter().any(|table| table.contains(&target));
            if is_call && RELATIVE.contains(&kind) {
                self.note_written(number64(entry, 16), &mut last);
            }
            self.note_written(target, &mut last);
        }
        (Stage::Relocations, Vec::new())
    }

    fn note_written(&mut self, address: u64, last: &mut Option<u64>) {
        let Some((offset, _)) = self.at_address(address) else {
            return;
        };
        let block = offset / BLOCK;
        if *last != Some(block) && self.written.len() < MOST_BLOCKS {
            *last = Some(block);
            self.written.insert(block);
        }
    }
}

/// The dynamic section: addresses, lengths, and offsets of names.
#[derive(Debug, Default)]
struct DynamicSection {
    strings: u64,
    strings_length: u64,
    tables: Vec<u64>,
    relocations: Vec<(u64, u64)>,
    code: Option<(u64, u64)>,
    calls: Vec<Range<u64>>,
    needed: Vec<u64>,
    search: Option<u64>,
}

impl DynamicSection {
    fn parse(bytes: &[u8]) -> Self {
        let mut section = Self::default();
        let mut values = [0_u64; 40];
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        for entry in entries {
            let (tag, value) = (number64(entry, 0), number64(entry, 8));
            match tag {
                0 => break,
                1 if section.needed.len() < MOST_NEEDED => section.needed.push(value),
                15 | 29 => section.search = Some(value),
                // DT_GNU_HASH, DT_VERSYM, DT_VERDEF, DT_VERNEED
                0x6fff_fef5 | 0x6fff_fff0 | 0x6fff_fffc | 0x6fff_fffe => section.tables.push(value),
                _ => {
                    let slot = usize::try_from(tag)
                        .ok()
                        .and_then(|tag| values.get_mut(tag));
                    if let Some(slot) = slot {
                        *slot = value;
                    }
                }
            }
        }
        let value = |tag: usize| values.get(tag).copied().unwrap_or_default();
        // DT_HASH, DT_STRTAB, DT_SYMTAB
        section
            .tables
            .extend([4, 5, 6].map(value).into_iter().filter(|at| *at > 0));
        (section.strings, section.strings_length) = (value(5), value(10));
        // DT_RELA, DT_JMPREL
        for (table, length) in [(7, 8), (23, 2)] {
            if value(table) > 0 && value(length) > 0 {
                section.relocations.push((value(table), value(length)));
            }
        }
        // DT_INIT_ARRAY, DT_FINI_ARRAY
        for (table, length) in [(25, 27), (26, 28)] {
            let end = value(table).saturating_add(value(length));
            section.calls.push(value(table)..end);
        }
        // DT_INIT, DT_FINI: GNU ld places all code between the two.
        section.code = (value(12) > 0 && value(13) > value(12)).then(|| (value(12), value(13)));
        section
    }
}

/// The bytes of a range, if they are there.
fn filled(range: &Range<u64>, read: &mut impl FnMut(u64, &mut [u8]) -> bool) -> Option<Vec<u8>> {
    let length = usize::try_from(range.end.saturating_sub(range.start)).ok()?;
    let mut bytes = vec![0; length];
    read(range.start, &mut bytes).then_some(bytes)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    found.copied().unwrap_or([0; N])
}

fn number16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn number64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Walks a file of which all bytes are there.
    fn walk(file: &[u8]) -> (ElfFindings, usize) {
        let mut walk = ElfWalk::new(file.len() as u64);
        let mut read = 0;
        let found = walk.step(|at, buffer| {
            read += buffer.len();
            let start = usize::try_from(at).unwrap();
            buffer.copy_from_slice(&file[start..start + buffer.len()]);
            true
        });
        assert!(walk.is_done());
        (found, read)
    }

    fn check(file: &[u8]) -> ElfFindings {
        let (found, read) = walk(file);
        let all = found.touched.iter().chain(&found.code);
        for range in all {
            assert!(range.start < range.end && range.end <= file.len() as u64);
        }
        let most = MOST_NEEDED * MOST_NAME + usize::try_from(MOST_RELOCATIONS).unwrap();
        assert!(read <= 2 * most, "{read}");
        assert!(found.needed.len() <= MOST_NEEDED);
        found
    }

    fn library() -> Vec<u8> {
        // Any dynamic program: this test itself.
        static FILE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let file = || std::fs::read("/proc/self/exe").unwrap();
        FILE.get_or_init(file).clone()
    }

    #[test]
    fn a_real_program_says_what_it_loads() {
        let file = library();
        let found = check(&file);
        let needed: Vec<_> = found
            .needed
            .iter()
            .map(|n| String::from_utf8_lossy(n))
            .collect();
        assert!(
            needed.iter().any(|name| name.starts_with("libc.so")),
            "{needed:?}"
        );
        let code = found.code.unwrap();
        assert!(code.end - code.start > 100_000, "{code:?}");
        assert!(found.touched.len() > 4, "{:?}", found.touched);
    }

    #[test]
    fn a_file_is_walked_as_its_bytes_arrive() {
        let file = library();
        let whole = check(&file);
        let mut walk = ElfWalk::new(file.len() as u64);
        let mut stored: Vec<Range<u64>> = Vec::new();
        let (mut needed, mut rounds) = (Vec::new(), 0);
        while !walk.is_done() {
            let found = walk.step(|at, buffer| {
                let end = at + buffer.len() as u64;
                let has = stored
                    .iter()
                    .any(|range| range.start <= at && end <= range.end);
                if has {
                    let start = usize::try_from(at).unwrap();
                    buffer.copy_from_slice(&file[start..start + buffer.len()]);
                }
                has
            });
            needed.extend(found.needed);
            assert!(walk.is_done() || !found.next.is_empty());
            stored.extend(found.next);
            rounds += 1;
            assert!(rounds < 200);
        }
        needed.sort();
        let mut all = whole.needed;
        all.sort();
        assert_eq!(needed, all);
    }

    /// A file of zeros with these segments (kind, start, length), mapped where they lie, and dynamic
    /// entries at the start of the last one.
    fn synthetic(len: usize, segments: &[(u64, u64, u64)], dynamic: &[(u64, u64)]) -> Vec<u8> {
        let mut file = vec![0; len];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        file[54] = 56;
        file[56] = u8::try_from(segments.len()).unwrap();
        let mut put = |at: usize, value: u64| {
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        for (number, (kind, start, length)) in segments.iter().enumerate() {
            let at = 64 + SEGMENT * number;
            put(at, *kind);
            put(at + 8, *start);
            put(at + 16, *start);
            put(at + 32, *length);
        }
        let at = usize::try_from(segments.last().unwrap().1).unwrap();
        for (number, (tag, value)) in dynamic.iter().enumerate() {
            put(at + ENTRY * number, *tag);
            put(at + ENTRY * number + 8, *value);
        }
        file
    }

    /// The names are in a segment of their own behind data of 16 MiB, as patchelf(1) leaves them:
    /// the hash table before the data does not reach through it.
    #[test]
    fn a_table_that_is_alone_in_a_large_segment_is_no_larger_than_names_allow() {
        const DATA: u64 = 16 << 20;
        const HASH: u64 = 0x6fff_fef5;
        let segments = [
            (PT_LOAD.into(), 0, DATA),
            (PT_LOAD.into(), DATA, 1 << 20),
            (PT_DYNAMIC.into(), DATA, 4096),
        ];
        let dynamic = [
            (HASH, 4096),
            (6, DATA + 8192),
            (5, DATA + 65_536),
            (10, 100_000),
        ];
        let found = check(&synthetic(17 << 20, &segments, &dynamic));
        let table = found.touched.iter().find(|range| range.start == 4096);
        assert_eq!(table.unwrap().clone(), 4096..4096 + 400_000);
        let symbols = DATA + 8192..DATA + 65_536;
        assert!(found.touched.contains(&symbols), "{:?}", found.touched);
    }

    /// Walks a file of any length, zeros behind its start. Returns the number of bytes read as well.
    fn walk_sparse(start: &[u8], len: u64) -> (ElfFindings, u64) {
        let mut walk = ElfWalk::new(len);
        let mut read = 0;
        let found = walk.step(|at, buffer| {
            read += buffer.len() as u64;
            let at = usize::try_from(at).unwrap().min(start.len());
            let bytes = &start[at..start.len().min(at + buffer.len())];
            buffer[..bytes.len()].copy_from_slice(bytes);
            true
        });
        assert!(walk.is_done());
        (found, read)
    }

    #[test]
    fn of_a_gigabyte_of_relocations_64_mib_are_looked_at() {
        const LEN: u64 = 1 << 30;
        const TABLE: u64 = 1 << 20;
        let segments = [(PT_LOAD.into(), 0, LEN), (PT_DYNAMIC.into(), 4096, 64)];
        // DT_RELA, DT_RELASZ
        let start = synthetic(8192, &segments, &[(7, TABLE), (8, LEN - TABLE)]);
        let (found, read) = walk_sparse(&start, LEN);
        assert!(found.touched.contains(&(TABLE..LEN)));
        let most = MOST_RELOCATIONS + 2 * PIECE;
        assert!((MOST_RELOCATIONS..most).contains(&read), "{read}");
    }

    #[test]
    fn of_many_dynamic_entries_and_libraries_the_first_are_looked_at() {
        const LEN: u64 = 1 << 20;
        let segments = [(PT_LOAD.into(), 0, LEN), (PT_DYNAMIC.into(), 4096, 1 << 16)];
        let names = 128 << 10;
        // DT_STRTAB, DT_STRSZ, DT_NEEDED
        let mut dynamic = vec![(5, names), (10, 100)];
        dynamic.extend([(1, 0); 4000]);
        let mut start = synthetic(256 << 10, &segments, &dynamic);
        start[128 << 10] = b'l';
        let (found, _) = walk_sparse(&start, LEN);
        assert_eq!(found.needed, vec![b"l".to_vec(); MOST_NEEDED]);
        let section = 4096..4096 + (MOST_DYNAMIC * ENTRY) as u64;
        assert_eq!(found.touched[0], section);
    }

    #[test]
    fn other_files_have_no_findings() {
        let mut big_endian = library();
        big_endian[5] = 2;
        let mut small = library();
        small[4] = 1;
        for file in [
            &b"#!/bin/sh\n"[..],
            b"",
            &[0; 4096],
            &big_endian,
            &small,
            &library()[..64],
        ] {
            assert_eq!(walk(file).0, ElfFindings::default());
        }
    }

    proptest! {
        #[test]
        fn a_file_that_lies_costs_bounded_work(
            changes in prop::collection::vec((0..0x400_usize, any::<u64>()), 1..40),
            dynamic in prop::collection::vec((0..0x40_u64, any::<u64>()), 0..64),
        ) {
            static START: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let mut file = START.get_or_init(|| library()[..1 << 20].to_vec()).clone();
            // Segments that lie within what is left.
            for (at, value) in changes {
                file[at + 16..at + 24].copy_from_slice(&value.to_le_bytes());
            }
            check(&file);
            let segments = [(PT_LOAD.into(), 0, 1 << 20), (PT_DYNAMIC.into(), 4096, 2048)];
            let dynamic = dynamic.into_iter();
            let near = |value: u64| if value.is_multiple_of(3) { value } else { value % (1 << 20) };
            let dynamic: Vec<_> = dynamic.map(|(tag, value)| (tag, near(value))).collect();
            check(&synthetic(1 << 20, &segments, &dynamic));
        }
    }
}
