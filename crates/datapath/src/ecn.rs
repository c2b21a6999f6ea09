//! Congestion marks across the tunnel, as the kernel's WireGuard keeps them: the outer header's
//! DSCP is zero, its ECN field follows the inner one (RFC 6040, normal mode).

use crate::checksum::set_ipv4;

/// The ECN field of an IP header (RFC 3168 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ecn {
    /// The sender does not know ECN.
    #[default]
    NotCapable,
    /// ECT(1).
    Capable1,
    /// ECT(0).
    Capable0,
    /// Congestion was experienced.
    Congestion,
}

impl Ecn {
    /// From the byte that holds DSCP and ECN: IPv4's type of service, IPv6's traffic class.
    pub fn of_class(class: u8) -> Self {
        match class & 3 {
            0 => Self::NotCapable,
            1 => Self::Capable1,
            2 => Self::Capable0,
            _ => Self::Congestion,
        }
    }

    /// Returns the byte with this field and DSCP zero.
    pub fn class(self) -> u8 {
        self as u8
    }

    /// Returns the ECN field of a packet that has been parsed.
    pub(crate) fn of_packet(packet: &[u8]) -> Self {
        match packet {
            [first, second, ..] if first >> 4 == 6 => Self::of_class(second >> 4),
            [_, second, ..] => Self::of_class(*second),
            _ => Self::NotCapable,
        }
    }
}

/// Carries a mark of the outer header over to a packet that has been parsed; `false` if the packet
/// is to be dropped, because its sender would not understand the mark (RFC 6040 §4.2).
pub(crate) fn decapsulate(outer: Ecn, packet: &mut [u8]) -> bool {
    let inner = Ecn::of_packet(packet);
    match (inner, outer) {
        (Ecn::NotCapable, Ecn::Congestion) => return false,
        (Ecn::Capable0 | Ecn::Capable1, Ecn::Congestion) => {}
        _ => return true,
    }
    if packet[0] >> 4 == 6 {
        packet[1] |= Ecn::Congestion.class() << 4;
    } else {
        packet[1] |= Ecn::Congestion.class();
        let length = usize::from(packet[0] & 15) * 4;
        set_ipv4(packet, length);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{checksum::Sum, headers::build};

    fn with_class(v6: bool, class: u8) -> Vec<u8> {
        let (a, b) = if v6 { ("fd42::1", "fd42::2") } else { ("10.42.0.1", "10.42.0.2") };
        let mut packet = build::packet(a, b, 17, (1, 2), b"x");
        if v6 {
            packet[0] |= class >> 4;
            packet[1] |= class << 4;
        } else {
            packet[1] = class;
            set_ipv4(&mut packet, 20);
        }
        packet
    }

    #[test]
    fn marks_arrive_as_rfc_6040_says() {
        // Inner, outer, and what is left of it: its figure 4.
        let table = [
            (0, 0, Some(0)),
            (0, 2, Some(0)),
            (0, 3, None),
            (2, 0, Some(2)),
            (2, 2, Some(2)),
            (2, 3, Some(3)),
            (1, 3, Some(3)),
            (1, 2, Some(1)),
            (3, 0, Some(3)),
            (3, 3, Some(3)),
        ];
        for v6 in [false, true] {
            for (inner, outer, after) in table {
                let mut packet = with_class(v6, 0xb8 | inner);
                let passes = decapsulate(Ecn::of_class(outer), &mut packet);
                assert_eq!(passes, after.is_some(), "{inner} in {outer}");
                let Some(after) = after else { continue };
                assert_eq!(Ecn::of_packet(&packet), Ecn::of_class(after), "{inner} in {outer}");
                assert_eq!(packet, with_class(v6, 0xb8 | after), "nothing else has changed");
                assert!(v6 || Sum::default().add(&packet[..20]).is_valid());
            }
        }
    }
}
