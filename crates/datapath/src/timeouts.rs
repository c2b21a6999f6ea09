//! Idle timeouts of flows.

use meshward_types::Conduct;
use std::time::Duration;

/// The longest timeout: a week.
const MAX_TIMEOUT: Duration = Duration::from_hours(168);

/// Idle timeouts: for how long flows are kept while nothing is sent. The defaults are what RFCs ask
/// for at least, or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, until the other side answers: 30 s by default, since a client that still waits has sent
    /// another SYN by then.
    pub tcp_opening: Duration,
    /// TCP, before its handshake is done and after both sides have closed: 4 minutes (RFC 5382
    /// REQ-5, RFC 7857 §2).
    pub tcp_transitory: Duration,
    /// TCP that is established, one half closed or none: 24 hours (RFC 5382 REQ-5: at least 2 hours
    /// and 4 minutes).
    pub tcp_established: Duration,
    /// UDP, until the other side answers: 2 minutes (RFC 4787 REQ-5, RFC 6092 REC-14).
    pub udp_opening: Duration,
    /// UDP, once both sides have spoken: 3 minutes (RFC 4787 REQ-5: at least 2).
    pub udp: Duration,
    /// ICMP echoes: 1 minute (RFC 5508 REQ-2).
    pub icmp: Duration,
    /// Every other protocol: 3 minutes.
    pub other: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_opening: Duration::from_secs(30),
            tcp_transitory: Duration::from_mins(4),
            tcp_established: Duration::from_hours(24),
            udp_opening: Duration::from_mins(2),
            udp: Duration::from_mins(3),
            icmp: Duration::from_mins(1),
            other: Duration::from_mins(3),
        }
    }
}

impl Timeouts {
    /// Every timeout with its name.
    pub fn all(&self) -> [(&'static str, Duration); 7] {
        [
            ("tcp_established", self.tcp_established),
            ("tcp_transitory", self.tcp_transitory),
            ("tcp_opening", self.tcp_opening),
            ("udp", self.udp),
            ("udp_opening", self.udp_opening),
            ("icmp", self.icmp),
            ("other", self.other),
        ]
    }

    /// Returns the timeouts of a network; what it does not say has its default.
    pub fn of(conduct: &Conduct) -> Self {
        let usual = Self::default();
        let [tcp_established, tcp_transitory, udp, icmp] = conduct
            .timeouts
            .map(|seconds| seconds.map(|seconds| Duration::from_secs(seconds.into())));
        let tcp_transitory = tcp_transitory.unwrap_or(usual.tcp_transitory);
        let udp = udp.unwrap_or(usual.udp);
        Self {
            tcp_established: tcp_established.unwrap_or(usual.tcp_established),
            tcp_transitory,
            tcp_opening: usual.tcp_opening.min(tcp_transitory),
            udp,
            udp_opening: usual.udp_opening.min(udp),
            icmp: icmp.unwrap_or(usual.icmp),
            other: usual.other,
        }
    }
}

/// Idle timeouts in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seconds {
    pub tcp_opening: u32,
    pub tcp_transitory: u32,
    pub tcp_established: u32,
    pub udp_opening: u32,
    pub udp: u32,
    pub icmp: u32,
    pub other: u32,
}

impl From<Timeouts> for Seconds {
    /// Rounds up; less than a second counts as one, and more than a week as a week.
    fn from(timeouts: Timeouts) -> Self {
        let seconds =
            |time: Duration| time.min(MAX_TIMEOUT).as_millis().div_ceil(1000).max(1) as u32;
        Self {
            tcp_opening: seconds(timeouts.tcp_opening),
            tcp_transitory: seconds(timeouts.tcp_transitory),
            tcp_established: seconds(timeouts.tcp_established),
            udp_opening: seconds(timeouts.udp_opening),
            udp: seconds(timeouts.udp),
            icmp: seconds(timeouts.icmp),
            other: seconds(timeouts.other),
        }
    }
}

impl Default for Seconds {
    fn default() -> Self {
        Timeouts::default().into()
    }
}
