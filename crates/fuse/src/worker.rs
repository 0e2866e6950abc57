//! One worker thread: waits for requests of any connection, reads them into its slot, hands them on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::abi::UNIQUE_RESEND;
use crate::connection::Channel;
use crate::interrupt::Verdict;
use crate::journal::Slot;
use crate::pool::{Hub, STOP, Station, watch_flags};
use crate::reply::{Reply, ReplySink as _};
use crate::request::{Operation, Request};

/// How many requests of one connection are taken before the others get their turn.
const TURN: usize = 32;

/// How often interrupted requests are looked at again.
const RECHECK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Serves until the pool stops.
pub(crate) fn run(hub: &Hub, slot: &mut Slot) {
    while !hub.is_stopping() {
        let mut events = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(STOP),
        }];
        let interrupted = !hub.interrupted().is_empty();
        let limit = interrupted.then_some(&RECHECK);
        match epoll::wait(&hub.epoll, &mut events, limit) {
            Ok(0) => {}
            Ok(_) => {
                let [event] = events;
                let id = event.data.u64();
                if id == STOP {
                    return;
                }
                if let Some(station) = hub.station(id) {
                    serve_turn(hub, &station, slot);
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(error = %error, "a FUSE worker ends: epoll_wait failed");
                return;
            }
        }
        if interrupted {
            hub.give_up_abandoned();
        }
    }
}

fn serve_turn(hub: &Hub, station: &Arc<Station>, slot: &mut Slot) {
    let connection = station.channel.facts.key;
    for _ in 0..TURN {
        if hub.is_stopping() {
            return;
        }
        match station.channel.read(slot.empty(connection)) {
            Ok(length) => {
                serve_one(station, slot.filled(length));
                if !station.channel.is_open() {
                    // The answer may have gone nowhere: it stays on record.
                    return;
                }
                slot.done();
            }
            // ENOENT: the request was taken back by a signal.
            Err(Errno::INTR | Errno::NOENT) => {}
            Err(Errno::AGAIN) => return,
            // The descriptor was taken away: this server goes, the connection does not.
            Err(Errno::NODEV) if !station.channel.is_open() => return,
            Err(Errno::NODEV) => {
                hub.end(station);
                return;
            }
            Err(error) => {
                tracing::error!(
                    mountpoint = %station.channel.facts.mountpoint.display(),
                    error = %error,
                    "reading FUSE requests failed; the mount is given up"
                );
                hub.end(station);
                return;
            }
        }
    }
    // More may be there: watching anew reports it again, to whichever worker is free.
    let id = EventData::new_u64(station.id);
    station
        .channel
        .with_device(|device| epoll::modify(&hub.epoll, device, id, watch_flags()));
}

fn serve_one(station: &Station, bytes: &[u8]) {
    let channel = &station.channel;
    let request = match Request::parse(bytes) {
        Ok(request) => request,
        Err(error) => {
            tracing::error!(
                mountpoint = %channel.facts.mountpoint.display(),
                error = %error,
                "a FUSE request cannot be understood"
            );
            if let Some(unique) = error.unique() {
                answer_error(channel, unique, Errno::IO);
            }
            return;
        }
    };
    match request.operation {
        Operation::Forget => {}
        Operation::Interrupt { unique } => match channel.waiting().interrupt(unique) {
            Verdict::GiveUp => give_up(channel, unique),
            Verdict::KeepWaiting => {}
            // Perhaps another worker is just handling it: EAGAIN has the kernel send the
            // interrupt again, unless the request is answered by then.
            Verdict::NotWaiting => answer_error(channel, request.unique, Errno::AGAIN),
        },
        Operation::Destroy => reply_to(channel, &request).ok(),
        // INIT was answered before the connection got here, and comes but once.
        Operation::Init(_) => reply_to(channel, &request).error(Errno::IO),
        _ => hand_on(station, &request, reply_to(channel, &request)),
    }
}

/// Handles a request of the journal, which the kernel cannot send again.
pub(crate) fn serve_again(station: &Station, bytes: &[u8]) {
    // What is in the journal was understood before.
    let Ok(request) = Request::parse(bytes) else {
        return;
    };
    let reply = Reply::new(request.unique, station.channel.clone());
    // It has its entry until it is answered.
    hand_on(station, &request, reply.defer(&request));
}

fn hand_on(station: &Station, request: &Request<'_>, reply: Reply) {
    // A reply that is dropped while unwinding answers EIO.
    let handled = catch_unwind(AssertUnwindSafe(|| {
        station.file_system.handle(request, reply);
    }));
    if handled.is_err() {
        tracing::error!(
            mountpoint = %station.channel.facts.mountpoint.display(),
            operation = ?request.operation,
            node = request.node,
            "a FUSE request made the server panic; it was answered EIO"
        );
    }
}

fn reply_to(channel: &Arc<Channel>, request: &Request<'_>) -> Reply {
    let reply = Reply::new(request.unique, channel.clone());
    // A request that comes again goes on being counted until it is answered.
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

/// Answers a deferred request whose caller dies.
pub(crate) fn give_up(channel: &Arc<Channel>, unique: u64) {
    answer_error(channel, unique, Errno::INTR);
    channel.settle(unique);
}
