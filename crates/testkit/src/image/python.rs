//! todo
/// todo
pub const APP_SCRIPT: &str = "";
/// todo
pub const PYTHON_TAG: &str = "";
/// todo
pub fn python_image() -> anyhow::Result<super::OciImage> { anyhow::bail!("todo") }
