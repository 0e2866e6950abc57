//! Which images may be lazy, and what is done about layers that have not been verified.

use crate::schema::{Broken, Section, Visitor};
use crate::values::WithoutImageStore;

/// `[trust]`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trust {
    /// Use an index that the client names even if `[pull_modes]` enables no kind.
    pub explicit_index: bool,
    /// Prefixes of the registries and repositories whose images may be lazy; empty: all.
    pub lazy_registries: Vec<String>,
    /// What is done with layers that are not verified if containerd's image store does not answer.
    pub without_image_store: WithoutImageStore,
}

impl Section for Trust {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.flag("explicit_index", &mut self.explicit_index);
        v.texts("lazy_registries", &mut self.lazy_registries);
        v.choice("without_image_store", &mut self.without_image_store);
    }

    fn check(&self) -> Vec<Broken> {
        let wrong = |prefix: &&String| {
            let unusable = |c: char| c.is_whitespace() || c.is_control() || "*?@#\\".contains(c);
            prefix.trim_matches('/').is_empty()
                || prefix.starts_with('/')
                || prefix.contains("://")
                || prefix.contains(unusable)
        };
        let wrong = self.lazy_registries.iter().filter(wrong);
        let allowed = "prefixes such as \"registry.example.com\" or \"registry.example.com/team\", \
                       without scheme, tag or wildcard";
        wrong
            .map(|prefix| Broken::new("lazy_registries", format!("{prefix:?}"), allowed))
            .collect()
    }
}
