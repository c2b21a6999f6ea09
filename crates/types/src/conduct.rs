//! The treatment of conversations in a network: the answer to denied packets, the end of
//! connections that a change cuts, and the timeouts of idle flows.

use crate::trigger::Lasting;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;

/// The answer to a denied packet.
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
    /// None: the packet is dropped.
    #[default]
    Drop,
    /// A TCP reset (RFC 9293 §3.10.7.1), or an ICMP "administratively prohibited" error for any
    /// other protocol (RFC 1812 §5.2.7.1, RFC 4443 §3.1).
    Reject,
}

/// The treatment of a TCP connection that a change of policy or a quarantine cuts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRevoke {
    /// None: packets of the connection are dropped. It continues if it is allowed again before it
    /// times out.
    #[default]
    Drop,
    /// A reset to both ends.
    Reset,
}

/// The shortest and the longest timeout that a network may set.
pub const TIMEOUT_BOUNDS: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_hours(168));

/// The timeouts of idle flows; the default applies to those that are left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowTimeouts {
    /// TCP that is established or half closed. Default: 24 hours (RFC 5382 REQ-5 asks for at least
    /// 2 hours and 4 minutes).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_established: Option<Lasting>,
    /// TCP before its handshake is complete, and after both sides have closed. Default: 4 minutes
    /// (RFC 5382 REQ-5, RFC 7857 §2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_transitory: Option<Lasting>,
    /// UDP. Default: 3 minutes (RFC 4787 REQ-5 and RFC 6092 REC-14 ask for at least 2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<Lasting>,
    /// ICMP echo. Default: 1 minute (RFC 5508 REQ-2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Lasting>,
}

impl FlowTimeouts {
    /// Returns the timeouts that are set, with their names.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let all = [
            ("tcp_established", self.tcp_established),
            ("tcp_transitory", self.tcp_transitory),
            ("udp", self.udp),
            ("icmp", self.icmp),
        ];
        all.into_iter().filter_map(|(name, time)| Some((name, time?.0)))
    }

    /// Returns a warning for each timeout that is shorter than RFCs ask for.
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
                    "`{name}: {given}` is less than {rfc} asks for, {asked}: what is quiet for \
                    longer is cut; raise it, unless nothing is"
                )
            })
        })
    }

    /// Refuses timeouts that are out of bounds.
    ///
    /// # Errors
    /// A sentence that names the first one and says how to fix it.
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

/// The treatment of conversations in a network, in the form that nodes get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conduct {
    /// The answer to packets that no rule allows, unless a rule says otherwise.
    pub on_deny: OnDeny,
    /// The answer to packets of a quarantined workload.
    pub on_quarantine: OnDeny,
    /// The treatment of connections that a change cuts.
    pub on_revoke: OnRevoke,
    /// Timeouts in seconds of established TCP, transitory TCP, UDP and ICMP; `None` for the
    /// default.
    pub timeouts: [Option<u32>; 4],
    /// The newest revision at which cut connections are to be reset; 0 for none.
    pub resets: u64,
}

impl Conduct {
    /// Returns the timeouts in the form that nodes get.
    pub fn timeouts_of(timeouts: &FlowTimeouts) -> [Option<u32>; 4] {
        let FlowTimeouts { tcp_established, tcp_transitory, udp, icmp } = timeouts;
        // The bounds were checked when the policy was read; a part of a second counts as one.
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
        let below = r#"{"tcp_established": "123m", "tcp_transitory": "239s", "udp": "119s",
             "icmp": "59s"}"#;
        assert_eq!([defaults, least, below].map(|text| read(text).warnings().count()), [0, 0, 4]);
        let seconds = Conduct::timeouts_of(&read(r#"{"udp": "1500ms", "tcp_established": "2h"}"#));
        assert_eq!(seconds, [Some(7200), None, Some(2), None]);
    }
}
