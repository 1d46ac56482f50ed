//! Deciding and counting a request allocate nothing. Allocations are counted, not timed, so the
//! test is valid on any machine and in any build.
//!
//! This is a separate test binary, because an allocator is chosen for a whole program.

use std::io::Write;

use cutover::shared::recorder::{recorder, slot_of};
use cutover_benches::allocations::{CountingAllocator, counted};
use cutover_benches::fixture;
use cutover_core::{Outcome, Reason, Side};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn the_allocator_counts_allocations() {
    assert_eq!(counted(|| Box::new(1)).1, 1);
    let mut grown = vec![1];
    assert_eq!(counted(|| grown.extend(0..1_000)).1, 1);
    assert_eq!(counted(|| ()).1, 0);
}

#[test]
fn a_decision_allocates_nothing() {
    let split = fixture::split();
    for population in [fixture::REQUESTING, fixture::LISTED] {
        let users = fixture::users(population);
        let (decided, allocations) = counted(|| {
            users
                .iter()
                .filter_map(|user| {
                    fixture::decide_one(
                        &split,
                        fixture::HOST,
                        fixture::PATH,
                        "GET",
                        user.as_bytes(),
                    )
                })
                .count()
        });
        assert_eq!((decided, allocations), (fixture::USERS, 0));
    }
}

#[test]
fn counting_allocates_only_for_the_first_request_of_a_rollout() {
    let (recorder, _reader) = recorder();
    let (endings, bad): (Vec<_>, Vec<_>) = fixture::endings(10_000, 3)
        .into_iter()
        .partition(|ending| ending.outcome == Outcome::Success);
    let slot = slot_of(2);
    let (_, registering) =
        counted(|| recorder.record(slot, Side::New, &endings[0], &fixture::origin(1)));
    assert!(registering > 0, "the first call makes the shard");
    let (_, ending) = counted(|| {
        endings
            .iter()
            .for_each(|ending| recorder.record(slot, Side::New, ending, &fixture::origin(1)));
    });
    let (_, whole) = counted(|| {
        for ending in &endings {
            let in_flight = recorder.begin(slot, Side::Legacy, Some(Reason::Bucket));
            recorder.record(slot, Side::Legacy, ending, &fixture::origin(1));
            drop(in_flight);
        }
    });
    assert_eq!((ending, whole), (0, 0));
    // Failures are remembered. The first one allocates the tables for its kind. After that each
    // failure allocates at most one bad event, and only one for each user.
    let (_, first) = counted(|| {
        bad.iter()
            .for_each(|ending| recorder.record(slot, Side::New, ending, &fixture::origin(1)));
    });
    let (_, again) = counted(|| {
        bad.iter()
            .for_each(|ending| recorder.record(slot, Side::New, ending, &fixture::origin(1)));
    });
    assert!(first > 0 && first <= 12, "{first}");
    assert_eq!(again, 0);
}

#[test]
fn the_allocations_of_a_whole_pass_are_known() {
    let (router, _reader) = fixture::router();
    let conn = fixture::conn();
    let users = fixture::users(fixture::REQUESTING);
    let passes: Vec<u64> = users
        .iter()
        .map(|user| {
            let head = fixture::MemoryHead::of_user(user);
            let mut edits = head.copied();
            counted(|| fixture::pass(&router, &conn, &head, &mut edits)).1
        })
        .collect();
    // The print macros are not used, because the harness would capture the figure.
    let (first, rest) = passes.split_first().expect("there are users");
    let (least, most) = (
        rest.iter().min().copied().unwrap_or_default(),
        rest.iter().max().copied().unwrap_or_default(),
    );
    writeln!(
        std::io::stderr(),
        "allocations of one request through the whole router: {least} to {most} ({first} for the \
         first of a thread)"
    )
    .expect("standard error takes a line");
}
