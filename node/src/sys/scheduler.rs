//! The scheduler's attributes of a thread.

use nix::{errno::Errno, libc};
use std::{io, mem::size_of, time::Duration};

/// Asks for turns of this length for the calling thread, whose policy stays the usual one
/// (`sched_runtime` of `sched_setattr`, sched(7); kernels before 6.12 take it and do nothing).
pub(crate) fn ask_for_short_turns(turn: Duration) -> io::Result<()> {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        runtime: turn.as_nanos() as u64,
        ..Attributes::default()
    };
    // SAFETY: the structure lives for the length of the call, and has the size that it says.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    Errno::result(done)?;
    Ok(())
}

/// `struct sched_attr` of linux/sched/types.h, as far as all kernels that have the call know it.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_thread_may_ask() {
        std::thread::spawn(|| ask_for_short_turns(Duration::from_micros(100)).unwrap())
            .join()
            .unwrap();
    }
}
