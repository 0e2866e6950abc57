//! Interleavings of workers and a death of the server between any two accesses to the memory, chosen at
//! random by shuttle. `SHUTTLE_ITERATIONS` sets the number of schedules per test.

use super::tests::request;
use super::*;
use crate::abi::opcode;

/// Runs a test with another order of accesses each time.
fn check(test: impl Fn() + Send + Sync + 'static) {
    let set = std::env::var("SHUTTLE_ITERATIONS").ok();
    let iterations = set.and_then(|text| text.parse().ok()).unwrap_or(100);
    layout::observe::each_access(shuttle::thread::yield_now, || {
        shuttle::check_random(test, iterations);
    });
}

/// A small journal: a model copies it.
fn journal() -> Arc<Journal> {
    let memory = SharedMemory::create(Extent::First).unwrap();
    recovery::begin(&memory);
    Journal::adopt(memory, ExitKind::Planned).unwrap()
}

/// What the next server finds of each connection if this one is killed now: ids, and no torn request.
fn found_after_death(journal: &Journal) -> [Vec<u64>; 2] {
    let next = Journal::adopt(journal.memory.copy(), ExitKind::Killed).unwrap();
    [1, 2].map(|connection| {
        let found = next.interrupted(connection).into_iter();
        found
            .map(|found| {
                let id = u64::from_ne_bytes(found.bytes[8..16].try_into().unwrap());
                assert_eq!(found.bytes, request(id, opcode::READ), "a torn request");
                id
            })
            .collect()
    })
}

/// A worker reads a request into its slot. The kernel's copy is not cut short by a death of the server.
fn read(slot: &mut Slot, connection: u64, unique: u64) {
    slot.clear_for(connection);
    layout::observe::undisturbed(|| slot.fill(connection, &request(unique, opcode::READ)));
}

/// How far a request is.
#[derive(Debug, Default)]
struct Progress {
    /// It is in the slot as a whole.
    begun: AtomicBool,
    /// Its answer is about to be given.
    answering: AtomicBool,
    /// Its record has ended.
    ended: AtomicBool,
}

/// A worker reads a request into its slot, defers it, and is free; another thread answers it.
fn handle(journal: &Arc<Journal>, slot: usize, connection: u64, unique: u64, at: &Arc<Progress>) {
    let bytes = request(unique, opcode::READ);
    let mut slot = journal.slot(slot).unwrap();
    read(&mut slot, connection, unique);
    at.begun.store(true, Ordering::SeqCst);
    journal.defer(connection, unique, &bytes, false);
    slot.done();
    let (journal, at) = (journal.clone(), at.clone());
    let answer = shuttle::thread::spawn(move || {
        at.answering.store(true, Ordering::SeqCst);
        journal.settle(connection, unique);
        at.ended.store(true, Ordering::SeqCst);
    });
    answer.join().unwrap();
}

#[test]
fn a_death_at_any_access_loses_no_request_and_brings_none_back() {
    check(|| {
        let journal = journal();
        // Two workers, each with a request of another connection, and one of the same.
        let requests = [(1, 2), (2, 4), (1, 6)];
        let progress = requests.map(|_| Arc::new(Progress::default()));
        let workers = (0..requests.len()).map(|number| {
            let (journal, at) = (journal.clone(), progress[number].clone());
            let (connection, unique) = requests[number];
            shuttle::thread::spawn(move || handle(&journal, number, connection, unique, &at))
        });
        let workers: Vec<_> = workers.collect();
        // Between any two accesses of theirs.
        for _ in 0..3 {
            shuttle::thread::yield_now();
            let now = |flag: fn(&Progress) -> &AtomicBool| {
                [0, 1, 2].map(|number: usize| flag(&progress[number]).load(Ordering::SeqCst))
            };
            let (begun, answering, ended) = (
                now(|at| &at.begun),
                now(|at| &at.answering),
                now(|at| &at.ended),
            );
            let found = layout::observe::undisturbed(|| found_after_death(&journal));
            for (number, (connection, unique)) in requests.into_iter().enumerate() {
                let of_connection = &found[usize::try_from(connection).unwrap() - 1];
                let times = of_connection.iter().filter(|id| **id == unique).count();
                assert!(times <= 1, "{unique} is found {times} times");
                if begun[number] && !answering[number] {
                    assert_eq!(times, 1, "{unique} is lost");
                }
                if ended[number] {
                    assert_eq!(times, 0, "{unique} was answered");
                }
            }
            assert!(found.iter().flatten().all(|id| [2, 4, 6].contains(id)));
        }
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(journal.in_flight(), 0);
        assert_eq!(journal.index.lock().shares.of(1), 0);
    });
}

#[test]
fn a_connection_that_ends_beside_its_requests_leaves_those_of_others() {
    check(|| {
        let journal = journal();
        let defer = |connection: u64, unique: u64| {
            let journal = journal.clone();
            shuttle::thread::spawn(move || {
                let bytes = request(unique, opcode::READ);
                journal.defer(connection, unique, &bytes, false);
            })
        };
        journal.defer(1, 2, &request(2, opcode::READ), false);
        let others = [defer(1, 4), defer(2, 6)];
        let forgets = journal.clone();
        let ends = shuttle::thread::spawn(move || forgets.forget_connection(1));
        for other in others {
            other.join().unwrap();
        }
        ends.join().unwrap();
        let [of_ended, of_other] = found_after_death(&journal);
        assert!(!of_ended.contains(&2), "{of_ended:?}");
        assert_eq!(of_other, [6]);
        let left = journal.in_flight();
        assert_eq!(left, of_ended.len() + 1);
        assert_eq!(journal.index.lock().shares.of(1), of_ended.len());
    });
}

#[test]
fn a_server_that_retires_beside_its_workers_stores_nothing_afterwards() {
    check(|| {
        let journal = journal();
        for unique in [2, 4] {
            journal.defer(1, unique, &request(unique, opcode::READ), false);
        }
        let workers: [fn(&Journal); 3] = [
            |journal| journal.settle(1, 2),
            |journal| journal.defer(2, 6, &request(6, opcode::READ), false),
            |journal| journal.forget_connection(1),
        ];
        let workers = workers.map(|work| {
            let journal = journal.clone();
            shuttle::thread::spawn(move || work(&journal))
        });
        journal.retire();
        let left = layout::observe::undisturbed(|| found_after_death(&journal));
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(found_after_death(&journal), left);
    });
}

#[test]
fn a_request_that_is_handled_is_seen_until_its_slot_is_free() {
    check(|| {
        let journal = journal();
        let mut slot = journal.slot(0).unwrap();
        read(&mut slot, 1, 2);
        let watched = journal.clone();
        // What was never delivered is not seen, whatever the slot is used for in the meantime.
        let watcher = shuttle::thread::spawn(move || {
            assert!(!watched.is_handling(3, 2) && !watched.is_handling(1, 8));
        });
        assert!(journal.is_handling(1, 2));
        slot.done();
        read(&mut slot, 2, 4);
        assert!(journal.is_handling(2, 4) && !journal.is_handling(1, 2));
        slot.done();
        watcher.join().unwrap();
        assert!(!journal.is_handling(2, 4));
    });
}
