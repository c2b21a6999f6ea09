//! The virtio network header, which stands in front of each packet of a TUN (virtio 1.2 §5.1.6,
//! ``linux/virtio_net.h``).

/// Length of the header, in bytes.
pub const VIRTIO_HEADER_LENGTH: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const CHECKSUM_VALID: u8 = 2;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Set beside a TCP type where the sender uses ECN.
const GSO_ECN: u8 = 0x80;

/// The offloads of a packet that are still to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// None; the checksum is complete.
    #[default]
    None,
    /// None; the checksum is complete and was verified.
    Verified,
    /// The checksum is to be completed.
    Checksum {
        /// The offset of the first byte that is summed.
        start: u16,
        /// The offset of the checksum from `start`.
        offset: u16,
    },
    /// The packet is to be cut into segments, whose checksums are to be completed.
    Segment {
        /// The kind of segments.
        kind: SegmentKind,
        /// Bytes of payload in each segment but the last.
        size: u16,
        /// Length of all headers.
        headers: u16,
        /// The offset of the transport header.
        start: u16,
    },
}

/// The kind of segments that a super-packet is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either.
    Udp,
}

impl SegmentKind {
    /// Returns the offset of the checksum in the transport header.
    pub(crate) fn checksum_offset(self) -> u16 {
        if self == Self::Udp { 6 } else { 16 }
    }
}

impl Offload {
    /// Reads a header; `None` for a kind that was not asked for.
    pub fn decode(header: &[u8; VIRTIO_HEADER_LENGTH]) -> Option<Self> {
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let (flags, kind) = (header[0], header[1] & !GSO_ECN);
        let kind = match kind {
            0 if flags & NEEDS_CHECKSUM != 0 => {
                return Some(Self::Checksum { start: word(6), offset: word(8) });
            }
            0 => return Some(Self::None),
            GSO_TCP_V4 => SegmentKind::TcpV4,
            GSO_TCP_V6 => SegmentKind::TcpV6,
            GSO_UDP => SegmentKind::Udp,
            _ => return None,
        };
        Some(Self::Segment { kind, headers: word(2), size: word(4), start: word(6) })
    }

    /// Writes a header.
    pub fn encode(self) -> [u8; VIRTIO_HEADER_LENGTH] {
        let mut header = [0; VIRTIO_HEADER_LENGTH];
        let mut word =
            |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        let (flags, kind) = match self {
            Self::None => (0, 0),
            Self::Verified => (CHECKSUM_VALID, 0),
            Self::Checksum { start, offset } => {
                word(6, start);
                word(8, offset);
                (NEEDS_CHECKSUM, 0)
            }
            Self::Segment { kind, size, headers, start } => {
                word(2, headers);
                word(4, size);
                word(6, start);
                word(8, kind.checksum_offset());
                let kind = match kind {
                    SegmentKind::TcpV4 => GSO_TCP_V4,
                    SegmentKind::TcpV6 => GSO_TCP_V6,
                    SegmentKind::Udp => GSO_UDP,
                };
                (NEEDS_CHECKSUM, kind)
            }
        };
        (header[0], header[1]) = (flags, kind);
        header
    }
}
