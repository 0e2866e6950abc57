//! The registries whose images may be lazy.

use soci_layer::LayerRefusal;
use soci_oci::Reference;

/// The registries and repositories whose images may be mounted lazily (`[trust] lazy_registries`).
/// The default is all of them.
///
/// A lazy layer is checked against its digests only once all of it is stored. Layers of other
/// registries are unpacked, which checks them first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LazyRegistries(Vec<String>);

impl LazyRegistries {
    /// Creates the list from prefixes such as `registry.example.com` or
    /// `registry.example.com/team`. An empty list allows all registries.
    #[must_use]
    pub fn new(prefixes: impl IntoIterator<Item = String>) -> Self {
        let prefixes = prefixes.into_iter();
        Self(
            prefixes
                .map(|prefix| prefix.trim_end_matches('/').to_ascii_lowercase())
                .collect(),
        )
    }

    /// Checks that an image may be lazy.
    ///
    /// # Errors
    /// [`LayerRefusal::UntrustedRegistry`].
    pub fn check(&self, image: &Reference) -> Result<(), LayerRefusal> {
        let name = image.name().to_ascii_lowercase();
        let covers = |prefix: &String| {
            let rest = name.strip_prefix(prefix.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match self.0.is_empty() || self.0.iter().any(covers) {
            true => Ok(()),
            false => Err(LayerRefusal::UntrustedRegistry { repository: name }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_whole_components_of_a_name() {
        let allows = |prefixes: &[&str], image: &str| {
            let list = LazyRegistries::new(prefixes.iter().map(|&prefix| prefix.to_owned()));
            list.check(&image.parse().unwrap()).is_ok()
        };
        assert!(allows(&[], "registry.example/a:1"));
        let list = [
            "registry.example",
            "other.example:5000/team/",
            "docker.io/library",
        ];
        for (image, allowed) in [
            ("registry.example/a:1", true),
            (
                "registry.example/a/b@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
                true,
            ),
            ("registry.example.evil.example/a:1", false),
            ("registry.example:5000/a:1", false),
            ("other.example:5000/team/app:1", true),
            ("other.example:5000/teams/app:1", false),
            ("other.example:5000/app:1", false),
            ("alpine", true),
            ("docker.io/evil/alpine", false),
        ] {
            assert_eq!(allows(&list, image), allowed, "{image}");
        }
    }

    #[test]
    fn the_refusal_names_the_repository_and_the_key() {
        let list = LazyRegistries::new(["a.example".to_owned()]);
        let refusal = list.check(&"b.example/app:1".parse().unwrap()).unwrap_err();
        assert_eq!(refusal.code(), "untrusted-registry");
        let text = refusal.to_string();
        assert!(
            text.contains("b.example/app") && text.contains("lazy_registries"),
            "{text}"
        );
    }
}
