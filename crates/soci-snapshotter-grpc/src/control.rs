//! The messages between a supervisor and its server: one word per line, over the socket that is the
//! server's standard output. The words are fixed: the two may be of different versions.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Environment variable of a server: how its predecessor ended.
pub(crate) const PREDECESSOR: &str = "SOCI_PREDECESSOR";

/// Environment variable with the name of the listening socket that is the server's standard input.
pub(crate) const PASSED_SOCKET: &str = "SOCI_PASSED_SOCKET";

/// Values of [`PREDECESSOR`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Predecessor {
    /// There is none that is known of, or it was asked to end.
    Unknown,
    /// It was killed.
    Killed,
    /// It ended by itself.
    Crashed,
    /// It is still serving: the new one has to check first that it can take over.
    Serving,
}

impl Predecessor {
    const ALL: [(Self, &str); 4] = [
        (Self::Unknown, "unknown"),
        (Self::Killed, "killed"),
        (Self::Crashed, "crashed"),
        (Self::Serving, "serving"),
    ];

    pub(crate) fn as_str(self) -> &'static str {
        let found = Self::ALL.iter().find(|(value, _)| *value == self);
        found.map_or("unknown", |(_, text)| text)
    }

    /// Reads what the supervisor reported; `None` without a supervisor.
    pub(crate) fn from_environment() -> Option<Self> {
        let text = std::env::var(PREDECESSOR).ok()?;
        let found = Self::ALL.iter().find(|(_, known)| *known == text);
        Some(found.map_or(Self::Unknown, |(value, _)| *value))
    }
}

macro_rules! messages {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl Message for $name {
            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            fn parse(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

/// A message, which is one word.
pub(crate) trait Message: Copy {
    fn as_str(self) -> &'static str;
    fn parse(text: &str) -> Option<Self>;
}

messages! {
    /// What a supervisor requests of its server.
    ServerCommand {
        /// End and leave the mounts.
        Leave = "leave",
        /// End and take the mounts down.
        Unmount = "unmount",
        /// End without waiting for calls in flight.
        Hurry = "hurry",
        /// Stop serving, but stay: another server is about to take over.
        HandOver = "hand-over",
        /// Serve: again after a failed hand-over, or as the new server after its check.
        Serve = "serve",
        /// End after a hand-over.
        Exit = "exit",
    }
}

messages! {
    /// What a server reports to its supervisor.
    ServerEvent {
        /// It could serve everything that is mounted.
        Checked = "proved",
        /// It is still starting. Repeated until it serves.
        Starting = "starting",
        /// It serves.
        Ready = "ready",
        /// It begins to end.
        Stopping = "stopping",
        /// It has released everything.
        HandedOver = "handed-over",
    }
}

/// One end of the connection between a supervisor and its server.
#[derive(Debug)]
pub(crate) struct ControlStream {
    incoming: Lines<BufReader<OwnedReadHalf>>,
    outgoing: OwnedWriteHalf,
}

impl ControlStream {
    /// Opens the server's end. What is printed to standard output from here on is discarded.
    pub(crate) fn to_supervisor() -> io::Result<Self> {
        let socket = io::stdout().as_fd().try_clone_to_owned()?;
        let nowhere = std::fs::File::options().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&nowhere)?;
        Self::over(socket)
    }

    /// Wraps a connected stream socket. Needs a tokio runtime.
    pub(crate) fn over(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let (incoming, outgoing) = UnixStream::from_std(socket)?.into_split();
        Ok(Self {
            incoming: BufReader::new(incoming).lines(),
            outgoing,
        })
    }

    /// Sends a message. That the peer is gone is noticed by [`ControlStream::receive`].
    pub(crate) async fn send(&mut self, message: impl Message) {
        let line = format!("{}\n", message.as_str());
        if let Err(error) = self.outgoing.write_all(line.as_bytes()).await {
            tracing::debug!(error = %error, message = message.as_str(), "control stream closed by the peer");
        }
    }

    /// Returns the next known message; `None` when the peer is gone. Messages of later versions are
    /// ignored. Can be cancelled and called again.
    pub(crate) async fn receive<M: Message>(&mut self) -> Option<M> {
        loop {
            match self.incoming.next_line().await {
                Ok(Some(text)) => match M::parse(&text) {
                    Some(message) => return Some(message),
                    None => tracing::warn!(text, "ignoring an unknown control message"),
                },
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn words_arrive_in_order_and_unknown_ones_are_passed_over() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut ours = ControlStream::over(ours.into()).unwrap();
        let mut theirs = ControlStream::over(theirs.into()).unwrap();
        ours.send(ServerCommand::HandOver).await;
        ours.send(ServerEvent::Ready).await;
        ours.send(ServerCommand::Exit).await;
        drop(ours);
        assert_eq!(theirs.receive().await, Some(ServerCommand::HandOver));
        assert_eq!(theirs.receive().await, Some(ServerCommand::Exit));
        assert_eq!(theirs.receive::<ServerCommand>().await, None);
    }

    #[test]
    fn every_kind_of_predecessor_has_a_name_of_its_own() {
        for (value, text) in Predecessor::ALL {
            assert_eq!(value.as_str(), text);
        }
    }
}
