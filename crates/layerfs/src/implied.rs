//! The directories of a layer that only the names of other entries imply: they look as in the layers
//! below, as if containerd had unpacked the layer there.

use std::collections::{HashMap, HashSet};
use std::io;

use serde::{Deserialize, Serialize};
use soci_layer::{DirectoryAttributes, LowerLayer, attributes_below};
use soci_meter::{Limits, Meter};

use crate::inode::S_ISGID;
use crate::name_table::to_index;
use crate::options::{TreeError, TreeOptions};
use crate::tree::Tree;
use crate::xattr_sets::MOST_OF_A_FILE;

/// Format of the stored form.
const VERSION: u32 = 1;
/// Most names that are looked up in layers below. A layer of 5,000 implied directories ten deep on
/// twenty others needs at most a million.
const MOST_STEPS: u64 = 20_000_000;

/// Why the attributes of implied directories are not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImpliedError {
    /// A layer below cannot be read.
    #[error("cannot read the layers below")]
    Below(#[source] io::Error),
    /// They take too much, or no caller waits for them.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The stored form is malformed.
    #[error("cannot parse the stored attributes of implied directories")]
    Malformed(#[source] serde_json::Error),
    /// The stored form is of another tree or version.
    #[error("the stored attributes of implied directories are of another zTOC or format")]
    Foreign,
}

/// The attributes that implied directories of one layer have on top of certain other layers, where
/// they differ from those in the layer's tree.
#[derive(Debug, Default)]
pub struct ImpliedDirectories {
    /// Inode numbers, ascending, and positions in `attributes`.
    directories: Vec<(u32, u32)>,
    attributes: Vec<DirectoryAttributes>,
}

/// The stored form.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    /// Checksum of the numbering of the tree.
    tree: String,
    attributes: Vec<DirectoryAttributes>,
    directories: Vec<(u32, u32)>,
}

impl ImpliedDirectories {
    /// Whether a tree has such directories at all.
    #[must_use]
    pub fn are_in(tree: &Tree) -> bool {
        tree.implied().next().is_some()
    }

    /// Looks up a tree's implied directories in the layers below, nearest first.
    ///
    /// # Errors
    /// A layer below cannot be read, or the limits of `options` are exceeded.
    pub fn look_up(
        tree: &Tree,
        below: &[Box<dyn LowerLayer>],
        options: &TreeOptions,
    ) -> Result<Self, ImpliedError> {
        let limits = Limits {
            bytes: options.memory,
            steps: MOST_STEPS,
        };
        let mut meter = Meter::new("the attributes of implied directories", limits);
        if let Some(key) = options.memory_key {
            meter = meter.memory_set_by(key);
        }
        let mut lookup = Lookup {
            tree,
            meter,
            found: Self::default(),
            known: HashMap::new(),
            absent: HashSet::new(),
            setgid: HashMap::new(),
        };
        for (at, (ino, meta, parent)) in tree.implied().enumerate() {
            if at.is_multiple_of(64) && options.cancelled.is_set() {
                return Err(TreeError::Cancelled.into());
            }
            let attributes = lookup.below(below, ino, parent)?;
            let mut shown = DirectoryAttributes {
                mode: meta.mode() & 0o7777,
                uid: meta.uid,
                gid: meta.gid,
                xattrs: Vec::new(),
            };
            match attributes {
                Some(attributes) if meta.is_only_implied() => shown = attributes,
                Some(attributes) => shown.xattrs = attributes.xattrs,
                None if meta.is_in_implied() && meta.is_only_implied() => {
                    let inherited = lookup.setgid.get(&parent);
                    shown.gid = inherited.copied().unwrap_or(shown.gid);
                }
                None => {}
            }
            lookup.add(ino, shown)?;
        }
        Ok(lookup.found)
    }

    /// The stored form.
    #[must_use]
    pub fn encode(&self, tree: &Tree) -> Vec<u8> {
        let stored = Stored {
            version: VERSION,
            tree: tree.numbering_checksum().to_string(),
            attributes: self.attributes.clone(),
            directories: self.directories.clone(),
        };
        // Serialisation cannot fail: there are no maps.
        serde_json::to_vec(&stored).unwrap_or_default()
    }

    /// Parses the stored form for the same tree.
    ///
    /// # Errors
    /// It is malformed, or of another tree.
    pub fn decode(bytes: &[u8], tree: &Tree) -> Result<Self, ImpliedError> {
        let stored: Stored = serde_json::from_slice(bytes).map_err(ImpliedError::Malformed)?;
        if stored.version != VERSION || stored.tree != tree.numbering_checksum().to_string() {
            return Err(ImpliedError::Foreign);
        }
        Ok(Self {
            directories: stored.directories,
            attributes: stored.attributes,
        })
    }

    /// Memory that they take, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let attributes = self.attributes.iter().map(size_of_attributes);
        size_of_val(&*self.directories) + attributes.sum::<usize>()
    }

    /// The attributes of a directory, if they are not those in the tree.
    pub(crate) fn get(&self, ino: u64) -> Option<&DirectoryAttributes> {
        let ino = u32::try_from(ino).ok()?;
        let at = self.directories.binary_search_by_key(&ino, |(ino, _)| *ino);
        let (_, attributes) = self.directories.get(at.ok()?)?;
        self.attributes.get(to_index(*attributes))
    }

    /// All attributes that directories have.
    pub(crate) fn all(&self) -> &[DirectoryAttributes] {
        &self.attributes
    }
}

/// The state of a lookup in the layers below.
struct Lookup<'a> {
    tree: &'a Tree,
    meter: Meter,
    found: ImpliedDirectories,
    /// The positions of the attributes found so far.
    known: HashMap<DirectoryAttributes, u32>,
    /// Directories that no layer below has: nor has one what is in them.
    absent: HashSet<u32>,
    /// The groups of directories that have the set-group-ID bit below.
    setgid: HashMap<u32, u32>,
}

impl Lookup<'_> {
    /// The attributes of a directory in the layers below.
    fn below(
        &mut self,
        layers: &[Box<dyn LowerLayer>],
        ino: u32,
        parent: u32,
    ) -> Result<Option<DirectoryAttributes>, ImpliedError> {
        // An entry in each of the tables.
        self.charge(64)?;
        let mut attributes = None;
        if !self.absent.contains(&parent) {
            let path = self.tree.path(ino.into());
            let path = path.strip_prefix(b"/").unwrap_or(&path);
            let names = path.split(|byte| *byte == b'/').count() as u64;
            let steps = names.saturating_mul(layers.len() as u64 + 1);
            self.meter.step(steps).map_err(TreeError::from)?;
            attributes = attributes_below(layers, path).map_err(ImpliedError::Below)?;
        }
        match &attributes {
            None => drop(self.absent.insert(ino)),
            Some(attributes) if attributes.mode & S_ISGID != 0 => {
                self.setgid.insert(ino, attributes.gid);
            }
            Some(_) => {}
        }
        Ok(attributes)
    }

    /// Adds what a directory shows, unless the tree says the same. Its own extended attributes win.
    fn add(&mut self, ino: u32, mut shown: DirectoryAttributes) -> Result<(), ImpliedError> {
        let own = self.tree.xattrs(ino.into());
        shown
            .xattrs
            .retain(|(name, _)| self.tree.xattr(ino.into(), name).is_none());
        let inherited = shown.xattrs.len();
        shown
            .xattrs
            .extend(own.map(|(name, value)| (name.to_vec(), value.to_vec())));
        shown.xattrs.sort_unstable();
        let tree = self.tree.attr(ino.into()).unwrap_or_default();
        let owner = (tree.mode & 0o7777, tree.uid, tree.gid);
        if inherited == 0 && owner == (shown.mode, shown.uid, shown.gid) {
            return Ok(());
        }
        let bytes: usize = shown.xattrs.iter().map(size_of_xattr).sum();
        if bytes > MOST_OF_A_FILE {
            return Err(ImpliedError::Tree(TreeError::TooManyXattrs {
                name: String::from_utf8_lossy(&self.tree.path(ino.into())).into_owned(),
                most: MOST_OF_A_FILE,
            }));
        }
        let next = u32::try_from(self.found.attributes.len()).map_err(|_| TreeError::TooLarge)?;
        let at = match self.known.get(&shown) {
            Some(&at) => at,
            None => {
                // Here and in the table.
                self.charge(2 * size_of_attributes(&shown))?;
                self.found.attributes.push(shown.clone());
                self.known.insert(shown, next);
                next
            }
        };
        self.found.directories.push((ino, at));
        Ok(())
    }

    fn charge(&mut self, bytes: usize) -> Result<(), TreeError> {
        Ok(self.meter.charge(bytes as u64)?)
    }
}

fn size_of_attributes(of: &DirectoryAttributes) -> usize {
    size_of_val(of) + of.xattrs.iter().map(size_of_xattr).sum::<usize>()
}

fn size_of_xattr((name, value): &(Vec<u8>, Vec<u8>)) -> usize {
    size_of::<(Vec<u8>, Vec<u8>)>() + name.len() + value.len()
}
