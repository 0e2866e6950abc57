//! Images that take long to make are kept between test runs.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use soci_oci::Digest;

/// The folder of an image that is described completely by `recipe`; `make` builds it when it is not
/// there. One process builds at a time, the others wait.
///
/// Kept in `$SOCI_TEST_CACHE`, by default `target/testkit-cache`.
pub(crate) fn cached(recipe: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = folder();
    std::fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let name: String = Digest::of(recipe.as_bytes())
        .hex()
        .chars()
        .take(16)
        .collect();
    let ready = cache.join(&name);
    let lock = File::create(cache.join(format!("{name}.lock"))).context("make a cache lock")?;
    lock.lock().context("lock the image cache")?;
    if ready.is_dir() {
        return Ok(ready);
    }
    let building = cache.join(format!("{name}.new"));
    if building.exists() {
        std::fs::remove_dir_all(&building).context("remove a half-built image")?;
    }
    std::fs::create_dir_all(&building)?;
    make(&building)?;
    std::fs::rename(&building, &ready).context("keep a built image")?;
    Ok(ready)
}

fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("SOCI_TEST_CACHE") {
        return PathBuf::from(folder);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map(PathBuf::from)
        .or_else(|| workspace.map(|workspace| workspace.join("target")));
    target
        .unwrap_or_else(std::env::temp_dir)
        .join("testkit-cache")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_followed_once_and_a_failed_build_is_not_kept() {
        let recipe = format!("test {}", std::process::id());
        assert!(cached(&recipe, |_| anyhow::bail!("no")).is_err());
        let first = cached(&recipe, |dir| Ok(std::fs::write(dir.join("x"), "1")?)).unwrap();
        let again = cached(&recipe, |_| anyhow::bail!("built twice")).unwrap();
        assert_eq!(first, again);
        assert_eq!(std::fs::read(again.join("x")).unwrap(), b"1");
        std::fs::remove_dir_all(&first).unwrap();
        std::fs::remove_file(first.with_extension("lock")).unwrap();
    }
}
