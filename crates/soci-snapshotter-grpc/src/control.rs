//! What a supervisor and its server say to each other: a word a line, over the socket that is the
//! server's standard output.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Environment variable that tells a process that it is a server, and how its predecessor ended.
pub(crate) const PREDECESSOR: &str = "SOCI_PREDECESSOR";

/// Environment variable with the name of the listening socket that is the server's standard input.
pub(crate) const PASSED_SOCKET: &str = "SOCI_PASSED_SOCKET";

/// Values of [`PREDECESSOR`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Predecessor {
    /// There is none that we know of, or it was asked to end.
    Unknown,
    /// It was killed.
    Killed,
    /// It ended by itself.
    Crashed,
    /// It is still serving: the new one has to prove itself first.
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

    /// What the supervisor said; `None` without a supervisor.
    pub(crate) fn from_environment() -> Option<Self> {
        let text = std::env::var(PREDECESSOR).ok()?;
        let found = Self::ALL.iter().find(|(_, known)| *known == text);
        Some(found.map_or(Self::Unknown, |(value, _)| *value))
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl Word for $name {
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

/// Something that can be said.
pub(crate) trait Word: Copy {
    fn as_str(self) -> &'static str;
    fn parse(text: &str) -> Option<Self>;
}

words! {
    /// What a supervisor asks of its server.
    Ask {
        /// End and leave the mounts.
        Leave = "leave",
        /// End and take the mounts down.
        Unmount = "unmount",
        /// End without waiting for calls that run.
        Hurry = "hurry",
        /// Stop serving, but stay: another server is about to take over.
        HandOver = "hand-over",
        /// Go on: after a hand-over that failed, or as the one that has proved itself.
        Serve = "serve",
        /// End at once, after a hand-over.
        Exit = "exit",
    }
}

words! {
    /// What a server tells its supervisor.
    Tell {
        /// It could serve what there is.
        Proved = "proved",
        /// It serves.
        Ready = "ready",
        /// It begins to end.
        Stopping = "stopping",
        /// It has let go of everything.
        HandedOver = "handed-over",
    }
}

/// One end of the line.
#[derive(Debug)]
pub(crate) struct Line {
    incoming: Lines<BufReader<OwnedReadHalf>>,
    outgoing: OwnedWriteHalf,
}

impl Line {
    /// The line of a server to its supervisor. What is printed from here on goes nowhere.
    pub(crate) fn to_supervisor() -> io::Result<Self> {
        let socket = io::stdout().as_fd().try_clone_to_owned()?;
        let nowhere = std::fs::File::options().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&nowhere)?;
        Self::over(socket)
    }

    /// The line over a connected stream socket. On a tokio runtime.
    pub(crate) fn over(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let (incoming, outgoing) = UnixStream::from_std(socket)?.into_split();
        Ok(Self {
            incoming: BufReader::new(incoming).lines(),
            outgoing,
        })
    }

    /// Says something. That nobody listens any more is noticed by [`Line::next`].
    pub(crate) async fn say(&mut self, word: impl Word) {
        let line = format!("{}\n", word.as_str());
        if let Err(error) = self.outgoing.write_all(line.as_bytes()).await {
            tracing::debug!(error = %error, word = word.as_str(), "nobody listens");
        }
    }

    /// The next word that is understood; `None` when the other end is gone. Words of later versions
    /// are passed over. Can be given up and called again.
    pub(crate) async fn next<W: Word>(&mut self) -> Option<W> {
        loop {
            match self.incoming.next_line().await {
                Ok(Some(text)) => match W::parse(&text) {
                    Some(word) => return Some(word),
                    None => tracing::warn!(text, "a word that is not understood"),
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
        let mut ours = Line::over(ours.into()).unwrap();
        let mut theirs = Line::over(theirs.into()).unwrap();
        ours.say(Ask::HandOver).await;
        ours.say(Tell::Ready).await;
        ours.say(Ask::Exit).await;
        drop(ours);
        assert_eq!(theirs.next().await, Some(Ask::HandOver));
        assert_eq!(theirs.next().await, Some(Ask::Exit));
        assert_eq!(theirs.next::<Ask>().await, None);
    }

    #[test]
    fn every_kind_of_predecessor_has_a_name_of_its_own() {
        for (value, text) in Predecessor::ALL {
            assert_eq!(value.as_str(), text);
        }
    }
}
