//! Buckets: sorted keys, each with a value or with a bucket of its own.

use crate::database::Database;
use crate::error::BoltError;
use crate::page::{Element, HEADER, Page, u64_at};

/// Trees are not deeper; one of four billion keys has a depth of less than 30.
const MAX_DEPTH: usize = 64;

/// A bucket. Cheap to copy; nothing is read before it is requested.
#[derive(Debug, Clone, Copy)]
pub struct Bucket<'a> {
    database: &'a Database,
    root: Root<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Root<'a> {
    Page(u64),
    /// A leaf within the value that names the bucket, which is on this page.
    Inline(&'a [u8], u64),
}

/// What a key of a bucket has.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// A value.
    Value(&'a [u8]),
    /// A bucket.
    Bucket(Bucket<'a>),
}

impl<'a> Bucket<'a> {
    pub(crate) const fn at_page(database: &'a Database, page: u64) -> Self {
        Self {
            database,
            root: Root::Page(page),
        }
    }

    /// Reads the value of a key that has a bucket: the number of its root page and a sequence
    /// number (not used); without a root page an inline page follows.
    fn parse(database: &'a Database, header: &'a [u8], page: u64) -> Result<Self, BoltError> {
        let cut = BoltError::damaged(page, "the header of a bucket is cut off");
        let root = match u64_at(header, 0) {
            None => return Err(cut),
            Some(0) => Root::Inline(header.get(HEADER..).ok_or(cut)?, page),
            Some(root) => Root::Page(root),
        };
        Ok(Self { database, root })
    }

    /// All keys in ascending order. Ends after an error.
    #[must_use]
    pub fn entries(&self) -> Entries<'a> {
        Entries {
            database: self.database,
            root: Some(self.root),
            path: Vec::new(),
            last: None,
            pages_left: self.database.pages(),
        }
    }

    /// What a key has. Walks the bucket: meant for small ones.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn get(&self, wanted: &[u8]) -> Result<Option<Entry<'a>>, BoltError> {
        for entry in self.entries() {
            let (key, entry) = entry?;
            if key >= wanted {
                return Ok((key == wanted).then_some(entry));
            }
        }
        Ok(None)
    }

    /// The value of a key; none if there is no such key, or it has a bucket.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn value(&self, key: &[u8]) -> Result<Option<&'a [u8]>, BoltError> {
        Ok(match self.get(key)? {
            Some(Entry::Value(value)) => Some(value),
            _ => None,
        })
    }

    /// The bucket of a key; none if there is no such key, or it has a value.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn bucket(&self, key: &[u8]) -> Result<Option<Self>, BoltError> {
        Ok(match self.get(key)? {
            Some(Entry::Bucket(bucket)) => Some(bucket),
            _ => None,
        })
    }
}

/// The keys of a bucket, ascending, with what they have.
#[derive(Debug)]
pub struct Entries<'a> {
    database: &'a Database,
    /// Until the first page has been read.
    root: Option<Root<'a>>,
    /// From the root to the current leaf: each page and the place of its next element.
    path: Vec<(Page<'a>, usize)>,
    /// The key before, to see that they ascend.
    last: Option<&'a [u8]>,
    /// A tree has each page once: more visits than pages are a circle.
    pages_left: u64,
}

impl<'a> Entries<'a> {
    fn enter(&mut self, page: Page<'a>) -> Result<(), BoltError> {
        let damaged = |reason| BoltError::damaged(page.number(), reason);
        self.pages_left = self
            .pages_left
            .checked_sub(1)
            .ok_or(damaged("it is in a circle of pages"))?;
        if self.path.len() >= MAX_DEPTH {
            return Err(damaged("it lies too deep in its tree"));
        }
        self.path.push((page, 0));
        Ok(())
    }

    fn step(&mut self) -> Result<Option<(&'a [u8], Entry<'a>)>, BoltError> {
        match self.root.take() {
            Some(Root::Page(number)) => self.enter(self.database.page(number)?)?,
            Some(Root::Inline(bytes, number)) => self.enter(Page::parse(bytes, number)?)?,
            None => {}
        }
        while let Some((page, next)) = self.path.last_mut() {
            if *next >= page.count() {
                self.path.pop();
                continue;
            }
            let (page, place) = (*page, *next);
            *next = place.saturating_add(1);
            let (key, entry) = match page.element(place)? {
                Element::Child(child) => {
                    self.enter(self.database.page(child)?)?;
                    continue;
                }
                Element::Value { key, value } => (key, Entry::Value(value)),
                Element::Bucket { key, header } => {
                    let bucket = Bucket::parse(self.database, header, page.number())?;
                    (key, Entry::Bucket(bucket))
                }
            };
            if self.last.is_some_and(|last| last >= key) {
                return Err(BoltError::damaged(page.number(), "its keys do not ascend"));
            }
            self.last = Some(key);
            return Ok(Some((key, entry)));
        }
        Ok(None)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(&'a [u8], Entry<'a>), BoltError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.path.clear();
        }
        step.transpose()
    }
}
