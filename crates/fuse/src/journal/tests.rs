use zerocopy::IntoBytes;

use super::*;

fn request(unique: u64, code: u32) -> Vec<u8> {
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

/// What is in flight, as the next server finds it.
fn die(journal: Arc<Journal>, death: Death) -> Arc<Journal> {
    let file = journal.descriptor().unwrap();
    drop(journal);
    Journal::take_over(file, death).unwrap()
}

fn put(journal: &Arc<Journal>, slot: usize, connection: u64, bytes: &[u8]) -> Slot {
    let mut slot = journal.slot(slot).unwrap();
    slot.empty(connection)[..bytes.len()].copy_from_slice(bytes);
    slot
}

#[test]
fn what_a_worker_handled_and_what_waited_is_found_after_a_death() {
    let journal = Journal::create().unwrap();
    let handled = request(4, opcode::READ);
    drop(put(&journal, 3, 1, &handled));
    let waiting = request(2, opcode::READ);
    journal.defer(1, 2, &waiting, true);
    journal.defer(1, 6, &request(6, opcode::READ), true);
    journal.settle(1, 6);
    journal.defer(2, 8, &request(8, opcode::READ), true);
    drop(put(&journal, 4, 1, &request(10, opcode::FORGET)));
    let mut answered = put(&journal, 5, 1, &request(12, opcode::LOOKUP));
    answered.done();
    drop(answered);

    let journal = die(journal, Death::Crashed);
    let found = journal.interrupted(1);
    assert_eq!(
        found.iter().map(|r| &r.bytes).collect::<Vec<_>>(),
        [&waiting, &handled]
    );
    let once = Deaths {
        crashes: 1,
        kills: 0,
    };
    assert!(
        found
            .iter()
            .all(|r| r.deaths == once && !r.deaths.too_many())
    );
    assert_eq!(journal.interrupted(2).len(), 1);
    journal.forget_connection(2);
    assert_eq!(journal.in_flight(), 2);
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
    let journal = Journal::create().unwrap();
    drop(put(&journal, 0, 9, &request(4, opcode::READ)));
    let journal = die(journal, Death::Crashed);
    delivered_again(&journal, 9, 4);
    let journal = die(journal, Death::Crashed);
    let found = journal.interrupted(9);
    assert_eq!(found.len(), 1);
    assert!(found[0].deaths.too_many());
    assert_eq!(found[0].deaths.crashes, 2);
}

#[test]
fn a_request_is_not_blamed_for_planned_ends_and_less_for_kills() {
    let mut journal = Journal::create().unwrap();
    journal.defer(9, 4, &request(4, opcode::READ), true);
    for _ in 0..3 {
        journal.leaving_on_purpose();
        journal = die(journal, Death::Crashed);
        assert_eq!(journal.interrupted(9)[0].deaths, Deaths::default());
        delivered_again(&journal, 9, 4);
    }
    for kills in 1..8 {
        journal = die(journal, Death::Killed);
        let deaths = journal.interrupted(9)[0].deaths;
        assert_eq!((deaths.kills, deaths.too_many()), (kills, false));
        delivered_again(&journal, 9, 4);
    }
    journal = die(journal, Death::Killed);
    assert!(journal.interrupted(9)[0].deaths.too_many());
}

#[test]
fn what_the_kernel_does_not_send_again_is_forgotten_in_the_end() {
    let mut journal = Journal::create().unwrap();
    journal.defer(9, 4, &request(4, opcode::READ), true);
    for _ in 0..FORGET_AFTER {
        journal = die(journal, Death::Crashed);
        assert_eq!(journal.in_flight(), 1);
        assert_eq!(journal.interrupted(9)[0].deaths.crashes, 1);
        journal.asked_again(8);
        journal.asked_again(9);
    }
    assert_eq!(die(journal, Death::Crashed).in_flight(), 0);
}

#[test]
fn what_servers_never_came_to_is_kept_however_many_of_them_die() {
    let mut journal = Journal::create().unwrap();
    drop(put(&journal, 0, 9, &request(4, opcode::READ)));
    for _ in 0..3 * FORGET_AFTER {
        journal = die(journal, Death::Killed);
        let found = journal.interrupted(9);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].deaths.kills, 1, "those are not to blame");
    }
}

#[test]
fn a_full_journal_makes_those_wait_who_must_be_in_it_and_no_others() {
    let journal = Journal::create().unwrap();
    let bytes = request(0, opcode::READ);
    let room = ENTRIES - SLOTS;
    for unique in 0..room as u64 {
        journal.defer(1, unique * 2, &bytes, true);
    }
    journal.defer(1, 9999, &bytes, false);
    assert_eq!(journal.in_flight(), room);
    let waiter = {
        let journal = journal.clone();
        std::thread::spawn(move || journal.defer(1, 9999, &bytes, true))
    };
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(!waiter.is_finished());
    journal.settle(1, 0);
    waiter.join().unwrap();
    assert_eq!(journal.in_flight(), room);
    // What is in the slots at a death finds room all the same.
    let slots: Vec<_> = (0..SLOTS)
        .map(|slot| {
            put(
                &journal,
                slot,
                2,
                &request(20_000 + 2 * slot as u64, opcode::READ),
            )
        })
        .collect();
    drop(slots);
    assert_eq!(die(journal, Death::Killed).in_flight(), ENTRIES);
}

#[test]
fn what_is_no_journal_of_ours_is_refused() {
    let other = SharedMemory::create("other", DIVISION).unwrap();
    let file = other.file().try_clone_to_owned().unwrap();
    let refused = Journal::take_over(file, Death::Killed).unwrap_err();
    assert!(refused.to_string().contains("version 0"), "{refused}");
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(Journal::take_over(file.into(), Death::Killed).is_err());
}
