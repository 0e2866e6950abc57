//! Parser of the kernel's requests, from the bytes of a read of /dev/fuse. No I/O, and no input makes it
//! panic.

use zerocopy::FromBytes;

use crate::abi::{self, InHeader, InitIn, ReadIn, XattrSize, opcode};

/// The kernel's part of INIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelOffer {
    /// Protocol version, major part.
    pub major: u32,
    /// Protocol version, minor part.
    pub minor: u32,
    /// Readahead of the mount in bytes, as the kernel sets it.
    pub max_readahead: u32,
    /// The kernel's features: [`crate::init_flags`], both halves.
    pub flags: u64,
}

/// A request of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The request's id; its answer carries the same. The top bit ([`crate::UNIQUE_RESEND`]) marks
    /// a request that was sent before.
    pub unique: u64,
    /// The node that it concerns; 0 where the operation has none.
    pub node: u64,
    /// The calling thread, in the pid namespace of the mounter; 0 if it is not visible there.
    pub pid: u32,
    /// The operation with its arguments.
    pub operation: Operation<'a>,
    /// The whole request as it was read, for the journal.
    pub bytes: &'a [u8],
}

/// An operation with its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// First message of a connection.
    Init(KernelOffer),
    /// Find `name` in the directory.
    Lookup {
        /// A file name without zero byte; `.` and `..` too.
        name: &'a [u8],
    },
    /// The kernel dropped references to one node or many. Has no answer.
    Forget,
    /// Attributes of the node.
    GetAttr,
    /// Target of the symbolic link.
    ReadLink,
    /// Open the file.
    Open,
    /// Open the directory.
    OpenDir,
    /// Content of the file.
    Read {
        /// Bytes from the start of the file.
        offset: u64,
        /// Number of bytes; fewer are returned only at the end of the file.
        size: u32,
    },
    /// Entries of the directory.
    ReadDir {
        /// Where to resume: the offset of the last entry of the previous answer, or 0.
        offset: u64,
        /// Room for entries, in bytes.
        size: u32,
        /// With attributes (READDIRPLUS).
        plus: bool,
    },
    /// The file or directory was closed.
    Release,
    /// Capacity of the file system.
    StatFs,
    /// Value of an extended attribute.
    GetXattr {
        /// Its name.
        name: &'a [u8],
        /// Size of the buffer for the value; 0 requests its length.
        size: u32,
    },
    /// Names of the extended attributes.
    ListXattr {
        /// Size of the buffer for the names; 0 requests their length.
        size: u32,
    },
    /// Check of permissions. Not sent when the kernel checks them itself.
    Access,
    /// Find data or a hole.
    Lseek,
    /// A signal arrived while the caller of `unique` was waiting.
    Interrupt {
        /// The request that it waits for.
        unique: u64,
    },
    /// Last message of some connections.
    Destroy,
    /// Any operation that modifies the file system, by the kernel's number.
    Change(u32),
    /// An operation that this crate does not know.
    Unknown(u32),
}

/// Why bytes are not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer bytes than a header.
    #[error("{0} bytes are too few for a FUSE request header")]
    NoHeader(usize),
    /// The length in the header is not the number of bytes read.
    #[error("request {unique}: length {said} in its header, {got} bytes read")]
    Length {
        /// The request's id.
        unique: u64,
        /// The header's length.
        said: u32,
        /// Bytes read.
        got: usize,
    },
    /// The operation's arguments are cut off or a name lacks its end.
    #[error("request {unique}: the arguments of operation {opcode} are malformed")]
    Arguments {
        /// The request's id.
        unique: u64,
        /// The operation.
        opcode: u32,
    },
}

impl ParseError {
    /// The id of the request, if it has one: it is to be answered with an error.
    #[must_use]
    pub const fn unique(&self) -> Option<u64> {
        match *self {
            Self::NoHeader(_) => None,
            Self::Length { unique, .. } | Self::Arguments { unique, .. } => Some(unique),
        }
    }
}

impl<'a> Request<'a> {
    /// Parses one request: exactly the bytes that one read of /dev/fuse returned.
    ///
    /// # Errors
    /// If the bytes are not one request. Unknown operations are not an error.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (header, body) =
            InHeader::read_from_prefix(bytes).map_err(|_| ParseError::NoHeader(bytes.len()))?;
        let unique = header.unique;
        if usize::try_from(header.len) != Ok(bytes.len()) {
            return Err(ParseError::Length {
                unique,
                said: header.len,
                got: bytes.len(),
            });
        }
        // Extensions (in units of 8 bytes) follow the arguments; none concerns a reader.
        let extensions = usize::from(header.total_extlen) * 8;
        let operation = body
            .len()
            .checked_sub(extensions)
            .and_then(|len| body.get(..len))
            .and_then(|arguments| Operation::parse(header.opcode, arguments))
            .ok_or(ParseError::Arguments {
                unique,
                opcode: header.opcode,
            })?;
        Ok(Self {
            unique,
            node: header.nodeid,
            pid: header.pid,
            operation,
            bytes,
        })
    }
}

impl<'a> Operation<'a> {
    fn parse(code: u32, arguments: &'a [u8]) -> Option<Self> {
        Some(match code {
            opcode::INIT => Self::Init(parse_init(arguments)?),
            opcode::LOOKUP => Self::Lookup {
                name: name(arguments)?,
            },
            opcode::FORGET | opcode::BATCH_FORGET => Self::Forget,
            opcode::GETATTR => Self::GetAttr,
            opcode::READLINK => Self::ReadLink,
            opcode::OPEN => Self::Open,
            opcode::OPENDIR => Self::OpenDir,
            opcode::READ => {
                let read = prefix::<ReadIn>(arguments)?;
                Self::Read {
                    offset: read.offset,
                    size: read.size,
                }
            }
            opcode::READDIR | opcode::READDIRPLUS => {
                let read = prefix::<ReadIn>(arguments)?;
                Self::ReadDir {
                    offset: read.offset,
                    size: read.size,
                    plus: code == opcode::READDIRPLUS,
                }
            }
            opcode::RELEASE | opcode::RELEASEDIR => Self::Release,
            opcode::STATFS => Self::StatFs,
            opcode::GETXATTR => {
                let (room, rest) = XattrSize::read_from_prefix(arguments).ok()?;
                Self::GetXattr {
                    name: name(rest)?,
                    size: room.size,
                }
            }
            opcode::LISTXATTR => Self::ListXattr {
                size: prefix::<XattrSize>(arguments)?.size,
            },
            opcode::ACCESS => Self::Access,
            opcode::LSEEK => Self::Lseek,
            opcode::INTERRUPT => Self::Interrupt {
                unique: prefix::<u64>(arguments)?,
            },
            opcode::DESTROY => Self::Destroy,
            opcode::SETATTR
            | opcode::SYMLINK
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::RENAME2
            | opcode::LINK
            | opcode::WRITE
            | opcode::SETXATTR
            | opcode::REMOVEXATTR
            | opcode::CREATE
            | opcode::TMPFILE
            | opcode::FALLOCATE
            | opcode::COPY_FILE_RANGE => Self::Change(code),
            other => Self::Unknown(other),
        })
    }
}

fn parse_init(arguments: &[u8]) -> Option<KernelOffer> {
    let (init, rest) = InitIn::read_from_prefix(arguments).ok()?;
    let mut flags = u64::from(init.flags);
    if flags & abi::init_flags::INIT_EXT != 0 {
        flags |= u64::from(prefix::<u32>(rest)?) << 32;
    }
    Some(KernelOffer {
        major: init.major,
        minor: init.minor,
        max_readahead: init.max_readahead,
        flags,
    })
}

fn prefix<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(value, _)| value)
}

/// A name that ends with a zero byte.
fn name(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    bytes.get(..end).filter(|name| !name.is_empty())
}
