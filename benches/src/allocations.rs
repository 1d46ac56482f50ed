//! An allocator that counts, so that "no allocation" can be tested.
//!
//! Counts are per thread, so allocations of the test harness or of another test are not included.
//! Freeing is not counted, since everything that is freed was allocated. For the work of many
//! threads together there are also the count and the bytes of the whole process. Install it with
//! `#[global_allocator]` in a separate test binary; the benchmarks run on the allocator of the
//! product instead.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

thread_local! {
    /// The value is built at compile time and has no destructor, so that reading it never allocates
    /// and works until the end of the thread.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

static OF_ALL: AtomicU64 = AtomicU64::new(0);
static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

/// Returns the number of allocations and reallocations of all threads.
pub fn of_all_threads() -> u64 {
    OF_ALL.load(Ordering::Relaxed)
}

/// Returns the number of bytes that are allocated now.
pub fn live_bytes() -> i64 {
    LIVE_BYTES.load(Ordering::Relaxed)
}

/// The system's allocator with a counter in front of it.
#[derive(Debug)]
pub struct CountingAllocator;

/// Returns the result of `run`, and the number of allocations and reallocations it made on this
/// thread.
pub fn counted<T>(run: impl FnOnce() -> T) -> (T, u64) {
    let before = ALLOCATIONS.get();
    let result = run();
    (result, ALLOCATIONS.get() - before)
}

fn count(more: usize, less: usize) {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    OF_ALL.fetch_add(1, Ordering::Relaxed);
    LIVE_BYTES.fetch_add(more as i64 - less as i64, Ordering::Relaxed);
}

// SAFETY: every call is passed unchanged to `System`, which keeps the contract; the counter beside
// it neither allocates nor unwinds.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as above, for `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size, layout.size());
        // SAFETY: as above, for `realloc`; `pointer` was allocated by `System`, since nothing else
        // allocates here.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as above, for `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
