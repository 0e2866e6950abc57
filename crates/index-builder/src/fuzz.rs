//! Entry points of the fuzz targets.

use std::collections::{BTreeMap, BTreeSet};

use soci_oci::Reference;

use crate::event::{self, Reported};
use crate::{Decision, Filters, Push, PushPolicy};

/// An event of a registry: a push that is read names an image of its registry, and is written and read
/// again as the same; a push that is to be indexed has a tag.
///
/// # Panics
/// Something of this does not hold.
pub fn push_event(data: &[u8]) {
    let reported = match event::parse(data) {
        Ok(reported) => reported,
        Err(error) => {
            assert!(error.to_string().starts_with("cannot read the event: "));
            return;
        }
    };
    let policy = PushPolicy {
        filters: Filters::default(),
        registries: BTreeSet::new(),
        aliases: BTreeMap::new(),
        suffix: "-soci".to_owned(),
    };
    for one in reported {
        let Reported::Push(push) = one else { continue };
        let again =
            serde_json::to_vec(&push).and_then(|written| serde_json::from_slice::<Push>(&written));
        assert_eq!(again.ok().as_ref(), Some(&push));
        let name: Option<Reference> = push.tagged_name().parse().ok();
        let named = name
            .as_ref()
            .map(|name| (name.registry(), name.repository(), name.tag()));
        // A reference without a tag means this one.
        let tag = push.tag.as_deref().unwrap_or("latest");
        assert_eq!(named, Some((&*push.registry, &*push.repository, Some(tag))));
        if let Decision::Index(wanted) = policy.decide(push.clone()) {
            assert!(wanted == push && wanted.tag.is_some());
        }
    }
}
