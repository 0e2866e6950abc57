//! What an ELF program is linked with.

use object::Endianness;
use object::elf::{
    DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, FileHeader32, FileHeader64,
};
use object::read::elf::{Dyn as _, FileHeader, ProgramHeader as _};

/// What the kernel and the dynamic linker load with a program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Links {
    /// The dynamic linker.
    pub(super) interpreter: Option<String>,
    /// Names of libraries.
    pub(super) libraries: Vec<String>,
    /// Folders that the program wants searched first. `$ORIGIN` is left out.
    pub(super) folders: Vec<String>,
}

/// The links of a program or library; empty if the file is not ELF.
pub(super) fn links(content: &[u8]) -> Links {
    match object::FileKind::parse(content) {
        Ok(object::FileKind::Elf64) => read::<FileHeader64<Endianness>>(content),
        Ok(object::FileKind::Elf32) => read::<FileHeader32<Endianness>>(content),
        _ => None,
    }
    .unwrap_or_default()
}

fn read<Elf: FileHeader<Endian = Endianness>>(content: &[u8]) -> Option<Links> {
    let header = Elf::parse(content).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, content).ok()?;
    let mut links = Links::default();
    for segment in segments {
        if let Ok(Some(name)) = segment.interpreter(endian, content) {
            links.interpreter = text(name);
        }
        let Ok(Some(entries)) = segment.dynamic(endian, content) else {
            continue;
        };
        let value = |tag: u32| {
            let tag = u64::from(tag);
            let entry = entries
                .iter()
                .find(|entry| entry.d_tag(endian).into() == tag)?;
            Some(entry.d_val(endian).into())
        };
        let (address, size) = (value(DT_STRTAB)?, value(DT_STRSZ)?);
        let strings = segments
            .iter()
            .find_map(|segment| segment.data_range(endian, content, address, size).ok()?)?;
        for entry in entries {
            let tag: u64 = entry.d_tag(endian).into();
            if tag == u64::from(DT_NULL) {
                break;
            }
            let offset: u64 = entry.d_val(endian).into();
            let name = || {
                let rest = strings.get(usize::try_from(offset).ok()?..)?;
                text(rest.split(|byte| *byte == 0).next()?)
            };
            if tag == u64::from(DT_NEEDED) {
                links.libraries.extend(name());
            } else if tag == u64::from(DT_RUNPATH) || tag == u64::from(DT_RPATH) {
                let folders = name().unwrap_or_default();
                let absolute = folders.split(':').filter(|folder| folder.starts_with('/'));
                links.folders.extend(absolute.map(ToOwned::to_owned));
            }
        }
    }
    Some(links)
}

fn text(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(bytes).ok().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::links;

    #[test]
    fn a_program_names_its_dynamic_linker_and_its_libraries() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let found = links(&own);
        assert!(found.interpreter.unwrap().starts_with("/lib"), "the linker");
        assert!(
            found
                .libraries
                .iter()
                .any(|name| name.starts_with("libc.so")),
            "{:?}",
            found.libraries
        );
    }

    #[test]
    fn a_file_that_is_not_a_program_has_no_links() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for content in [&b""[..], b"#!/bin/sh", &own[..100], &own[..3000]] {
            let found = links(content);
            assert!(found.libraries.is_empty(), "{found:?}");
        }
    }
}
