//! Names in tars: cleaned and split, without a look at any file system.

/// The parts of a path that stand for something: not empty, not `.`.
pub fn raw_parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
}

/// The parts of a path cleaned by its letters, as Go's `filepath.Clean` does: `a/../b` is `b`
/// whatever `a` is, and nothing leads above the root.
pub fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut clean: Vec<&[u8]> = Vec::new();
    for part in raw_parts(path) {
        if part == b".." {
            clean.pop();
        } else {
            clean.push(part);
        }
    }
    clean.into_iter()
}

/// A path in its clean form: the components of [`parts`], joined by single slashes, without one at
/// either end.
#[must_use]
pub fn clean(path: &[u8]) -> Vec<u8> {
    parts(path).collect::<Vec<_>>().join(&b'/')
}

/// A tar name's parent path and last part; `None` for the root. The parent path may need cleaning.
#[must_use]
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let last = parts(path).last()?;
    // Its place in `path` is found from the end: `..` takes away the part before it.
    let mut end = path.len();
    let mut skip = 0_usize;
    loop {
        let head = path.get(..end)?;
        let start = head
            .iter()
            .rposition(|&byte| byte == b'/')
            .map_or(0, |slash| slash + 1);
        let part = head.get(start..)?;
        match part {
            b"" | b"." => {}
            b".." => skip += 1,
            _ if skip > 0 => skip -= 1,
            _ => {
                debug_assert_eq!(part, last);
                return Some((path.get(..start)?, part));
            }
        }
        end = start.checked_sub(1)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_in_their_clean_form() {
        for path in [
            "/usr/bin/env",
            "./usr/bin/env",
            "usr//bin/./env",
            "/x/../usr/bin/env/",
        ] {
            assert_eq!(clean(path.as_bytes()), b"usr/bin/env", "{path}");
        }
        assert_eq!(clean(b"/"), b"");
    }

    #[test]
    fn names_are_split_after_cleaning() {
        let split = |path: &'static str| {
            split(path.as_bytes()).map(|(parent, base)| {
                let printable = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
                let parent: Vec<_> = parts(parent).map(printable).collect();
                (parent.join("/"), printable(base))
            })
        };
        let some = |parent: &str, base: &str| Some((parent.to_owned(), base.to_owned()));
        assert_eq!(split("a"), some("", "a"));
        assert_eq!(split("./a/b/"), some("a", "b"));
        assert_eq!(split("/a//b/./c"), some("a/b", "c"));
        assert_eq!(split("../../etc"), some("", "etc"));
        assert_eq!(split("a/b/../c"), some("a", "c"));
        assert_eq!(split("a/b/c/.."), some("a", "b"));
        assert_eq!(split("a/b/../.."), None);
        assert_eq!(split("./"), None);
        assert_eq!(split(""), None);
        assert_eq!(split("/.."), None);
        assert_eq!(split("../a/.."), None);
    }
}
