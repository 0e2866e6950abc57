//! Which of the reported pushes are indexed.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Filters, Push};

/// Prefix of the tags with which registries without the referrers API list referrers, and which
/// signing tools use (OCI distribution specification 1.1, "Referrers Tag Schema").
const REFERRERS_TAG: &str = "sha256-";

/// What is appended to the tag of an indexed image unless told otherwise.
pub const DEFAULT_TAG_SUFFIX: &str = "-soci";

/// Which of the reported pushes are indexed.
#[derive(Debug, Clone)]
pub struct PushPolicy {
    /// The images that are indexed.
    pub filters: Filters,
    /// The registries whose images are indexed; empty: all.
    pub registries: BTreeSet<String>,
    /// Names under which events and this program know one registry: from the event's to ours.
    pub aliases: BTreeMap<String, String>,
    /// What is appended to the tags of indexed images.
    pub suffix: String,
}

/// What is to be done about a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is to be indexed.
    Index(Push),
    /// It is left alone, for this reason.
    Ignore(String),
}

impl PushPolicy {
    /// Decides about a push.
    #[must_use]
    pub fn decide(&self, mut push: Push) -> Decision {
        if let Some(known) = self.aliases.get(&push.registry) {
            push.registry.clone_from(known);
        }
        if !self.registries.is_empty() && !self.registries.contains(&push.registry) {
            return Decision::Ignore(format!(
                "{push}: registry {} is not one of --registry",
                push.registry
            ));
        }
        let Some(tag) = &push.tag else {
            // The images of a multi-platform image come this way, and what is written beside images.
            return Decision::Ignore(format!("{push}: it was pushed without a tag"));
        };
        if !self.suffix.is_empty() && tag.ends_with(&self.suffix) {
            return Decision::Ignore(format!(
                "{push}: its tag ends with {}, as those of indexed images do",
                self.suffix
            ));
        }
        if is_referrers_tag(tag) {
            return Decision::Ignore(format!("{push}: its tag is that of an artifact"));
        }
        if !self.filters.select(&push.repository, tag) {
            return Decision::Ignore(format!("{push}: no filter is for it"));
        }
        Decision::Index(push)
    }
}

fn is_referrers_tag(tag: &str) -> bool {
    let hex = tag
        .strip_prefix(REFERRERS_TAG)
        .and_then(|rest| rest.get(..64));
    hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> PushPolicy {
        PushPolicy {
            filters: "app*:*".parse().unwrap(),
            registries: BTreeSet::from(["registry.example".to_owned()]),
            aliases: BTreeMap::from([("registry:5000".to_owned(), "registry.example".to_owned())]),
            suffix: "-soci".to_owned(),
        }
    }

    fn push(registry: &str, repository: &str, tag: Option<&str>) -> Push {
        Push::new(registry, repository, tag, None).unwrap()
    }

    #[test]
    fn only_tagged_images_of_the_registries_that_a_filter_is_for_are_indexed() {
        let policy = policy();
        let index = policy.decide(push("registry.example", "app", Some("1")));
        assert!(matches!(index, Decision::Index(_)), "{index:?}");
        for other in [
            push("registry.example", "other", Some("1")),
            push("elsewhere.example", "app", Some("1")),
            push("registry.example", "app", None),
        ] {
            let decision = policy.decide(other.clone());
            assert!(matches!(decision, Decision::Ignore(_)), "{other}");
        }
    }

    #[test]
    fn what_this_program_pushes_does_not_start_it_again() {
        let artifact = format!("sha256-{}", "0".repeat(64));
        for tag in ["1-soci", &artifact, &format!("{artifact}.sig")] {
            let decision = policy().decide(push("registry.example", "app", Some(tag)));
            assert!(matches!(decision, Decision::Ignore(_)), "{tag}");
        }
    }

    #[test]
    fn a_registry_is_known_under_the_name_that_events_have_for_it() {
        let Decision::Index(push) = policy().decide(push("registry:5000", "app", Some("1"))) else {
            panic!("it is ignored");
        };
        assert_eq!(push.registry, "registry.example");
    }
}
