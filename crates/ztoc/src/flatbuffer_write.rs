//! Writing FlatBuffers in the very bytes in which Go's builder writes them.
//!
//! A buffer grows from its end to its start. A reference is handed around as a [`ObjectRef`], the
//! distance of its target from the end, which growing does not change.

/// Where something was written: its distance from the buffer's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ObjectRef(usize);

/// A FlatBuffer that is being written.
pub(crate) struct Writer {
    /// What is written lies in `bytes[head..]`.
    bytes: Vec<u8>,
    head: usize,
    /// The strictest alignment that was requested.
    alignment: usize,
    /// Where the vtables are that were written so far.
    vtables: Vec<ObjectRef>,
}

/// The fields of a table that is being written, by slot.
pub(crate) struct TableWriter<'a> {
    writer: &'a mut Writer,
    end: usize,
    fields: Vec<Option<ObjectRef>>,
}

impl Writer {
    /// An empty buffer with room for `capacity` bytes.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            bytes: vec![0; capacity],
            head: capacity,
            alignment: 1,
            vtables: Vec::new(),
        }
    }

    fn object(&self) -> ObjectRef {
        ObjectRef(self.bytes.len() - self.head)
    }

    /// Puts bytes in front of everything, without alignment.
    fn push(&mut self, bytes: &[u8]) {
        if self.head < bytes.len() {
            let grow = self.bytes.len().max(bytes.len()).max(1024);
            let mut larger = vec![0; self.bytes.len() + grow];
            larger[self.head + grow..].copy_from_slice(&self.bytes[self.head..]);
            self.bytes = larger;
            self.head += grow;
        }
        let start = self.head - bytes.len();
        self.bytes[start..self.head].copy_from_slice(bytes);
        self.head = start;
    }

    /// Pads so that, after `following` more bytes, the start is aligned to `size` bytes.
    fn align(&mut self, size: usize, following: usize) {
        self.alignment = self.alignment.max(size);
        let padding = (self.object().0 + following).wrapping_neg() & (size - 1);
        self.push(&[0; 8][..padding]);
    }

    fn aligned(&mut self, bytes: &[u8]) {
        self.align(bytes.len(), 0);
        self.push(bytes);
    }

    fn reference(&mut self, to: ObjectRef) {
        self.align(4, 0);
        // A reference counts from its own start.
        self.push(&length(self.object().0 - to.0 + 4));
    }

    /// Writes a string, any bytes, with its zero.
    pub(crate) fn string(&mut self, text: &[u8]) -> ObjectRef {
        self.align(4, text.len() + 1);
        self.push(&[0]);
        self.push(text);
        self.push(&length(text.len()));
        self.object()
    }

    /// Starts a byte vector; its bytes follow back to front through [`Writer::vector_bytes`], then
    /// [`Writer::end_bytes`].
    pub(crate) fn start_bytes(&mut self, len: usize) {
        self.align(4, len);
    }

    /// Puts bytes in front of the byte vector's bytes so far.
    pub(crate) fn vector_bytes(&mut self, bytes: &[u8]) {
        self.push(bytes);
    }

    /// Ends a byte vector.
    pub(crate) fn end_bytes(&mut self, len: usize) -> ObjectRef {
        self.push(&length(len));
        self.object()
    }

    /// Writes a vector of references.
    pub(crate) fn references(&mut self, objects: &[ObjectRef]) -> ObjectRef {
        self.align(4, objects.len() * 4);
        for place in objects.iter().rev() {
            self.reference(*place);
        }
        self.push(&length(objects.len()));
        self.object()
    }

    /// Starts a table of `slots` fields.
    pub(crate) fn table(&mut self, slots: usize) -> TableWriter<'_> {
        let end = self.object().0;
        TableWriter {
            writer: self,
            end,
            fields: vec![None; slots],
        }
    }

    /// Makes `root` the root table and returns the buffer.
    pub(crate) fn finish(mut self, root: ObjectRef) -> Vec<u8> {
        self.align(self.alignment, 4);
        self.reference(root);
        self.bytes.drain(..self.head);
        self.bytes
    }

    /// Where `place` is in the finished buffer of `len` bytes.
    pub(crate) const fn position(place: ObjectRef, len: usize) -> usize {
        len - place.0
    }
}

/// A length or distance. FlatBuffers have at most 2 GiB; [`crate::Ztoc::encode`] states what happens
/// beyond.
fn length(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

impl TableWriter<'_> {
    fn set(&mut self, slot: usize) {
        let place = self.writer.object();
        if let Some(field) = self.fields.get_mut(slot) {
            *field = Some(place);
        }
    }

    /// A reference to something written before.
    pub(crate) fn reference(&mut self, slot: usize, to: ObjectRef) {
        self.writer.reference(to);
        self.set(slot);
    }

    /// A scalar, left out where it has its default.
    fn scalar<const N: usize>(&mut self, slot: usize, value: [u8; N], default: [u8; N]) {
        if value != default {
            self.writer.aligned(&value);
            self.set(slot);
        }
    }

    /// A byte.
    pub(crate) fn i8(&mut self, slot: usize, value: i8, default: i8) {
        self.scalar(slot, value.to_le_bytes(), default.to_le_bytes());
    }

    /// An `int`, 0 by default.
    pub(crate) fn i32(&mut self, slot: usize, value: i32) {
        self.scalar(slot, value.to_le_bytes(), [0; 4]);
    }

    /// A `uint32`, 0 by default.
    pub(crate) fn u32(&mut self, slot: usize, value: u32) {
        self.scalar(slot, value.to_le_bytes(), [0; 4]);
    }

    /// A `long`, 0 by default.
    pub(crate) fn i64(&mut self, slot: usize, value: i64) {
        self.scalar(slot, value.to_le_bytes(), [0; 8]);
    }

    /// Ends the table. Go's builder shares a vtable with the latest table that has the same
    /// field distances, whatever that table's length.
    pub(crate) fn end(self) -> ObjectRef {
        let Self {
            writer,
            end,
            fields,
        } = self;
        writer.aligned(&[0; 4]);
        let table = writer.object();
        let used = fields
            .iter()
            .rposition(Option::is_some)
            .map_or(0, |last| last + 1);
        let mut vtable = Vec::with_capacity(used * 2);
        for field in fields.iter().take(used) {
            let distance = field.map_or(0, |field| table.0 - field.0);
            vtable.extend_from_slice(&short(distance));
        }
        let known = writer.vtables.iter().rev().copied().find(|known| {
            let at = writer.bytes.len() - known.0;
            let len = usize::from(u16::from_le_bytes([writer.bytes[at], writer.bytes[at + 1]]));
            writer.bytes[at + 4..at + len] == vtable
        });
        let at = known.unwrap_or_else(|| {
            writer.align(2, 0);
            writer.push(&vtable);
            writer.push(&short(table.0 - end));
            writer.push(&short(vtable.len() + 4));
            let place = writer.object();
            writer.vtables.push(place);
            place
        });
        // The table's first field: how far back its vtable lies, negative when it lies ahead.
        let back = i64::try_from(at.0).unwrap_or(0) - i64::try_from(table.0).unwrap_or(0);
        let start = writer.bytes.len() - table.0;
        writer.bytes[start..start + 4]
            .copy_from_slice(&i32::try_from(back).unwrap_or(i32::MAX).to_le_bytes());
        table
    }
}

/// A distance inside a table, which no table of ours lets grow beyond 16 bits.
fn short(value: usize) -> [u8; 2] {
    u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes()
}
