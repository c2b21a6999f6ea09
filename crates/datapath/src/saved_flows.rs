//! The file format of saved flows, which outlive the daemon: it writes them at intervals and when
//! it ends, and reads them when it starts.
//!
//! A header, records of [`RECORD`] bytes for flows, and since version 2 records of [`SERVICE`] bytes
//! for those of them that go through services. The header: `MWFL`, the version, a flag for a file
//! that has every flow at the end of the daemon, two zero bytes, the time of writing in seconds
//! since 1970, and the number of flows; all numbers are big-endian. A record of a service: the
//! number of its flow among those of the file, the service's address (IPv4 in the last four bytes)
//! and port, the client's own port, a byte that is 1 if the client is the flow's high end, and three
//! zero bytes. Verdicts are not saved: the current rules check every flow at its next packet.

use crate::{
    flow::{
        key::{FlowEnd, FlowKey},
        state::SavedFlow,
    },
    services::mapping::{Mapping, Socket},
    tcp::State,
};
use std::{net::IpAddr, time::Duration};

/// Maximum number of flows that are kept: 12 MiB of them.
pub(crate) const MAX_SAVED: usize = 1 << 18;
/// The maximum remaining lifetime of a flow, in seconds: the longest timeout.
const MAX_LEFT: u32 = 7 * 24 * 3600;

const MAGIC: [u8; 4] = *b"MWFL";
const VERSION: u8 = 2;
/// The version that has no services.
const VERSION_WITHOUT_SERVICES: u8 = 1;
const HEADER: usize = 20;
const RECORD: usize = 48;
const SERVICE: usize = 28;
const STATES: [State; 5] =
    [State::Opening, State::Answered, State::Established, State::Closing, State::Reset];

/// The reason why bytes are not saved flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SavedFlowsError {
    /// The bytes do not begin with the magic number of saved flows.
    #[error("these are no flows that were kept")]
    NoFlows,
    /// A newer version of the format.
    #[error(
        "written by a newer release: format {0}, this one reads up to {VERSION}; upgrade this \
        program and put the file back under its name, or go on without it"
    )]
    Version(u8),
    /// The length does not fit the number of flows, or that number is above `MAX_SAVED`.
    #[error(
        "the flows that were kept are damaged: the length does not fit the number of flows, or \
        that is above {MAX_SAVED}"
    )]
    Damaged,
}

/// The flows of a file.
#[derive(Debug)]
pub(crate) struct SavedFlows {
    /// Set if these are all flows that existed when the daemon ended.
    pub complete: bool,
    /// The time at which they were written, since the Unix epoch.
    pub written: Duration,
    pub flows: Vec<SavedFlow>,
}

/// Writes flows, the first [`MAX_SAVED`] at the most. `is_last`: nothing passes any more.
pub(crate) fn encode(flows: &[SavedFlow], unix: Duration, is_last: bool) -> Vec<u8> {
    let kept = &flows[..flows.len().min(MAX_SAVED)];
    let complete = is_last && kept.len() == flows.len();
    let mut bytes = Vec::with_capacity(HEADER + kept.len() * RECORD);
    bytes.extend(MAGIC);
    bytes.extend([VERSION, u8::from(complete), 0, 0]);
    bytes.extend(unix.as_secs().to_be_bytes());
    bytes.extend((kept.len() as u32).to_be_bytes());
    for flow in kept {
        bytes.extend(flow.key.to_words().iter().flat_map(|word| word.to_be_bytes()));
        bytes.extend([flow.marks, flow.state as u8, flow.closed, 0]);
        bytes.extend(flow.left.to_be_bytes());
    }
    for (number, flow) in kept.iter().enumerate() {
        if let Some(mapping) = &flow.mapping {
            write_service(&mut bytes, number as u32, &flow.key, mapping);
        }
    }
    bytes
}

fn write_service(bytes: &mut Vec<u8>, number: u32, key: &FlowKey, mapping: &Mapping) {
    let low = key.tuple_from(FlowEnd::Low);
    let client_is_high =
        (low.source, low.source_port) != (mapping.client.address, mapping.source_port);
    bytes.extend(number.to_be_bytes());
    match mapping.service.address {
        IpAddr::V4(address) => {
            bytes.extend([0; 12]);
            bytes.extend(address.octets());
        }
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
    bytes.extend(mapping.service.port.to_be_bytes());
    bytes.extend(mapping.client.port.to_be_bytes());
    bytes.extend([u8::from(client_is_high), 0, 0, 0]);
}

/// Reads what [`encode`] wrote; records that hold something impossible are left out.
pub(crate) fn decode(bytes: &[u8]) -> Result<SavedFlows, SavedFlowsError> {
    let (header, records) = bytes.split_first_chunk::<HEADER>().ok_or(SavedFlowsError::NoFlows)?;
    if header[..4] != MAGIC {
        return Err(SavedFlowsError::NoFlows);
    }
    let version = header[4];
    if !(VERSION_WITHOUT_SERVICES..=VERSION).contains(&version) {
        return Err(SavedFlowsError::Version(version));
    }
    let (written, count) =
        (word(header, 8), u32::from_be_bytes([header[16], header[17], header[18], header[19]]));
    let length = count as usize * RECORD;
    if count as usize > MAX_SAVED || records.len() < length {
        return Err(SavedFlowsError::Damaged);
    }
    let (records, services) = records.split_at(length);
    let most = if version == VERSION_WITHOUT_SERVICES { 0 } else { length / RECORD * SERVICE };
    if services.len() > most || !services.len().is_multiple_of(SERVICE) {
        return Err(SavedFlowsError::Damaged);
    }
    let mut flows: Vec<Option<SavedFlow>> = records.chunks_exact(RECORD).map(read).collect();
    for service in services.chunks_exact(SERVICE) {
        read_service(service, &mut flows);
    }
    let flows = flows.into_iter().flatten().collect();
    Ok(SavedFlows { complete: header[5] == 1, written: Duration::from_secs(written), flows })
}

/// Reads through which service a flow goes, and adds that to the flow.
fn read_service(record: &[u8], flows: &mut [Option<SavedFlow>]) {
    let half = |at: usize| u16::from_be_bytes([record[at], record[at + 1]]);
    let number = u32::from_be_bytes([record[0], record[1], record[2], record[3]]);
    let Some(Some(flow)) = flows.get_mut(number as usize) else { return };
    let client_end = if record[24] == 1 { FlowEnd::High } else { FlowEnd::Low };
    let outer = flow.key.tuple_from(client_end);
    let service = match outer.source {
        IpAddr::V4(_) => <[u8; 4]>::try_from(&record[16..20]).map(IpAddr::from),
        IpAddr::V6(_) => <[u8; 16]>::try_from(&record[4..20]).map(IpAddr::from),
    };
    let (Ok(service), Some(ip_protocol)) = (service, flow.key.translated_protocol()) else {
        return;
    };
    flow.mapping = Some(Mapping {
        client: Socket { address: outer.source, port: half(22) },
        service: Socket { address: service, port: half(20) },
        instance: Socket { address: outer.destination, port: outer.destination_port },
        source_port: outer.source_port,
        ip_protocol,
    });
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn read(record: &[u8]) -> Option<SavedFlow> {
    let key = FlowKey::from_words([0, 8, 16, 24, 32].map(|at| word(record, at)))?;
    let state = *STATES.get(usize::from(record[41]))?;
    let left = u32::from_be_bytes([record[44], record[45], record[46], record[47]]).min(MAX_LEFT);
    Some(SavedFlow { key, marks: record[40], state, closed: record[42], left, mapping: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_of_another_version_are_refused() {
        let written = encode(&[], Duration::from_secs(9), true);
        assert!(decode(&written).is_ok_and(|saved| saved.complete && saved.written.as_secs() == 9));
        assert_eq!(decode(&written[..19]).unwrap_err(), SavedFlowsError::NoFlows);
        assert_eq!(decode(&[&written[..], &[0]].concat()).unwrap_err(), SavedFlowsError::Damaged);
        let mut other = written.clone();
        other[4] = VERSION + 1;
        assert_eq!(decode(&other).unwrap_err(), SavedFlowsError::Version(VERSION + 1));
        let mut many = written;
        many[16..20].fill(255);
        assert_eq!(decode(&many).unwrap_err(), SavedFlowsError::Damaged);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(
            mut bytes in prop::collection::vec(any::<u8>(), 0..400),
            version in 1..=VERSION,
            count in 0..6u8,
            services in 0..4u8,
        ) {
            if let Some(header) = bytes.first_chunk_mut::<HEADER>() {
                header[..8].copy_from_slice(&[b'M', b'W', b'F', b'L', version, 0, 0, 0]);
                header[16..].copy_from_slice(&[0, 0, 0, count]);
                let services = if version == VERSION { usize::from(services) } else { 0 };
                let records = HEADER + usize::from(count) * RECORD;
                for number in 0..services {
                    // They belong to flows that are there.
                    let record = bytes.get_mut(records + number * SERVICE..);
                    if let Some(flow) = record.and_then(<[u8]>::first_chunk_mut::<4>) {
                        *flow = [0, 0, 0, number as u8 % count.max(1)];
                    }
                }
                bytes.truncate(records + services * SERVICE);
            }
            if let Ok(saved) = decode(&bytes) {
                let again = decode(&encode(&saved.flows, saved.written, false)).unwrap();
                prop_assert_eq!(again.flows, saved.flows);
            }
        }
    }
}
