//! Directories that a layer only implies look as if the layer had been unpacked: the lazy tree on top
//! of lazy and unpacked layers is held against what is unpacked on top of unpacked ones.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use soci_layer::{LayerProvider as _, LayerRequest, LowerLayer, ParentLayer, attributes_below};
use soci_layerfs::{ImpliedDirectories, ImpliedError, Tree, TreeError, TreeOptions, TreeView};
use soci_lazy::{LazyConfig, MemoryLimits};
use soci_testkit::Layer;
use soci_unpack::{ApplyOptions, LowerDirectory, apply};
use soci_ztoc::{BuildOptions, Compression};

use crate::large_ztoc::{alone, small, world};

/// Mode, owner, group and extended attributes of each directory, by path.
type Directories = BTreeMap<PathBuf, (u32, u32, u32, Vec<(Vec<u8>, Vec<u8>)>)>;

/// A layer of a chain in both forms.
struct Both {
    view: TreeView,
    unpacked: PathBuf,
}

fn tar(layer: &Layer) -> Vec<u8> {
    let mut tar = Vec::new();
    layer.write_tar(&mut tar).unwrap();
    tar
}

fn tree(tar: &[u8]) -> Result<Tree, TreeError> {
    let built = soci_ztoc::build(tar, Compression::Uncompressed, BuildOptions::default()).unwrap();
    let size = built.ztoc.span_table().uncompressed_size();
    Tree::build(&built.ztoc.toc, size, TreeOptions::default())
}

fn below(chain: &[Both], lazy: impl Fn(usize) -> bool) -> Vec<Box<dyn LowerLayer>> {
    let layers = chain.iter().enumerate().rev();
    let layers = layers.map(|(at, layer)| -> Box<dyn LowerLayer> {
        match lazy(at) {
            true => Box::new(layer.view.clone()),
            false => Box::new(LowerDirectory(layer.unpacked.clone())),
        }
    });
    layers.collect()
}

/// Adds a layer to a chain, or leaves it out if it cannot be unpacked.
fn add(chain: &mut Vec<Both>, root: &Path, layer: &Layer, lazy: impl Fn(usize) -> bool) -> bool {
    let (tar, unpacked) = (tar(layer), root.join(chain.len().to_string()));
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir(&unpacked).unwrap();
    let options = ApplyOptions {
        lower: below(chain, |_| false),
        ..ApplyOptions::default()
    };
    let (applied, tree) = (apply(&tar[..], &unpacked, &options, &|| false), tree(&tar));
    let (Ok(_), Ok(tree)) = (applied, tree) else {
        return false;
    };
    let (tree, below) = (Arc::new(tree), below(chain, lazy));
    let options = TreeOptions::default();
    let found = ImpliedDirectories::look_up(&tree, &below, &options).unwrap();
    // As after a restart.
    let restored = ImpliedDirectories::decode(&found.encode(&tree), &tree).unwrap();
    let view = TreeView::from(tree).with_implied(Some(Arc::new(restored)));
    chain.push(Both { view, unpacked });
    true
}

fn of_view(view: &TreeView) -> Directories {
    let mut found = Directories::new();
    let mut open = vec![(PathBuf::new(), soci_fuse::ROOT_ID)];
    while let Some((path, ino)) = open.pop() {
        let attr = view.attr(ino).unwrap();
        let xattrs = view.xattrs(ino).map(|(n, v)| (n.to_vec(), v.to_vec()));
        let xattrs: Vec<_> = xattrs.collect();
        for (name, value) in &xattrs {
            assert_eq!(view.xattr(ino, name), Some(&value[..]));
        }
        found.insert(
            path.clone(),
            (attr.mode & 0o7777, attr.uid, attr.gid, xattrs),
        );
        for entry in view.tree().readdir(ino, 2).unwrap() {
            if view.tree().is_directory(entry.ino) {
                let name = std::str::from_utf8(entry.name).unwrap();
                open.push((path.join(name), entry.ino));
            }
        }
    }
    found
}

fn of_folder(root: &Path) -> Directories {
    let mut found = Directories::new();
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let at = root.join(&path);
        let stat = at.symlink_metadata().unwrap();
        let mut list = vec![0; 4096];
        let length = rustix::fs::llistxattr(&at, &mut list).unwrap();
        let names = list[..length].split(|&byte| byte == 0);
        let mut xattrs: Vec<_> = names
            .filter(|name| !name.is_empty())
            .map(|name| {
                let mut value = vec![0; 4096];
                let length = rustix::fs::lgetxattr(&at, name, &mut value).unwrap();
                (name.to_vec(), value[..length].to_vec())
            })
            .collect();
        xattrs.sort();
        let owner = (stat.uid(), stat.gid());
        found.insert(
            path.clone(),
            (stat.mode() & 0o7777, owner.0, owner.1, xattrs),
        );
        for entry in fs::read_dir(&at).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                open.push(path.join(entry.file_name()));
            }
        }
    }
    found
}

/// A folder in memory: unpacking is made durable each time.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// Numbers that look random (Knuth's constants of MMIX).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        let Self(state) = self;
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % limit
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        let at = self.below(values.len() as u64);
        values[usize::try_from(at).unwrap()]
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.below(4);
        let parts: Vec<_> = (0..depth).map(|_| self.one_of(&["a", "b", "c"])).collect();
        parts.join("/")
    }

    fn layer(&mut self) -> Layer {
        let mut layer = Layer::new();
        for number in 0..1 + self.below(8) {
            let path = self.path();
            layer = match self.below(10) {
                0..=2 => {
                    let mode = self.one_of(&[0o755, 0o700, 0o1777, 0o2770, 0o3711]);
                    let owner = (self.below(3), 10 + self.below(3));
                    let described = layer.dir(&path).mode(mode).owner(owner.0, owner.1);
                    match self.below(3) {
                        0 => described.xattr(self.one_of(&["user.x", "user.y"]), b"v"),
                        _ => described,
                    }
                }
                3 => layer.symlink(&path, &format!("/{}", self.path())),
                4 => layer.whiteout(&path),
                5 => layer.opaque(&path),
                _ => layer.text(&format!("{path}/file-{number}"), ""),
            };
        }
        layer
    }
}

#[test]
fn lazy_layers_look_like_unpacked_ones_on_any_mix_of_layers() {
    let root = folder();
    let mut compared = 0;
    for seed in 0..100 {
        let mut numbers = Numbers(seed);
        let mix = numbers.below(4);
        let lazy = |layer: usize| match mix {
            0 => true,
            1 => false,
            _ => (layer as u64 + mix).is_multiple_of(2),
        };
        let mut chain = Vec::new();
        for _ in 0..5 {
            let layer = numbers.layer();
            if !add(&mut chain, root.path(), &layer, lazy) {
                continue;
            }
            compared += 1;
            let both = chain.last().unwrap();
            assert_eq!(
                of_view(&both.view),
                of_folder(&both.unpacked),
                "seed {seed}, layer {} (lazy first)",
                chain.len() - 1
            );
        }
    }
    assert!(compared > 200, "only {compared} layers could be unpacked");
}

#[test]
fn one_tree_on_two_bases_has_the_attributes_of_each() {
    let upper = Arc::new(tree(&tar(&Layer::new().text("srv/file", ""))).unwrap());
    let on = |mode| {
        let base = tree(&tar(&Layer::new().dir("srv").mode(mode))).unwrap();
        let base: Box<dyn LowerLayer> = Box::new(TreeView::from(Arc::new(base)));
        let options = TreeOptions::default();
        let found = ImpliedDirectories::look_up(&upper, &[base], &options).unwrap();
        let view = TreeView::from(upper.clone()).with_implied(Some(Arc::new(found)));
        assert!(Arc::ptr_eq(view.tree(), &upper));
        of_view(&view)[Path::new("srv")].0
    };
    assert_eq!((on(0o1777), on(0o700), on(0o755)), (0o1777, 0o700, 0o755));
}

#[test]
fn what_is_stored_for_another_tree_or_damaged_is_refused() {
    let [one, other] =
        ["a/file", "b/file"].map(|path| tree(&tar(&Layer::new().text(path, ""))).unwrap());
    let stored = ImpliedDirectories::default().encode(&one);
    ImpliedDirectories::decode(&stored, &one).unwrap();
    let refused = ImpliedDirectories::decode(&stored, &other).unwrap_err();
    assert!(matches!(refused, ImpliedError::Foreign), "{refused}");
    let cut = ImpliedDirectories::decode(&stored[..stored.len() / 2], &one).unwrap_err();
    assert!(matches!(cut, ImpliedError::Malformed(_)), "{cut}");
}

#[test]
fn a_lookup_that_takes_too_much_is_refused_with_the_limit() {
    // Deep directories that all layers have: each lookup is as long as its path.
    let deep = Layer::new().text(&format!("{}file", "d/".repeat(1900)), "");
    let tree = Arc::new(tree(&tar(&deep)).unwrap());
    let below: Vec<Box<dyn LowerLayer>> = (0..127)
        .map(|_| -> Box<dyn LowerLayer> { Box::new(TreeView::from(tree.clone())) })
        .collect();
    assert!(attributes_below(&below, b"d/d").unwrap().is_some());
    let refused = ImpliedDirectories::look_up(&tree, &below, &TreeOptions::default()).unwrap_err();
    assert!(
        matches!(refused, ImpliedError::Tree(TreeError::TooMuch(_))),
        "{refused}"
    );
    let options = TreeOptions::default();
    options.cancelled.set();
    let ended = ImpliedDirectories::look_up(&tree, &below[..1], &options).unwrap_err();
    assert!(
        matches!(ended, ImpliedError::Tree(TreeError::Cancelled)),
        "{ended}"
    );
}

#[test]
fn attributes_of_implied_directories_count_against_the_trees_of_the_image() {
    world(vec![small("deep/folder/file")]).test(async |world| {
        let below = world.root.dir("below").unwrap();
        fs::create_dir_all(below.join("deep/folder")).unwrap();
        fs::set_permissions(below.join("deep"), fs::Permissions::from_mode(0o700)).unwrap();
        // Why the layer is not mounted within this limit.
        let refusal = async |image_trees: u64, parents: Vec<ParentLayer>| {
            let limits = MemoryLimits {
                image_trees,
                ..MemoryLimits::default()
            };
            let lazy = world.lazy(LazyConfig {
                limits,
                ..LazyConfig::default()
            });
            let request = LayerRequest {
                parents,
                ..alone(world, 0, "a")
            };
            fs::create_dir_all(&request.snapshot).unwrap();
            match lazy.mount(request.clone()).await {
                Err(refusal) => Some(soci_errors::chain(&refusal)),
                Ok(_) => {
                    lazy.unmount(&request.mountpoint).await.unwrap();
                    None
                }
            }
        };
        // What the tree takes.
        let (mut less, mut taken) = (0_u64, 1 << 20);
        while taken - less > 1 {
            let middle = less.midpoint(taken);
            match refusal(middle, Vec::new()).await {
                Some(_) => less = middle,
                None => taken = middle,
            }
        }
        let parents = vec![ParentLayer {
            directory: below,
            lazy: false,
        }];
        let refused = refusal(taken, parents.clone()).await.unwrap();
        assert!(refused.contains("limits.image_tree_bytes"), "{refused}");
        assert_eq!(refusal(taken + (64 << 10), parents).await, None);
    });
}
