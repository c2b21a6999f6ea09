//! The system calls that no library wraps, or only with an allocation each time. The only module
//! with `unsafe`.
#![expect(unsafe_code, reason = "system calls take pointers and descriptors")]

mod scheduler;
mod socket;
mod tun;

pub(crate) use scheduler::ask_for_short_turns;
pub(crate) use socket::{
    Inbox, Outgoing, ReceivedMessages, allow_fragments, forbid_fragments, gather,
    receive_destinations, receive_marks, send, share_port,
};
pub(crate) use tun::{Tun, TunOffloads, delete_tun_at_close, open_tun, tun_name};
