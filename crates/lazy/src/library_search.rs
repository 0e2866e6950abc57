//! Where the loader of ELF files looks for a library, within the layers of an image.

use soci_layerfs::Tree;

/// Where libraries are searched for after the places that a file names: those of Debian, Fedora,
/// Alpine and their derivatives. Not read from the image: a hint that misses costs nothing.
const USUAL: [&[u8]; 9] = [
    b"/lib/x86_64-linux-gnu",
    b"/usr/lib/x86_64-linux-gnu",
    b"/lib/aarch64-linux-gnu",
    b"/usr/lib/aarch64-linux-gnu",
    b"/lib64",
    b"/usr/lib64",
    b"/lib",
    b"/usr/lib",
    b"/usr/local/lib",
];
/// Places that a file names.
const MOST_PLACES: usize = 64;

/// The library `name` that the file at `path` needs: number of the layer, and inode number.
/// `search` are the places that the file names, separated by colons.
pub(crate) fn find_library<'a>(
    layers: impl Iterator<Item = (usize, &'a Tree)> + Clone,
    path: &[u8],
    name: &[u8],
    search: &[u8],
) -> Option<(usize, u64)> {
    let folder = parent(path);
    let found = |path: &[u8]| {
        layers.clone().find_map(|(number, tree)| {
            let ino = tree.resolve(path, true).ok()?;
            tree.extent(ino).map(|_| (number, ino))
        })
    };
    if name.contains(&b'/') {
        return found(name);
    }
    let own = search
        .split(|byte| *byte == b':')
        .filter(|place| !place.is_empty())
        .take(MOST_PLACES)
        .map(|place| with_origin(place, folder));
    let usual = USUAL.iter().map(|place| place.to_vec());
    let mut places = own.chain(usual).chain([folder.to_vec()]);
    places.find_map(|mut place| {
        place.push(b'/');
        place.extend_from_slice(name);
        found(&place)
    })
}

/// The folder of a path.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path.get(..end).unwrap_or_default()
}

/// A place with the file's folder for `$ORIGIN`.
fn with_origin(place: &[u8], folder: &[u8]) -> Vec<u8> {
    for origin in [&b"$ORIGIN"[..], b"${ORIGIN}"] {
        if let Some(rest) = place.strip_prefix(origin) {
            return [folder, rest].concat();
        }
    }
    place.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_the_file_stands_for_origin() {
        let folder = parent(b"/opt/app/lib/liba.so");
        assert_eq!(folder, b"/opt/app/lib");
        assert_eq!(parent(b"liba.so"), b"");
        assert_eq!(with_origin(b"$ORIGIN/../x", folder), b"/opt/app/lib/../x");
        assert_eq!(with_origin(b"${ORIGIN}", folder), b"/opt/app/lib");
        assert_eq!(with_origin(b"/usr/lib", folder), b"/usr/lib");
    }
}
