//! The resolver of a network: where the node itself answers DNS queries of its workloads.

use crate::{checksum, headers::Headers, index::WorkloadIndex};
use meshward_types::IdentityId;
use std::net::{IpAddr, SocketAddr};

/// The port of DNS (RFC 1035 §4.2).
pub(crate) const DNS_PORT: u16 = 53;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// The length of a UDP header in bytes.
pub(crate) const UDP_HEADER: usize = 8;
/// Hops of an answer.
const HOPS: u8 = 64;

/// The queries that the node answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Intercept {
    /// Those to the resolver's addresses.
    #[default]
    Nothing,
    /// Those to any address outside of the network, too.
    Queries,
}

/// The resolver of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolverConfig {
    /// The addresses at which the node answers.
    pub addresses: Vec<IpAddr>,
    /// The queries to other addresses that it answers.
    pub intercept: Intercept,
    /// The interface of the node's own to which queries by TCP go, added as a workload that nobody
    /// admits: only such connections reach it.
    pub streams: Option<WorkloadIndex>,
}

/// The two ends of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryEnds {
    /// The workload's end.
    pub asker: SocketAddr,
    /// The end that it asks, from which the answer comes.
    pub resolver: SocketAddr,
}

/// A workload of this node that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryAsker {
    /// The workload.
    pub workload: WorkloadIndex,
    /// The identity of the workload.
    pub identity: IdentityId,
}

/// A DNS query of a workload of this node, in a datagram.
#[derive(Debug, Clone, Copy)]
pub struct DatagramQuery<'a> {
    /// The workload.
    pub asker: QueryAsker,
    /// The ends.
    pub ends: QueryEnds,
    /// The message.
    pub message: &'a [u8],
}

impl QueryEnds {
    pub(crate) fn of(headers: &Headers) -> Self {
        Self {
            asker: SocketAddr::new(headers.source, headers.source_port),
            resolver: SocketAddr::new(headers.destination, headers.destination_port),
        }
    }

    /// Returns the packet with an answer; `None` if it is too long for one.
    pub(crate) fn answer_packet(&self, message: &[u8]) -> Option<Vec<u8>> {
        let length = u16::try_from(UDP_HEADER + message.len()).ok()?;
        let mut packet = match (self.resolver.ip(), self.asker.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = [0; 20];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&length.checked_add(20)?.to_be_bytes());
                // Not to be fragmented, so that no identification is needed (RFC 6864 §4.1).
                header[6] = 0x40;
                header[8..10].copy_from_slice(&[HOPS, UDP]);
                header[12..16].copy_from_slice(&from.octets());
                header[16..].copy_from_slice(&to.octets());
                checksum::set_ipv4(&mut header, 20);
                header.to_vec()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut header = [0; 40];
                header[0] = 0x60;
                header[4..6].copy_from_slice(&length.to_be_bytes());
                header[6..8].copy_from_slice(&[UDP, HOPS]);
                header[8..24].copy_from_slice(&from.octets());
                header[24..].copy_from_slice(&to.octets());
                header.to_vec()
            }
            _ => return None,
        };
        let datagram = packet.len();
        packet.reserve_exact(length.into());
        packet.extend(self.resolver.port().to_be_bytes());
        packet.extend(self.asker.port().to_be_bytes());
        packet.extend(length.to_be_bytes());
        packet.extend([0; 2]);
        packet.extend(message);
        let (from, to) = (self.resolver.ip(), self.asker.ip());
        let sum = checksum::Sum::default().add(&packet[datagram..]);
        let sum = match sum.add_pseudo(from, to, UDP, length.into()).finish() {
            // Zero says that there is no checksum (RFC 768).
            [0, 0] => [0xff; 2],
            sum => sum,
        };
        packet[datagram + 6..datagram + UDP_HEADER].copy_from_slice(&sum);
        Some(packet)
    }
}
