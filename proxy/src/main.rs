//! The `cutover` binary.

use std::process::ExitCode;

/// glibc's allocator keeps what many connections once used; this one gives it back and is quicker.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cutover::cli::main()
}
