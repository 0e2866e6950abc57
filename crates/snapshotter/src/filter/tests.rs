//! Every construct of the filter language: accepted and refused forms, and what they match.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

struct Thing {
    name: &'static str,
    labels: BTreeMap<&'static str, &'static str>,
}

impl Fields for Thing {
    fn field(&self, path: &[String]) -> Option<&str> {
        match path.split_first()? {
            (first, []) if first == "name" => Some(self.name),
            (first, rest) if first == "labels" => self.labels.get(rest.join(".").as_str()).copied(),
            _ => None,
        }
    }
}

fn accepts(filter: &str) -> bool {
    let thing = Thing {
        name: "sha256:abc",
        labels: [
            ("env", "prod"),
            ("containerd.io/snapshot.ref", "T"),
            ("a.b", "c,d \"e\""),
        ]
        .into(),
    };
    Filters::parse(&[filter]).unwrap().accepts(&thing)
}

fn refuses(filter: &str) {
    let error = Filters::parse(&[filter]).unwrap_err();
    assert!(error.to_string().contains("byte"), "{error}");
}

#[test]
fn no_filter_and_the_empty_filter_accept_everything() {
    let nothing = Thing {
        name: "",
        labels: BTreeMap::new(),
    };
    assert!(Filters::parse::<&str>(&[]).unwrap().accepts(&nothing));
    assert!(accepts(""));
}

#[test]
fn equality_inequality_and_presence() {
    assert!(accepts("name==sha256:abc"));
    assert!(accepts("name == sha256:abc"));
    assert!(!accepts("name==other"));
    assert!(accepts("name!=other"));
    assert!(!accepts("name!=sha256:abc"));
    assert!(accepts("labels.env"));
    assert!(!accepts("labels.absent"));
    assert!(!accepts("absent"));
    // An absent field is unequal to everything but the empty string.
    assert!(accepts("labels.absent!=x"));
    assert!(!accepts("labels.absent==\"\""));
    assert!(!accepts("labels.absent!=\"\""));
}

#[test]
fn field_paths_take_dots_and_quotes() {
    assert!(accepts("labels.\"containerd.io/snapshot.ref\"==T"));
    assert!(accepts("\"labels\".\"env\"==prod"));
    assert!(accepts("labels.a.b"));
    assert!(accepts("labels. a.b"));
    assert!(accepts("labels.\"a\".\"b\"==\"c,d \\\"e\\\"\""));
}

#[test]
fn values_take_gos_escapes() {
    assert!(accepts(r#"labels.env=="\x70\162\u006f\U00000064""#));
    assert!(!accepts(r#"labels.env=="\xff""#));
    assert!(!accepts(r#"labels.env=="\ud800""#));
    assert!(!accepts(r#"labels.env=="\Uffffffff""#));
    for broken in [
        r#"a=="\x7""#,
        r#"a=="\400""#,
        r#"a=="\18""#,
        r#"a=="\U00110000""#,
        r#"a=="\q""#,
        r#"a=="\/""#,
        r#"a=="open"#,
        r#"a=="open\"#,
        "a==\"new\nline\"",
    ] {
        refuses(broken);
    }
}

#[test]
fn regular_expressions_match_anywhere_and_have_own_quotes() {
    assert!(accepts("name~=256"));
    assert!(accepts("name~=/^sha[0-9]+:/"));
    assert!(accepts("name~=|^sha|"));
    assert!(accepts("name~=\"c$\""));
    assert!(!accepts("name~=^256"));
    assert!(accepts(r"name~=/sha\x32/"));
    assert!(accepts("labels.absent~=/^$/"));
    // As in containerd, an expression that cannot be compiled matches nothing and is not an error.
    assert!(!accepts("name~=/(/"));
}

#[test]
fn a_comma_is_and_several_filters_are_or() {
    assert!(accepts("name~=sha,labels.env==prod"));
    assert!(accepts("name~=sha, labels.env==prod"));
    assert!(!accepts("name~=sha,labels.env==test"));
    let thing = Thing {
        name: "n",
        labels: BTreeMap::new(),
    };
    assert!(
        Filters::parse(&["name==x", "name==n"])
            .unwrap()
            .accepts(&thing)
    );
    assert!(
        !Filters::parse(&["name==x", "name==y"])
            .unwrap()
            .accepts(&thing)
    );
}

#[test]
fn malformed_filters_are_refused() {
    for filter in [
        "=",
        "==",
        "name=x",
        "name===x",
        "name=!x",
        "name~~x",
        "name<x",
        "name==",
        "name== ",
        ",",
        "name,",
        ",name",
        "name==x,",
        "name==x y",
        "name==x ,name",
        "name ,name",
        ".",
        "name.",
        ".name",
        "name..x",
        "labels.é",
        "labels.a-b",
        "name==\u{fffd}",
        "name==\"\u{fffd}\"",
        "name==/x/",
        "name==|x|",
        "/name/==x",
        "|n|",
        "\"name",
        "name==.x",
        "name==!x",
        "name~=/x",
        "name x",
        "\u{0}",
        "name==\u{0}",
    ] {
        refuses(filter);
    }
}

#[test]
fn what_an_index_can_use_is_found() {
    let path = ["labels", "containerd.io/snapshot.ref"];
    let filters = Filters::parse(&[
        "labels.\"containerd.io/snapshot.ref\"==T,parent==\"p\"",
        "kind==committed,labels.\"containerd.io/snapshot.ref\"==U",
    ])
    .unwrap();
    assert_eq!(filters.demanded(&path), Some(vec!["T", "U"]));
    let filters = Filters::parse(&["labels.\"containerd.io/snapshot.ref\"==T", "name"]).unwrap();
    assert_eq!(filters.demanded(&path), None);
    assert_eq!(Filters::parse::<&str>(&[]).unwrap().demanded(&path), None);
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_without_panic(filter in ".{0,40}") {
        let _ = Filters::parse(&[filter]);
    }

    #[test]
    fn a_value_quoted_as_containerd_quotes_it_is_found(value in "[ -~]{0,20}") {
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
        let filters = Filters::parse(&[format!("name==\"{quoted}\"")]).unwrap();
        prop_assert_eq!(filters.demanded(&["name"]), Some(vec![value.as_str()]));
    }
}
