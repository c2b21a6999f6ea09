//! Threads that carry packets: the workers, and one thread for handshakes and timers. tokio has no
//! part in it.
//!
//! Every worker has an epoll of its own. An endpoint has as many sockets as there are workers, all
//! on one port: the kernel spreads the peers over them (`SO_REUSEPORT`). Each socket and each
//! workload's TUN is read by one worker; which one, is changed with the load (`balance.rs`). All
//! workers share the endpoint.

mod answers;
mod balance;
mod handshakes;
mod injector;
mod output;
mod poll;
mod pool;
mod requests;
mod served;
mod shared;
mod socket;
mod source_addresses;
mod tasks;
mod worker;

pub(crate) use answers::{send_answer, send_name_message};
pub(crate) use injector::Injector;
pub(crate) use pool::Workers;
pub(crate) use served::ServedEndpoint;
pub(crate) use socket::bind;
