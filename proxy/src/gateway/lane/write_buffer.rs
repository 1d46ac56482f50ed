//! Bytes that are being assembled, in memory that the thread keeps. They are used for outgoing
//! heads.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// The number of buffers that a thread keeps.
const KEPT: usize = 64;
/// The size in bytes above which a buffer goes back to the allocator.
const LARGEST: usize = 32 << 10;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A vector that is empty at first and reuses memory.
#[derive(Debug)]
pub struct Scratch(Vec<u8>);

impl Scratch {
    /// Returns one of the thread's buffers.
    pub fn new() -> Self {
        Self(FREE.with_borrow_mut(Vec::pop).unwrap_or_default())
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Scratch {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0);
        if bytes.capacity() > LARGEST {
            return;
        }
        bytes.clear();
        // While a thread ends, there is no pool to return the buffer to.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_reused_but_its_old_bytes_are_not() {
        let mut scratch = Scratch::new();
        scratch.extend_from_slice(&[1; 5_000]);
        drop(scratch);
        let again = Scratch::new();
        assert!(again.is_empty() && again.capacity() >= 5_000);
    }
}
