//! The `cutover` binary.

use std::process::ExitCode;

/// glibc's allocator keeps the memory that many connections once used; this one returns it and is
/// faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cutover::cli::main()
}
