//! What a key of a Docker configuration is for: a registry, or part of one. The rules are those of
//! the kubelet (`pkg/credentialprovider/keyring.go`): hosts may have globs, paths are prefixes.

use soci_oci::Reference;

/// How much of a registry a credential is for, the most specific last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CredentialScope {
    /// All repositories of a host.
    Host,
    /// Repositories whose path begins with that many bytes.
    Path(usize),
    /// One image.
    Image,
}

impl CredentialScope {
    /// Returns the scope of the key of a Docker configuration (a host, a host with a path, or a URL
    /// as older versions wrote), if it is for `registry_host` and the repository of `reference`.
    #[must_use]
    pub fn of_key(key: &str, registry_host: &str, reference: Option<&Reference>) -> Option<Self> {
        let bare = key
            .strip_prefix("https://")
            .or_else(|| key.strip_prefix("http://"))
            .unwrap_or(key);
        let (host, path) = match bare.split_once('/') {
            Some((host, path)) => (host, path),
            None => (bare, ""),
        };
        let hosts_match =
            (is_hub(host) && is_hub(registry_host)) || host_matches(host, registry_host);
        if !hosts_match {
            return None;
        }
        // The versions of the API are not part of a repository's path.
        let path = match path.split_once('/') {
            Some(("v1" | "v2", rest)) => rest,
            None if matches!(path, "v1" | "v2") => "",
            _ => path,
        };
        if path.is_empty() {
            return Some(Self::Host);
        }
        reference?
            .repository()
            .starts_with(path)
            .then_some(Self::Path(path.len()))
    }
}

/// Whether a name is one of Docker's registry.
pub(crate) fn is_hub(host: &str) -> bool {
    matches!(
        host,
        "docker.io" | "index.docker.io" | "registry-1.docker.io"
    )
}

/// Compares hosts label by label, each of which may have globs; ports must be the same.
fn host_matches(pattern: &str, host: &str) -> bool {
    if pattern == host {
        return true;
    }
    let ((pattern, pattern_port), (host, port)) = (split_port(pattern), split_port(host));
    let (patterns, labels) = (pattern.split('.'), host.split('.'));
    pattern_port == port
        && patterns.clone().count() == labels.clone().count()
        && patterns
            .zip(labels)
            .all(|(pattern, label)| glob(pattern.as_bytes(), label.as_bytes()))
}

fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (name, port)
        }
        _ => (host, ""),
    }
}

/// Matches `*`, `?`, `[a-z]`, `[^a-z]` and `\c` as Go's `path.Match` does. In each step the last `*`
/// takes one byte more: the time is at most the product of the lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let rest = pattern.get(at..).unwrap_or_default();
        let step = match (rest, text.get(from)) {
            ([], None) => return true,
            ([b'*', ..], _) => {
                star = Some((at + 1, from));
                at += 1;
                continue;
            }
            (_, Some(byte)) => one(rest, *byte),
            (_, None) => return false,
        };
        match (step, star) {
            (Some(length), _) => {
                at += length;
                from += 1;
            }
            (None, Some((after, taken))) => {
                star = Some((after, taken + 1));
                (at, from) = (after, taken + 1);
            }
            (None, None) => return false,
        }
    }
}

/// The length of the pattern's first element, if that matches the byte.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', class @ ..] => {
            let end = class.iter().skip(1).position(|b| *b == b']')? + 1;
            let inside = class.get(..end)?;
            let (negated, inside) = match inside {
                [b'^', inside @ ..] => (true, inside),
                inside => (false, inside),
            };
            let mut rest = inside;
            let mut found = false;
            while let [first, after @ ..] = rest {
                rest = match after {
                    [b'-', last, after @ ..] => {
                        found |= (*first..=*last).contains(&byte);
                        after
                    }
                    after => {
                        found |= *first == byte;
                        after
                    }
                };
            }
            (found != negated).then_some(end + 2)
        }
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_as_the_kubelet_matches_them() {
        use CredentialScope::{Host, Path};
        let scope = |key, image: &str| {
            let reference: Reference = image.parse().unwrap();
            CredentialScope::of_key(key, reference.registry(), Some(&reference))
        };
        for (key, image, expected) in [
            ("r.example", "r.example/a/b", Some(Host)),
            ("https://r.example/v2/", "r.example/a/b", Some(Host)),
            ("r.example/a", "r.example/a/b", Some(Path(1))),
            ("r.example/a/b", "r.example/a/b:t", Some(Path(3))),
            ("https://r.example/v1/a", "r.example/a/b", Some(Path(1))),
            ("r.example/c", "r.example/a/b", None),
            ("r.example:443", "r.example/a", None),
            ("*.example", "r.example/a", Some(Host)),
            ("*.example", "x.r.example/a", None),
            ("*.*.example", "x.r.example/a", Some(Host)),
            ("*.kubernetes.io/x", "reg.kubernetes.io/x/y", Some(Path(1))),
            ("prefix*.io:5000", "prefix-1.io:5000/a", Some(Host)),
            ("prefix*.io:5000", "prefix-1.io/a", None),
            ("r?.e[a-x]ample", "r1.example/a", Some(Host)),
            ("r[^0-9].example", "r1.example/a", None),
            ("docker.io", "busybox", Some(Host)),
            ("index.docker.io/v1/", "me/app", Some(Host)),
            ("index.docker.io/me", "docker.io/me/app", Some(Path(2))),
            ("*", "localhost/a", Some(Host)),
            ("[", "r.example/a", None),
        ] {
            assert_eq!(scope(key, image), expected, "{key} {image}");
        }
        assert_eq!(
            CredentialScope::of_key("r.example/a", "r.example", None),
            None
        );
        let deep = "*a".repeat(2_000);
        assert!(!glob(deep.as_bytes(), "a".repeat(1_000).as_bytes()));
    }
}
