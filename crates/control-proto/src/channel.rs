//! Channels: the kinds of QUIC connections between members and the coordinator, and their versions.
//!
//! A version is negotiated by ALPN (RFC 7301 §3.2): who dials offers all that it speaks, newest
//! first, and who is dialled takes the newest that both speak. Messages are encoded by the version
//! that was taken, so members of neighbouring releases work together while a mesh is upgraded.

use std::fmt;

/// A kind of QUIC connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// A node's session: [`crate::FromNode`] one way, [`crate::FromCoordinator`] the other.
    Session,
    /// A machine that joins, without a client certificate.
    Join,
    /// A node's relayed packets. The node first opens a unidirectional stream that has the
    /// [`crate::InstanceId`] of its daemon, and nothing else.
    Relay,
    /// A relay's link to its coordinator: [`crate::relay::FromRelay`] one way,
    /// [`crate::relay::ToRelay`] the other.
    RelayLink,
}

/// A version of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelVersion(pub u16);

impl Channel {
    /// Every channel.
    pub const ALL: [Self; 4] = [Self::Session, Self::Join, Self::Relay, Self::RelayLink];

    fn name(self) -> &'static str {
        match self {
            Self::Session => "meshward-session",
            Self::Join => "meshward-join",
            Self::Relay => "meshward-relay",
            Self::RelayLink => "meshward-relay-link",
        }
    }

    /// Returns the versions that this release speaks, newest first.
    pub const fn versions(self) -> &'static [ChannelVersion] {
        &[ChannelVersion(3)]
    }

    /// Returns the ALPN protocol names, in the order of preference.
    pub fn alpn(self) -> Vec<Vec<u8>> {
        let protocol = |version: &ChannelVersion| format!("{}/{}", self.name(), version.0);
        self.versions().iter().map(|version| protocol(version).into_bytes()).collect()
    }

    /// Returns the channel and version of a negotiated ALPN protocol.
    pub fn negotiated(alpn: &[u8]) -> Option<(Self, ChannelVersion)> {
        let text = std::str::from_utf8(alpn).ok()?;
        let (name, version) = text.rsplit_once('/')?;
        let channel = Self::ALL.into_iter().find(|channel| channel.name() == name)?;
        let version = ChannelVersion(version.parse().ok()?);
        channel.versions().contains(&version).then_some((channel, version))
    }
}

impl fmt::Display for Channel {
    /// Writes the versions with the name: `meshward-session 3, 2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let versions = self.versions().iter().map(|version| version.0.to_string());
        write!(f, "{} {}", self.name(), versions.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_offered_newest_first_and_known_again() {
        for channel in Channel::ALL {
            let versions = channel.versions();
            assert!(versions.is_sorted_by(|newer, older| newer > older), "{channel}");
            for (protocol, version) in channel.alpn().iter().zip(versions) {
                assert_eq!(Channel::negotiated(protocol), Some((channel, *version)));
            }
        }
        for other in ["meshward-session/1", "meshward-session", "h2", "meshward-sessions/3", "/3"] {
            assert_eq!(Channel::negotiated(other.as_bytes()), None, "{other}");
        }
    }
}
