//! How a network treats conversations: what the sender of a denied packet is told, what the ends of
//! a connection are told that is cut, and for how long a silent conversation is kept.

use crate::trigger::Lasting;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;

/// What the sender of a denied packet is told.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum OnDeny {
    /// Nothing: the packet is dropped.
    #[default]
    Drop,
    /// That it was refused: TCP by a reset (RFC 9293 §3.10.7.1), everything else by ICMP's
    /// "administratively prohibited" (RFC 1812 §5.2.7.1, RFC 4443 §3.1).
    Reject,
}

/// What the ends of a TCP connection are told that a change of policy or a quarantine cuts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRevoke {
    /// Nothing: its packets are dropped, and it goes on if it is allowed again in time.
    #[default]
    Drop,
    /// That it has ended: both get a reset.
    Reset,
}

/// The shortest and the longest timeout.
pub const TIMEOUT_BOUNDS: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_hours(168));

/// For how long a conversation is kept in which nothing is said; what is left out has its default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowTimeouts {
    /// TCP that is established, one half closed or none: 24 hours (RFC 5382 REQ-5: at least 2 hours
    /// and 4 minutes).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_established: Option<Lasting>,
    /// TCP before its handshake is done and after both sides have closed: 4 minutes (RFC 5382
    /// REQ-5, RFC 7857 §2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_transitory: Option<Lasting>,
    /// UDP: 3 minutes (RFC 4787 REQ-5, RFC 6092 REC-14: at least 2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<Lasting>,
    /// ICMP echoes: 1 minute (RFC 5508 REQ-2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Lasting>,
}

impl FlowTimeouts {
    /// Every timeout that is given, under its name.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let all = [
            ("tcp_established", self.tcp_established),
            ("tcp_transitory", self.tcp_transitory),
            ("udp", self.udp),
            ("icmp", self.icmp),
        ];
        all.into_iter().filter_map(|(name, time)| Some((name, time?.0)))
    }

    /// What is to be said of timeouts that are shorter than RFCs ask for.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let least = |name: &str| match name {
            "tcp_established" => (Duration::from_mins(124), "RFC 5382"),
            "tcp_transitory" => (Duration::from_mins(4), "RFC 5382 and RFC 7857"),
            "udp" => (Duration::from_mins(2), "RFC 4787"),
            _ => (Duration::from_mins(1), "RFC 5508"),
        };
        self.given().filter_map(move |(name, time)| {
            let (least, rfc) = least(name);
            let [given, asked] = [time, least].map(humantime::format_duration);
            (time < least).then(|| {
                format!(
                    "`{name}: {given}` is less than {rfc} asks for, {asked}: what is quiet for longer is cut; raise it, unless nothing is"
                )
            })
        })
    }

    /// Refuses timeouts that are out of bounds.
    ///
    /// # Errors
    /// A sentence that names the first, and says how to mend it.
    pub fn check(&self) -> Result<(), String> {
        let (least, most) = TIMEOUT_BOUNDS;
        let wrong = self.given().find(|(_, time)| !(least..=most).contains(time));
        match wrong {
            None => Ok(()),
            Some((name, time)) => {
                let time = humantime::format_duration(time);
                Err(format!("`{name}` must be from 1s to 7d, not {time}"))
            }
        }
    }
}

/// How a network treats conversations, as its nodes are told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conduct {
    /// What the sender of a packet is told that nothing allows, where no rule says otherwise.
    pub on_deny: OnDeny,
    /// What a quarantined workload is told of what it sends.
    pub on_quarantine: OnDeny,
    /// What the ends of a connection are told that is cut.
    pub on_revoke: OnRevoke,
    /// In seconds: TCP that is established, TCP in transition, UDP, ICMP; none where the default
    /// holds.
    pub timeouts: [Option<u32>; 4],
    /// The revision at which connections that policy had cut were last to be reset; 0: never.
    pub resets: u64,
}

impl Conduct {
    /// The timeouts as nodes are told of them.
    pub fn timeouts_of(timeouts: &FlowTimeouts) -> [Option<u32>; 4] {
        let FlowTimeouts { tcp_established, tcp_transitory, udp, icmp } = timeouts;
        // Within bounds since the policy was read; a part of a second counts as one.
        let seconds = |time: &Option<Lasting>| {
            time.map(|time| u32::try_from(time.0.as_millis().div_ceil(1000)).unwrap_or(u32::MAX))
        };
        [tcp_established, tcp_transitory, udp, icmp].map(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_bounded_and_the_error_says_how() {
        let read = |text: &str| serde_json::from_str::<FlowTimeouts>(text).unwrap();
        assert!(read("{}").check().is_ok());
        assert!(read(r#"{"udp": "1s", "tcp_established": "7d"}"#).check().is_ok());
        for wrong in [r#"{"udp": "0s"}"#, r#"{"tcp_established": "8d"}"#, r#"{"icmp": "500ms"}"#] {
            let said = read(wrong).check().unwrap_err();
            assert!(said.contains("from 1s to 7d"), "{said}");
        }
        assert!(serde_json::from_str::<FlowTimeouts>(r#"{"sctp": "1s"}"#).is_err());
        let defaults =
            r#"{"tcp_established": "24h", "tcp_transitory": "4m", "udp": "3m", "icmp": "1m"}"#;
        let least =
            r#"{"tcp_established": "124m", "tcp_transitory": "240s", "udp": "2m", "icmp": "60s"}"#;
        let below = r#"{"tcp_established": "123m", "tcp_transitory": "239s", "udp": "119s", "icmp": "59s"}"#;
        assert_eq!([defaults, least, below].map(|text| read(text).warnings().count()), [0, 0, 4]);
        let seconds = Conduct::timeouts_of(&read(r#"{"udp": "1500ms", "tcp_established": "2h"}"#));
        assert_eq!(seconds, [Some(7200), None, Some(2), None]);
    }
}
