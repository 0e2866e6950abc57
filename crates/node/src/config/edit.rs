//! Changes of one configuration file. Comments, order and everything else in it stay.

use serde::{Deserialize, Serialize};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use super::{ConfigError, ContainerdRelease};

/// Name of the proxy plugin, and of the snapshotter.
const NAME: &str = "soci";
/// The snapshotter of a containerd that names none.
const DEFAULT: &str = "overlayfs";
const CAPABILITIES: [&str; 2] = ["remap-ids", "multi-remap-ids"];
const TRANSFER: [&str; 2] = ["plugins", "io.containerd.transfer.v1.local"];
const SNAPSHOTTER: &str = "snapshotter";
const WITHOUT_ANNOTATIONS: &str = "disable_snapshot_annotations";
const UNPACK: &str = "unpack_config";

/// Where the snapshotter of a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshotter {
    /// Path of its socket.
    pub socket: String,
    /// Its root folder, which the kubelet's disk accounting looks at.
    pub root: String,
}

/// What the CRI plugin's keys were before the first change; `None` for keys that were not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// `snapshotter`.
    pub snapshotter: Option<String>,
    /// `disable_snapshot_annotations`.
    pub disable_snapshot_annotations: Option<bool>,
}

/// A configuration file that is being changed.
#[derive(Debug)]
pub struct Edit {
    path: String,
    document: DocumentMut,
    version: i64,
}

impl Edit {
    /// Reads the main file. An empty one counts as the newest version that the release reads.
    ///
    /// # Errors
    /// It is not TOML, or of a version with other tables.
    pub fn of(path: &str, text: &str, release: ContainerdRelease) -> Result<Self, ConfigError> {
        let mut document = Self::parsed(path, text)?;
        if document.is_empty() {
            document.insert("version", release.format().into());
            // What containerd imports without a file of its own, it shall import with this one.
            if release >= (ContainerdRelease { major: 2, minor: 2 }) {
                let imports: Array = std::iter::once("/etc/containerd/conf.d/*.toml").collect();
                document.insert("imports", Item::Value(imports.into()));
            }
        }
        Self::checked(path, document, 1, release)
    }

    /// Reads an imported file, which has the version of the main file if it states none.
    pub(crate) fn of_imported(
        path: &str,
        text: &str,
        main_version: i64,
        release: ContainerdRelease,
    ) -> Result<Self, ConfigError> {
        Self::checked(path, Self::parsed(path, text)?, main_version, release)
    }

    fn parsed(path: &str, text: &str) -> Result<DocumentMut, ConfigError> {
        text.parse().map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source,
        })
    }

    fn checked(
        path: &str,
        document: DocumentMut,
        unstated: i64,
        release: ContainerdRelease,
    ) -> Result<Self, ConfigError> {
        let version = document.get("version").and_then(Item::as_integer);
        let version = version.unwrap_or(unstated);
        let newest = if release.merges_plugins() { 4 } else { 2 };
        if !(2..=newest).contains(&version) {
            return Err(ConfigError::Version {
                path: path.to_owned(),
                version,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            document,
            version,
        })
    }

    /// An empty file of a version of the format, below a comment.
    pub(crate) fn new(path: &str, version: i64, comment: &str) -> Self {
        let mut document = DocumentMut::new();
        document.insert("version", version.into());
        if let Some(mut key) = document.key_mut("version") {
            key.leaf_decor_mut().set_prefix(comment);
        }
        Self {
            path: path.to_owned(),
            document,
            version,
        }
    }

    /// Version of the format.
    #[must_use]
    pub fn version(&self) -> i64 {
        self.version
    }

    /// Path of the table that selects the snapshotter of CRI.
    fn cri(&self) -> &'static [&'static str] {
        if self.version >= 3 {
            &["plugins", "io.containerd.cri.v1.images"]
        } else {
            &["plugins", "io.containerd.grpc.v1.cri", "containerd"]
        }
    }

    /// Whether the file has a section of the plugin that selects the snapshotter of CRI.
    pub(crate) fn has_cri(&self) -> bool {
        let [plugins, plugin, ..] = self.cri() else {
            return false;
        };
        self.find(&[plugins, plugin]).is_some()
    }

    /// Whether the file has CRI's table of runtimes, as version 2 has it.
    pub(crate) fn has_runtimes(&self) -> bool {
        self.find(self.cri())
            .is_some_and(|table| table.get("runtimes").is_some())
    }

    /// The values of CRI's keys.
    #[must_use]
    pub fn before(&self) -> Before {
        let value = |key| self.find(self.cri()).and_then(|table| table.get(key));
        Before {
            snapshotter: value(SNAPSHOTTER).and_then(Item::as_str).map(str::to_owned),
            disable_snapshot_annotations: value(WITHOUT_ANNOTATIONS).and_then(Item::as_bool),
        }
    }

    /// Makes the snapshotter known to containerd: `[proxy_plugins.soci]`.
    ///
    /// # Errors
    /// A key on the way is not a table.
    pub fn add_plugin(
        &mut self,
        snapshotter: &Snapshotter,
        release: ContainerdRelease,
    ) -> Result<(), ConfigError> {
        let plugin = self.table(&["proxy_plugins", NAME])?;
        set(plugin, "type", "snapshot".into());
        set(plugin, "address", snapshotter.socket.as_str().into());
        let capabilities: Array = CAPABILITIES.into_iter().collect();
        set(plugin, "capabilities", capabilities.into());
        if release.merges_plugins() {
            let exports = self.table(&["proxy_plugins", NAME, "exports"])?;
            set(exports, "root", snapshotter.root.as_str().into());
            set(exports, "enable_remote_snapshot_annotations", "true".into());
        }
        Ok(())
    }

    /// Makes CRI use the snapshotter and send the labels that lazy loading needs. `has_runtimes` is whether
    /// some file has a table of CRI's runtimes.
    ///
    /// # Errors
    /// A key on the way is not a table.
    pub(crate) fn select(
        &mut self,
        release: ContainerdRelease,
        has_runtimes: bool,
    ) -> Result<(), ConfigError> {
        let cri = self.table(self.cri())?;
        set(cri, SNAPSHOTTER, NAME.into());
        set(cri, WITHOUT_ANNOTATIONS, false.into());
        // containerd 2.x migrates a table of version 2 only if it has runtimes, and otherwise drops it.
        if self.version == 2 && release.merges_plugins() && !has_runtimes {
            let runc = [self.cri(), &["runtimes", "runc"]].concat();
            let runc = self.table(&runc)?;
            set(runc, "runtime_type", "io.containerd.runc.v2".into());
        }
        Ok(())
    }

    /// The entries of the transfer service's `unpack_config`.
    pub(crate) fn unpack(&self) -> Vec<InlineTable> {
        let entries = self.find(&TRANSFER).and_then(|table| table.get(UNPACK));
        match entries {
            Some(Item::ArrayOfTables(tables)) => tables
                .iter()
                .cloned()
                .map(Table::into_inline_table)
                .collect(),
            Some(Item::Value(Value::Array(array))) => array
                .iter()
                .filter_map(|v| v.as_inline_table().cloned())
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Makes the transfer service unpack with the snapshotter, beside the entries that it has already.
    ///
    /// # Errors
    /// A key on the way is not a table.
    pub(crate) fn let_transfer_unpack(
        &mut self,
        existing: &[InlineTable],
    ) -> Result<(), ConfigError> {
        let names = |entry: &InlineTable| {
            let name = entry.get(SNAPSHOTTER).and_then(Value::as_str);
            name.map(str::to_owned)
        };
        let own = self.unpack();
        if own
            .iter()
            .any(|entry| names(entry).as_deref() == Some(NAME))
        {
            return Ok(());
        }
        let mut tables = ArrayOfTables::new();
        let mut push = |entry: InlineTable| {
            let mut table = Table::new();
            for (key, value) in entry {
                table.insert(&key, Item::Value(value.decorated(" ", "")));
            }
            tables.push(table);
        };
        push(entry_of(NAME));
        // Without an entry of its own, overlayfs is what containerd unpacks with.
        let kept = if existing.is_empty() {
            vec![entry_of(DEFAULT)]
        } else {
            existing.to_vec()
        };
        kept.into_iter()
            .filter(|entry| names(entry).as_deref() != Some(NAME))
            .for_each(&mut push);
        let transfer = self.table(&TRANSFER)?;
        transfer.insert(UNPACK, Item::ArrayOfTables(tables));
        Ok(())
    }

    /// Restores the values that CRI had; the proxy plugin stays.
    ///
    /// # Errors
    /// A key on the way is not a table.
    pub fn hand_back(&mut self, before: &Before) -> Result<(), ConfigError> {
        if self.find(self.cri()).is_none() {
            return Ok(());
        }
        let cri = self.table(self.cri())?;
        let ours = cri.get(SNAPSHOTTER).and_then(Item::as_str) == Some(NAME);
        if ours {
            restore(
                cri,
                SNAPSHOTTER,
                before.snapshotter.as_deref().map(Value::from),
            );
            let annotations = before.disable_snapshot_annotations.map(Value::from);
            restore(cri, WITHOUT_ANNOTATIONS, annotations);
        }
        Ok(())
    }

    /// Removes everything that concerns the snapshotter.
    ///
    /// # Errors
    /// A key on the way is not a table.
    pub fn remove(&mut self, before: &Before) -> Result<(), ConfigError> {
        self.hand_back(before)?;
        if self.find(&["proxy_plugins"]).is_some() {
            let plugins = self.table(&["proxy_plugins"])?;
            plugins.remove(NAME);
            if plugins.is_empty() {
                self.document.remove("proxy_plugins");
            }
        }
        let is_ours =
            |table: &dyn TableLike| table.get(SNAPSHOTTER).and_then(Item::as_str) == Some(NAME);
        if self.find(&TRANSFER).is_some() {
            let transfer = self.table(&TRANSFER)?;
            match transfer.get_mut(UNPACK) {
                Some(Item::ArrayOfTables(tables)) => tables.retain(|table| !is_ours(table)),
                Some(Item::Value(Value::Array(array))) => {
                    array.retain(|v| !v.as_inline_table().is_some_and(|t| is_ours(t)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The text of the file.
    #[must_use]
    pub fn text(&self) -> String {
        self.document.to_string()
    }

    fn find(&self, path: &[&str]) -> Option<&dyn TableLike> {
        let mut table: &dyn TableLike = self.document.as_table();
        for key in path {
            table = table.get(key)?.as_table_like()?;
        }
        Some(table)
    }

    /// The table at a path, made where it is missing.
    fn table(&mut self, path: &[&str]) -> Result<&mut dyn TableLike, ConfigError> {
        let file = self.path.clone();
        let mut table: &mut dyn TableLike = self.document.as_table_mut();
        for (depth, key) in path.iter().enumerate() {
            if table.get(key).is_none() {
                let mut made = Table::new();
                made.set_implicit(depth + 1 < path.len());
                table.insert(key, Item::Table(made));
            }
            let item = table.get_mut(key).and_then(Item::as_table_like_mut);
            table = item.ok_or_else(|| ConfigError::Shape {
                path: file.clone(),
                key: path
                    .iter()
                    .take(depth + 1)
                    .copied()
                    .collect::<Vec<_>>()
                    .join("."),
            })?;
        }
        Ok(table)
    }
}

/// An entry of `unpack_config`.
fn entry_of(snapshotter: &str) -> InlineTable {
    let mut entry = InlineTable::new();
    entry.insert("platform", "linux".into());
    entry.insert(SNAPSHOTTER, snapshotter.into());
    entry
}

/// Sets a key to a value, and leaves it as it is written if it has this value already.
fn set(table: &mut dyn TableLike, key: &str, value: Value) {
    let same = table
        .get(key)
        .and_then(Item::as_value)
        .is_some_and(|had| bare(had) == bare(&value));
    if same {
        return;
    }
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(had) => {
            let decor = had.decor().clone();
            *had = value;
            *had.decor_mut() = decor;
        }
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}

fn restore(table: &mut dyn TableLike, key: &str, value: Option<Value>) {
    match value {
        Some(value) => set(table, key, value),
        None => {
            table.remove(key);
        }
    }
}

/// A value without the white space and comments around it.
fn bare(value: &Value) -> String {
    match value {
        Value::Array(array) => array.iter().map(bare).collect::<Vec<_>>().join(","),
        Value::String(text) => format!("{:?}", text.value()),
        other => {
            let mut other = other.clone();
            other.decor_mut().clear();
            other.to_string()
        }
    }
}
