//! The constants of the protocol's timers, under the names of the paper (§6.1) and of the kernel's
//! implementation (`drivers/net/wireguard/messages.h`).

use std::time::Duration;

/// Messages after which a session is renewed.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Messages after which a session ends.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Age at which the initiator of a session renews it.
pub const REKEY_AFTER_TIME: Duration = Duration::from_mins(2);
/// Age at which a session ends.
pub const REJECT_AFTER_TIME: Duration = Duration::from_mins(3);
/// Time after which an initiation without a response is repeated.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which a handshake without a response is given up.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Time after which a peer that has received data and has none to send sends a keepalive.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest random delay that is added to [`REKEY_TIMEOUT`], so that two peers that begin at the
/// same moment do not go on so.
pub const REKEY_TIMEOUT_JITTER_MAX: Duration = Duration::from_millis(333);
/// Age at which a cookie's secret is replaced, and a cookie with it (the paper's §5.4.7).
pub const COOKIE_SECRET_MAX_AGE: Duration = Duration::from_mins(2);
/// The time by which the receiver of a cookie stops using it sooner, for the messages on their way.
pub const COOKIE_SECRET_LATENCY: Duration = Duration::from_secs(5);
/// The least time between two initiations of one peer that are answered: the kernel's
/// `INITIATIONS_PER_SECOND` is 50.
pub const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum number of packets of one peer that wait for its session (the kernel's value).
pub const MAX_STAGED_PACKETS: usize = 128;
