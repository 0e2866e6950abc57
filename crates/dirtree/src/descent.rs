//! A way down into a tree and up again, with a constant number of descriptors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::path::Arg;

use crate::open;

/// Number of levels whose directories stay open. Ordinary trees have fewer.
pub(crate) const KEPT: usize = 32;

/// The current directory of a walk. The directories of the first levels stay open; from a deeper one
/// the way up is its `..`.
#[derive(Debug)]
pub struct Descent {
    root: OwnedFd,
    /// The directories below the root that stay open.
    kept: Vec<OwnedFd>,
    /// The current directory if it is deeper than those.
    deep: Option<OwnedFd>,
    /// Number of levels between the root and the current directory.
    depth: usize,
}

impl Descent {
    /// Starts at a directory. A symbolic link there is an error.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(root: &Path) -> io::Result<Self> {
        Ok(Self {
            root: open::at_path(root)?,
            kept: Vec::new(),
            deep: None,
            depth: 0,
        })
    }

    /// The current directory.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        let kept = self.kept.last().unwrap_or(&self.root);
        self.deep.as_ref().unwrap_or(kept).as_fd()
    }

    /// Number of levels between the root and the current directory.
    #[must_use]
    pub const fn depth(&self) -> usize {
        self.depth
    }

    /// Makes a directory in the current one the current one.
    ///
    /// # Errors
    /// It is not a directory, or cannot be opened; the current directory stays.
    pub fn enter(&mut self, name: impl Arg) -> io::Result<()> {
        let next = open::child(self.directory(), name)?;
        if self.depth < KEPT {
            self.kept.push(next);
        } else {
            self.deep = Some(next);
        }
        self.depth += 1;
        Ok(())
    }

    /// Makes the parent of the current directory the current one; at the root it does nothing.
    ///
    /// Below the levels that are kept open this is the directory's parent now, which is another one
    /// than it was entered from if it was moved since.
    ///
    /// # Errors
    /// The parent cannot be opened; the current directory stays.
    pub fn leave(&mut self) -> io::Result<()> {
        if self.depth > KEPT + 1 {
            self.deep = Some(open::child(self.directory(), c"..")?);
        } else if self.depth > KEPT {
            self.deep = None;
        } else {
            self.kept.pop();
        }
        self.depth = self.depth.saturating_sub(1);
        Ok(())
    }

    /// Makes the directory so many levels below the root, on the way to the current one, the current
    /// one.
    ///
    /// # Errors
    /// As [`Descent::leave`].
    pub fn return_to(&mut self, depth: usize) -> io::Result<()> {
        if depth <= KEPT && depth < self.depth {
            self.deep = None;
            self.kept.truncate(depth);
            self.depth = depth;
        }
        while self.depth > depth {
            self.leave()?;
        }
        Ok(())
    }

    /// Makes the deepest directory that is kept open the current one.
    pub(crate) fn return_to_kept(&mut self) {
        self.deep = None;
        self.depth = self.depth.min(KEPT);
    }
}
