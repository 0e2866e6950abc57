//! The configuration file that `make install` puts into /etc.

use std::path::Path;

use soci_config::{Config, SHIPPED};

#[test]
fn the_shipped_file_changes_no_default() {
    let loaded = Config::parse(SHIPPED, Path::new("config.toml")).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert_eq!(loaded.config, Config::default());
}

#[test]
fn the_shipped_file_names_every_key_with_its_default() {
    // "#key" is a key, "# text" is a comment.
    let uncommented: String = SHIPPED
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let shown: toml::Table = uncommented.parse().unwrap();
    let defaults: toml::Table = Config::default().to_toml().parse().unwrap();
    assert_eq!(shown, defaults);
}

/// A key of the shipped file: its table, its line without "#", and what the comments around it say.
struct Key {
    table: String,
    line: String,
    marks: String,
}

fn keys() -> Vec<Key> {
    let (mut table, mut of_table, mut comment) = (String::new(), String::new(), String::new());
    let mut after_comment = false;
    let mut keys = Vec::new();
    for line in SHIPPED.lines() {
        if line.starts_with("# ") || line == "#" {
            if !after_comment {
                comment.clear();
            }
            comment += line;
        } else if line.starts_with('[') {
            table = format!("{line}\n");
            of_table = std::mem::take(&mut comment);
        } else if let Some(key) = line.strip_prefix('#') {
            keys.push(Key {
                table: table.clone(),
                line: key.to_owned(),
                marks: format!("{of_table} {comment}"),
            });
        } else {
            comment.clear();
        }
        after_comment = line.starts_with("# ");
    }
    keys
}

/// The line with another value than its default, after its table, and what else it needs to be allowed.
fn changed(key: &Key) -> String {
    let Key { table, line, .. } = key;
    let (name, default) = line.split_once(" = ").unwrap();
    let another = match default.parse::<i64>() {
        Ok(number) if number >= 0 => (number + 1).to_string(),
        _ => "5".to_owned(),
    };
    let value = match (name, default) {
        ("metrics_address", _) => "':1'",
        ("metrics_network", _) => "'unix'",
        ("metadata_store", _) => "'db-multi'",
        ("drop_policy", _) => "'oldest'",
        ("type", _) => "'containerd'",
        ("without_image_store", _) => "'allow'",
        ("sharing", _) => "'isolated'",
        ("eager_memory_bytes", _) => "67108864",
        ("concurrent_download_chunk_size", _) => "'8mb'",
        ("config_path", _) if table.contains("kubelet") => "'/x'\nbin_dir = '/y'",
        (_, "[]") => "['registry.example']",
        (_, "true") => "false",
        (_, "false") => "true",
        (_, text) if text.starts_with('"') => "'/x'",
        _ => &another,
    };
    format!("{table}{name} = {value}\n")
}

/// The comments of the file say what the daemon's log says, and nothing else.
#[test]
fn the_marks_of_the_shipped_file_are_what_the_log_says() {
    let keys = keys();
    assert!(keys.len() > 50, "{}", keys.len());
    for key in &keys {
        let text = changed(key);
        let config = Config::parse(&text, Path::new("config.toml"))
            .unwrap()
            .config;
        assert_ne!(config, Config::default(), "{text}");
        for (mark, told) in [
            ("(not yet)", config.not_yet_supported()),
            ("(v0.15)", config.without_effect()),
        ] {
            // The path of a keychain that is off, and the kind of an address that is not set, are
            // not worth a warning.
            let silent = ["kubeconfig_path", "image_service_path"]
                .iter()
                .any(|name| key.line.starts_with(name));
            assert_eq!(
                key.marks.contains(mark) && !silent,
                !told.is_empty(),
                "{mark} {text}"
            );
        }
    }
}
