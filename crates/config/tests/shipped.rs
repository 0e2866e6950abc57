//! The configuration file that `make install` puts into /etc.

use std::path::Path;

use config::Config;

#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
fn shipped() -> String {
    std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../config/config.toml"
    ))
    .unwrap()
}

#[test]
fn the_shipped_file_changes_no_default() {
    let loaded = Config::parse(&shipped(), Path::new("config.toml")).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert_eq!(loaded.config, Config::default());
}

#[test]
fn the_shipped_file_names_every_key_with_its_default() {
    // "#key" is a key, "# text" is a comment.
    let uncommented: String = shipped()
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
