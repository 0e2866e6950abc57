use std::cell::RefCell;
use std::rc::Rc;

use zerocopy::IntoBytes;

use super::layout::{FIRST_ENTRIES, MORE_ENTRIES};
use super::recovery::FORGET_AFTER;
use super::*;
use crate::Request;
use crate::abi::{InHeader, opcode};

pub(super) fn request(unique: u64, code: u32) -> Vec<u8> {
    let header = InHeader {
        len: 80,
        opcode: code,
        unique,
        nodeid: 7,
        uid: 0,
        gid: 0,
        pid: 1,
        total_extlen: 0,
        padding: 0,
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(80, 0);
    bytes
}

fn journal() -> Arc<Journal> {
    Journal::create().unwrap()
}

/// What is in flight, as the next server finds it.
fn die(journal: Arc<Journal>, exit: ExitKind) -> Arc<Journal> {
    let memory = journal.memory.second_mapping();
    drop(journal);
    Journal::adopt(memory, exit).unwrap()
}

fn put(journal: &Arc<Journal>, slot: usize, connection: u64, bytes: &[u8]) -> Slot {
    let mut slot = journal.slot(slot).unwrap();
    slot.fill(connection, bytes);
    slot
}

#[test]
fn what_a_worker_handled_and_what_waited_is_found_after_a_death() {
    let journal = journal();
    let handled = request(4, opcode::READ);
    drop(put(&journal, 3, 1, &handled));
    let waiting = request(2, opcode::READ);
    journal.defer(1, 2, &waiting, false);
    journal.defer(1, 6, &request(6, opcode::READ), false);
    journal.settle(1, 6);
    journal.defer(2, 8, &request(8, opcode::READ), false);
    drop(put(&journal, 4, 1, &request(10, opcode::FORGET)));
    let mut answered = put(&journal, 5, 1, &request(12, opcode::LOOKUP));
    answered.done();
    drop(answered);

    let journal = die(journal, ExitKind::Crashed);
    let found = journal.interrupted(1);
    assert_eq!(
        found.iter().map(|r| &r.bytes).collect::<Vec<_>>(),
        [&waiting, &handled]
    );
    let once = Strikes {
        crashes: 1,
        kills: 0,
    };
    assert!(
        found
            .iter()
            .all(|r| r.strikes == once && !r.strikes.are_too_many())
    );
    assert_eq!(journal.interrupted(2).len(), 1);
    journal.forget_connection(2);
    assert_eq!(journal.in_flight(), 2);
}

#[test]
fn a_slot_is_in_one_hand_at_a_time() {
    let journal = journal();
    let slot = journal.slot(0);
    assert!(slot.is_some() && journal.slot(0).is_none() && journal.slot(SLOTS).is_none());
    drop(slot);
    assert!(journal.slot(0).is_some());
}

/// It comes again, marked, and a server begins to handle it.
fn delivered_again(journal: &Arc<Journal>, connection: u64, unique: u64) {
    assert!(journal.knows(connection, unique | UNIQUE_RESEND));
    let again = request(unique | UNIQUE_RESEND, opcode::READ);
    let slot = put(journal, 1, connection, &again);
    journal.defer(connection, unique | UNIQUE_RESEND, &again, false);
    drop(slot);
}

#[test]
fn a_request_that_is_in_flight_at_two_crashes_is_given_up() {
    let journal = journal();
    drop(put(&journal, 0, 9, &request(4, opcode::READ)));
    let journal = die(journal, ExitKind::Crashed);
    delivered_again(&journal, 9, 4);
    let journal = die(journal, ExitKind::Crashed);
    let found = journal.interrupted(9);
    assert_eq!(found.len(), 1);
    assert!(found[0].strikes.are_too_many());
    assert_eq!(found[0].strikes.crashes, 2);
}

#[test]
fn a_request_is_not_blamed_for_planned_ends_and_less_for_kills() {
    let mut journal = journal();
    journal.defer(9, 4, &request(4, opcode::READ), false);
    for _ in 0..3 {
        journal.leaving_on_purpose();
        journal = die(journal, ExitKind::Crashed);
        assert_eq!(journal.interrupted(9)[0].strikes, Strikes::default());
        delivered_again(&journal, 9, 4);
    }
    for kills in 1..8 {
        journal = die(journal, ExitKind::Killed);
        let strikes = journal.interrupted(9)[0].strikes;
        assert_eq!((strikes.kills, strikes.are_too_many()), (kills, false));
        delivered_again(&journal, 9, 4);
    }
    journal = die(journal, ExitKind::Killed);
    assert!(journal.interrupted(9)[0].strikes.are_too_many());
}

#[test]
fn what_the_kernel_does_not_send_again_is_forgotten_in_the_end() {
    let mut journal = journal();
    journal.defer(9, 4, &request(4, opcode::READ), false);
    for _ in 0..FORGET_AFTER {
        journal = die(journal, ExitKind::Crashed);
        assert_eq!(journal.in_flight(), 1);
        assert_eq!(journal.interrupted(9)[0].strikes.crashes, 1);
        journal.asked_again(8);
        journal.asked_again(9);
    }
    assert_eq!(die(journal, ExitKind::Crashed).in_flight(), 0);
}

#[test]
fn what_servers_never_came_to_is_kept_however_many_of_them_die() {
    let mut journal = journal();
    drop(put(&journal, 0, 9, &request(4, opcode::READ)));
    for _ in 0..3 * FORGET_AFTER {
        journal = die(journal, ExitKind::Killed);
        let found = journal.interrupted(9);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].strikes.kills, 1, "those are not to blame");
    }
}

const ENTRIES: usize = FIRST_ENTRIES + MORE_ENTRIES;
const SHARE_OF_ONE: usize = ENTRIES / SHARE;

#[test]
#[cfg_attr(miri, ignore = "takes minutes: it fills the journal")]
fn a_connection_gets_its_share_of_the_journal_and_the_rest_is_recorded_by_id() {
    let journal = journal();
    let bytes = request(0, opcode::READ);
    let all = 3 * SHARE_OF_ONE as u64;
    for unique in 1..=all {
        journal.defer(1, 2 * unique, &bytes, false);
    }
    let rest = 2 * SHARE_OF_ONE;
    assert_eq!(journal.unrecorded(), rest as u64);
    assert_eq!(journal.in_flight(), 3 * SHARE_OF_ONE);
    // Another connection has its share, and a kernel that resends needs no record.
    journal.defer(2, 4, &bytes, false);
    assert!(journal.knows(2, 4));
    journal.defer(1, 1_000_000, &bytes, true);
    assert_eq!(journal.in_flight(), 3 * SHARE_OF_ONE + 1);
    // What is answered makes room, whether it was recorded or not.
    journal.settle(1, 2);
    journal.settle(1, 2 * all);
    journal.defer(1, 1_000_002, &bytes, false);
    assert!(journal.knows(1, 1_000_002));

    let journal = die(journal, ExitKind::Killed);
    assert_eq!(journal.interrupted(1).len(), SHARE_OF_ONE);
    assert_eq!(journal.interrupted(2).len(), 1);
    let first = 2 * (SHARE_OF_ONE as u64 + 1);
    let lost: Vec<u64> = (first..2 * all).step_by(2).collect();
    assert_eq!(journal.left_unrecorded(1), lost);
    assert_eq!(journal.left_unrecorded(2), []);
    for &unique in &lost[1..] {
        journal.settle(1, unique);
    }
    let journal = die(journal, ExitKind::Killed);
    assert_eq!(journal.left_unrecorded(1), [first]);
    journal.forget_connection(1);
    assert_eq!(journal.in_flight(), 1);
    assert_eq!(die(journal, ExitKind::Killed).left_unrecorded(1), []);
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes: it fills the journal")]
fn a_full_journal_makes_no_caller_wait() {
    let journal = journal();
    let bytes = request(0, opcode::READ);
    for connection in 0..SHARE as u64 + 1 {
        for unique in 0..SHARE_OF_ONE as u64 {
            journal.defer(connection, 2 * unique, &bytes, true);
        }
    }
    assert_eq!(journal.in_flight(), ENTRIES - SLOTS);
    for unique in 1..100_000 {
        journal.defer(99, 2 * unique, &bytes, false);
    }
    assert_eq!(journal.unrecorded(), 99_999);
    // What is in the slots at a death finds room all the same.
    let slots: Vec<_> = (0..SLOTS)
        .map(|slot| {
            let unique = 20_000 + 2 * slot as u64;
            put(&journal, slot, 2, &request(unique, opcode::READ))
        })
        .collect();
    drop(slots);
    let next = die(journal, ExitKind::Killed);
    assert_eq!(next.in_flight(), ENTRIES + layout::UNRECORDED);
}

#[test]
fn a_request_in_a_slot_is_being_handled() {
    let journal = journal();
    let mut slot = put(&journal, 3, 1, &request(4, opcode::READ));
    assert!(journal.is_handling(1, 4) && journal.is_handling(1, 4 | UNIQUE_RESEND));
    assert!(!journal.is_handling(1, 6) && !journal.is_handling(2, 4) && !journal.is_handling(0, 0));
    slot.done();
    assert!(!journal.is_handling(1, 4));
}

/// A journal as the version before made it.
fn journal_of_version_1() -> Arc<Journal> {
    let memory = SharedMemory::create(Extent::First).unwrap();
    recovery::begin(&memory);
    assert_eq!(memory.layout().version.get(), 1);
    Journal::adopt(memory, ExitKind::Planned).unwrap()
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes: it fills the journal")]
fn a_journal_of_the_version_before_is_adopted_and_stays_readable_to_it() {
    let journal = journal_of_version_1();
    let bytes = request(0, opcode::READ);
    for unique in 1..=2000 {
        journal.defer(1, 2 * unique, &bytes, false);
    }
    assert_eq!(journal.in_flight(), SMALLEST_SHARE);
    assert_eq!(journal.unrecorded(), 2000 - SMALLEST_SHARE as u64);
    let next = die(journal, ExitKind::Killed);
    assert_eq!(next.memory.extent(), Extent::First);
    assert_eq!(next.memory.layout().version.get(), 1);
    assert_eq!(next.interrupted(1).len(), SMALLEST_SHARE);
}

#[test]
fn a_journal_of_the_version_before_is_converted_with_all_that_is_in_it() {
    let journal = journal_of_version_1();
    journal.defer(1, 4, &request(4, opcode::READ), false);
    drop(put(&journal, 3, 2, &request(6, opcode::READ)));
    let journal = die(journal, ExitKind::Crashed);
    journal.asked_again(2);
    let converted = journal.clone().in_current_format().unwrap();
    assert_eq!(converted.memory.extent(), Extent::Whole);
    for of in [&journal, &converted] {
        assert_eq!((found_of(of, 1), found_of(of, 2)), (vec![4], vec![6]));
        assert_eq!(of.interrupted(1)[0].strikes.crashes, 1);
    }
    let age = |journal: &Journal| {
        let entries = (0..FIRST_ENTRIES).map(|number| journal.entry(number).age.get());
        entries.collect::<Vec<_>>()
    };
    assert_eq!(age(&journal), age(&converted));
    // One of the current version stays as it is.
    let again = converted.clone().in_current_format().unwrap();
    assert!(Arc::ptr_eq(&converted, &again));
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes: it fills the journal")]
fn a_server_that_leaves_changes_no_entry_any_more() {
    let journal = journal();
    let bytes = request(0, opcode::READ);
    let count = SHARE_OF_ONE + 1;
    for unique in 1..=count as u64 {
        journal.defer(1, unique, &bytes, false);
    }
    journal.retire();
    let next = Journal::adopt(journal.memory.second_mapping(), ExitKind::Planned).unwrap();
    next.settle(1, 1);
    next.settle(1, 2);
    next.defer(2, 2, &bytes, false);
    // What an answer that comes too late would do.
    journal.settle(1, 2);
    journal.settle(1, count as u64);
    journal.forget_connection(1);
    journal.defer(3, 2, &bytes, false);
    let after = die(next, ExitKind::Planned);
    assert_eq!(after.interrupted(1).len(), SHARE_OF_ONE - 2);
    assert_eq!(after.left_unrecorded(1), [count as u64]);
    assert_eq!(
        (after.interrupted(2).len(), after.interrupted(3).len()),
        (1, 0)
    );
}

/// Ends the server after each store to `memory` that `work` makes, and looks at what the next one finds.
fn killed_after_each_store(
    memory: SharedMemory,
    work: impl FnOnce(),
    found: impl Fn(&Journal) + 'static,
) -> usize {
    let deaths = Rc::new(RefCell::new(0));
    let counted = deaths.clone();
    let observer = move || {
        found(&Journal::adopt(memory.copy(), ExitKind::Crashed).unwrap());
        *counted.borrow_mut() += 1;
    };
    layout::observe::each_store(observer, work);
    deaths.take()
}

fn found_of(journal: &Journal, connection: u64) -> Vec<u64> {
    let found = journal.interrupted(connection).into_iter();
    found
        .map(|found| Request::parse(&found.bytes).unwrap().unique)
        .collect()
}

#[test]
fn a_death_between_two_stores_attributes_no_request_to_another_connection() {
    let journal = journal();
    // The server left the first request on record.
    let mut slot = put(&journal, 0, 1, &request(4, opcode::GETATTR));
    let deaths = killed_after_each_store(
        journal.memory.second_mapping(),
        || slot.clear_for(2),
        |next| assert_eq!(found_of(next, 2), []),
    );
    assert_eq!(deaths, 2);
}

#[test]
fn a_request_that_is_not_answered_is_found_once_whichever_store_was_the_last() {
    let journal = journal();
    let mut slot = put(&journal, 0, 1, &request(4, opcode::GETATTR));
    let deaths = killed_after_each_store(
        journal.memory.second_mapping(),
        || {
            journal.defer(1, 4, &request(4, opcode::GETATTR), false);
            slot.done();
        },
        |next| assert_eq!(found_of(next, 1), [4]),
    );
    assert!(deaths > 10, "{deaths}");
}

#[test]
fn a_death_while_the_journal_is_adopted_loses_no_request() {
    let journal = journal();
    let slot = put(&journal, 0, 1, &request(4, opcode::GETATTR));
    journal.defer(1, 6, &request(6, opcode::GETATTR), false);
    let memory = journal.memory.copy();
    let deaths = killed_after_each_store(
        memory.second_mapping(),
        || drop(Journal::adopt(memory, ExitKind::Crashed)),
        |next| assert_eq!(found_of(next, 1), [4, 6]),
    );
    assert!(deaths > 10, "{deaths}");
    drop(slot);
}

#[test]
fn a_file_that_is_not_our_journal_is_refused() {
    let other = SharedMemory::create(Extent::Whole).unwrap();
    let refused = Journal::adopt(other, ExitKind::Killed).unwrap_err();
    assert!(refused.to_string().contains("version 0"), "{refused}");
    #[cfg(not(miri))]
    {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Journal::take_over(file.into(), ExitKind::Killed).is_err());
    }
}
