//! Path resolution inside a layer, without I/O: the order of the components, `..`, symbolic links
//! and their limit. The caller looks up the names.

use crate::tar_path::raw_parts;

/// Symbolic links followed in one walk, as in the kernel (MAXSYMLINKS in linux/namei.h).
pub const MAX_LINKS: u32 = 40;

/// The path leads through more symbolic links than [`MAX_LINKS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many symbolic links")]
pub struct TooManyLinks;

/// A walk along a path, as the kernel resolves it in a chroot.
///
/// `N` is a component, borrowed or owned; `D` is a directory as the caller knows it. `..` leads to
/// the directory that the walk came from, in the root to the root itself.
#[derive(Debug)]
pub struct PathWalk<N, D> {
    root: D,
    /// The directories below the root that lead to the current one.
    entered: Vec<D>,
    /// The components that remain, the next one last.
    remaining: Vec<N>,
    links: u32,
}

impl<N: AsRef<[u8]>, D> PathWalk<N, D> {
    /// A walk along `components` that starts in `root`.
    pub fn new<'p>(root: D, components: impl Iterator<Item = &'p [u8]>) -> Self
    where
        N: From<&'p [u8]>,
    {
        let mut remaining: Vec<N> = components.map(N::from).collect();
        remaining.reverse();
        Self {
            root,
            entered: Vec::new(),
            remaining,
            links: 0,
        }
    }

    /// The current directory.
    pub fn directory(&self) -> &D {
        self.entered.last().unwrap_or(&self.root)
    }

    /// Number of directories between the root and the current one.
    pub const fn depth(&self) -> usize {
        self.entered.len()
    }

    /// The next name to look up in the current directory; `None` at the end of the path.
    pub fn next_name(&mut self) -> Option<N> {
        loop {
            let name = self.remaining.pop()?;
            if name.as_ref() != b".." {
                return Some(name);
            }
            self.entered.pop();
        }
    }

    /// Whether the last name that [`PathWalk::next_name`] returned ends the path.
    pub fn is_at_end(&self) -> bool {
        self.remaining.is_empty()
    }

    /// Makes a directory, which the last name stands for, the current one.
    pub fn enter(&mut self, directory: D) {
        self.entered.push(directory);
    }

    /// Continues along the target of a symbolic link, which the last name stands for.
    ///
    /// # Errors
    /// [`TooManyLinks`] for the forty-first link.
    pub fn follow<'p>(&mut self, target: &'p [u8]) -> Result<(), TooManyLinks>
    where
        N: From<&'p [u8]>,
    {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(TooManyLinks);
        }
        if target.first() == Some(&b'/') {
            self.entered.clear();
        }
        let from = self.remaining.len();
        self.remaining.extend(raw_parts(target).map(N::from));
        if let Some(added) = self.remaining.get_mut(from..) {
            added.reverse();
        }
        Ok(())
    }

    /// The current directory, at the end of the walk.
    pub fn into_directory(mut self) -> D {
        self.entered.pop().unwrap_or(self.root)
    }
}
