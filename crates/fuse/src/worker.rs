//! One worker thread: waits for requests of any connection, reads them into its slot, dispatches them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::abi::UNIQUE_RESEND;
use crate::connection::Channel;
use crate::journal::Slot;
use crate::reply::Reply;
use crate::request::{Operation, Request};
use crate::session::{PoolShared, STOP, Session, watch_flags};

/// How many requests of one connection are taken before the others get their turn.
const TURN: usize = 32;

/// Serves until the pool stops.
pub(crate) fn run(shared: &PoolShared, slot: &mut Slot) {
    while !shared.is_stopping() {
        let mut events = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(STOP),
        }];
        match epoll::wait(&shared.epoll, &mut events, None) {
            Ok(0) => {}
            Ok(_) => {
                let [event] = events;
                let id = event.data.u64();
                if id == STOP {
                    return;
                }
                if let Some(session) = shared.session(id) {
                    serve_turn(shared, &session, slot);
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(error = %error, "epoll_wait failed; FUSE worker ends");
                return;
            }
        }
    }
}

fn serve_turn(shared: &PoolShared, session: &Arc<Session>, slot: &mut Slot) {
    for _ in 0..TURN {
        if shared.is_stopping() {
            return;
        }
        match session.channel.read(slot) {
            Ok(length) => {
                serve_one(shared, session, slot.request(length));
                if !session.channel.done(slot) {
                    return;
                }
            }
            // ENOENT: the request was taken back by a signal.
            Err(Errno::INTR | Errno::NOENT) => {}
            Err(Errno::AGAIN) => return,
            // The channel was closed: this server leaves, the connection stays.
            Err(Errno::NODEV) if !session.channel.is_open() => return,
            Err(Errno::NODEV) => {
                shared.end(session);
                return;
            }
            Err(error) => {
                tracing::error!(
                    mountpoint = %session.channel.facts.mountpoint.display(),
                    error = %error,
                    "cannot read FUSE requests; giving up the mount"
                );
                shared.end(session);
                return;
            }
        }
    }
    // There may be more: watching again reports it to any free worker.
    let id = EventData::new_u64(session.id);
    session
        .channel
        .with_device(|device| epoll::modify(&shared.epoll, device, id, watch_flags()));
}

fn serve_one(shared: &PoolShared, session: &Session, bytes: &[u8]) {
    let channel = &session.channel;
    let request = match Request::parse(bytes) {
        Ok(request) => request,
        Err(error) => {
            tracing::error!(
                mountpoint = %channel.facts.mountpoint.display(),
                error = %error,
                "malformed FUSE request"
            );
            if let Some(unique) = error.unique() {
                answer_error(channel, unique, Errno::IO);
            }
            return;
        }
    };
    match request.operation {
        Operation::Forget => {}
        // The kernel expects no answer to it.
        Operation::Interrupt { unique } => shared.interrupts.add(channel.clone(), unique),
        Operation::Destroy => reply_to(channel, &request).ok(),
        // INIT was answered before the connection came to the pool, and is sent once.
        Operation::Init(_) => reply_to(channel, &request).error(Errno::IO),
        _ => handle(session, &request, reply_to(channel, &request)),
    }
}

/// Handles a request of the journal, which the kernel cannot send again.
pub(crate) fn serve_again(session: &Session, bytes: &[u8]) {
    // What is in the journal was understood before.
    let Ok(request) = Request::parse(bytes) else {
        return;
    };
    let reply = Reply::new(request.unique, session.channel.clone());
    // It has its entry until it is answered.
    handle(session, &request, reply.defer(&request));
}

fn handle(session: &Session, request: &Request<'_>, reply: Reply) {
    // A reply that is dropped while unwinding answers EIO.
    let handled = catch_unwind(AssertUnwindSafe(|| {
        session.file_system.handle(request, reply);
    }));
    if handled.is_err() {
        tracing::error!(
            mountpoint = %session.channel.facts.mountpoint.display(),
            operation = ?request.operation,
            node = request.node,
            "panic while handling a FUSE request; answered EIO"
        );
    }
}

fn reply_to(channel: &Arc<Channel>, request: &Request<'_>) -> Reply {
    let reply = Reply::new(request.unique, channel.clone());
    // A request that was sent again keeps its record until it is answered.
    let resent = request.unique & UNIQUE_RESEND != 0;
    if resent && channel.journal().knows(channel.facts.key, request.unique) {
        reply.defer(request)
    } else {
        reply
    }
}

pub(crate) fn answer_error(channel: &Arc<Channel>, unique: u64, errno: Errno) {
    Reply::new(unique, channel.clone()).error(errno);
}
