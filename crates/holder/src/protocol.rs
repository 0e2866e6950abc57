//! The messages between a holder and its clients: one JSON object per packet, with at most one descriptor.
//! Fields and kinds may be added; [`PROTOCOL`] changes when one changes its meaning.

use serde::{Deserialize, Serialize};

/// Version of the protocol.
pub(crate) const PROTOCOL: u32 = 1;

/// Largest packet in bytes. Notes are a few hundred bytes.
pub(crate) const LARGEST: usize = 128 << 10;

/// A client's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub(crate) enum Request {
    /// First message. There is one server at a time; other clients are observers.
    Hello {
        protocol: u32,
        server: bool,
        /// Seconds without a server after which the connections are closed.
        #[serde(default)]
        abandon_after: Option<u64>,
    },
    /// Store the descriptor of this packet, in place of an earlier one of this key.
    Put { key: String, note: String },
    /// Close the descriptor of this key.
    Remove { key: String },
    /// Send all descriptors.
    List,
    /// Close the connections now. With `force` even if there is a server.
    Abandon { force: bool },
    /// Close everything and end.
    Quit,
}

/// The holder's response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub(crate) enum Response {
    /// Response to Hello.
    Welcome {
        protocol: u32,
        pid: u32,
        /// Process id of the server, if there is one.
        server: Option<u32>,
        /// Milliseconds since the last server left, if there is none.
        #[serde(default)]
        alone_for: Option<u64>,
        /// Seconds without a server after which the connections are closed.
        #[serde(default)]
        abandon_after: u64,
    },
    /// Done; the number of descriptors that it concerned.
    Done { count: usize },
    /// One item of a list, with its descriptor. `End` follows the last.
    Item { key: String, note: String },
    /// The end of a list.
    End,
    /// Not done.
    Refused { reason: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A holder outlives its servers, so that the two may be of different versions: these packets are fixed.
    #[test]
    fn packets_are_those_of_version_1() {
        let hello = Request::Hello {
            protocol: PROTOCOL,
            server: true,
            abandon_after: Some(600),
        };
        let put = Request::Put {
            key: "fuse/1".to_owned(),
            note: "n".to_owned(),
        };
        let remove = Request::Remove {
            key: "k".to_owned(),
        };
        let requests = [
            (
                hello,
                r#"{"ask":"hello","protocol":1,"server":true,"abandon_after":600}"#,
            ),
            (put, r#"{"ask":"put","key":"fuse/1","note":"n"}"#),
            (remove, r#"{"ask":"remove","key":"k"}"#),
            (Request::List, r#"{"ask":"list"}"#),
            (
                Request::Abandon { force: true },
                r#"{"ask":"abandon","force":true}"#,
            ),
            (Request::Quit, r#"{"ask":"quit"}"#),
        ];
        for (request, packet) in requests {
            assert_eq!(serde_json::to_string(&request).unwrap(), packet);
            assert_eq!(serde_json::from_str::<Request>(packet).unwrap(), request);
        }
        let welcome = Response::Welcome {
            protocol: PROTOCOL,
            pid: 7,
            server: None,
            alone_for: Some(5),
            abandon_after: 600,
        };
        let item = Response::Item {
            key: "k".to_owned(),
            note: "n".to_owned(),
        };
        let refused = Response::Refused {
            reason: "r".to_owned(),
        };
        let responses = [
            (
                welcome,
                r#"{"answer":"welcome","protocol":1,"pid":7,"server":null,"alone_for":5,"abandon_after":600}"#,
            ),
            (
                Response::Done { count: 2 },
                r#"{"answer":"done","count":2}"#,
            ),
            (item, r#"{"answer":"item","key":"k","note":"n"}"#),
            (Response::End, r#"{"answer":"end"}"#),
            (refused, r#"{"answer":"refused","reason":"r"}"#),
        ];
        for (response, packet) in responses {
            assert_eq!(serde_json::to_string(&response).unwrap(), packet);
            assert_eq!(serde_json::from_str::<Response>(packet).unwrap(), response);
        }
    }
}
