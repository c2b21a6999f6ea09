//! STUN (RFC 8489): a Binding request asks for the address that the server sees, and
//! XOR-MAPPED-ADDRESS answers it.
//!
//! Requests are as long as the longest answer, so that a server never sends more bytes than it got
//! and cannot be used to amplify traffic to a forged address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The default port of STUN (RFC 8489 §14.1).
pub const PORT: u16 = 3478;
/// The size of a message without attributes, in bytes (RFC 8489 §5).
pub const HEADER: usize = 20;
/// The size of a request, and of the longest answer, which has an IPv6 address, in bytes.
pub const REQUEST_LENGTH: usize = HEADER + 24;

const COOKIE: u32 = 0x2112_a442;
const REQUEST: u16 = 0x0001;
const SUCCESS: u16 = 0x0101;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// The SOFTWARE attribute (RFC 8489 §14.14), which pads requests: servers may ignore it.
const SOFTWARE: u16 = 0x8022;
const SOFTWARE_NAME: &[u8; 20] = b"meshward            ";

/// A transaction id: it matches an answer to its request.
pub type Transaction = [u8; 12];

/// Returns a Binding request.
pub fn request(transaction: &Transaction) -> [u8; REQUEST_LENGTH] {
    let mut message = [0; REQUEST_LENGTH];
    message[..HEADER].copy_from_slice(&header(
        REQUEST,
        (REQUEST_LENGTH - HEADER) as u16,
        transaction,
    ));
    message[HEADER..][..2].copy_from_slice(&SOFTWARE.to_be_bytes());
    message[HEADER + 2..][..2].copy_from_slice(&(SOFTWARE_NAME.len() as u16).to_be_bytes());
    message[HEADER + 4..].copy_from_slice(SOFTWARE_NAME);
    message
}

fn header(kind: u16, length: u16, transaction: &Transaction) -> [u8; HEADER] {
    let mut message = [0; HEADER];
    message[..2].copy_from_slice(&kind.to_be_bytes());
    message[2..4].copy_from_slice(&length.to_be_bytes());
    message[4..8].copy_from_slice(&COOKIE.to_be_bytes());
    message[8..].copy_from_slice(transaction);
    message
}

/// Returns the transaction id of a Binding request; `None` for any other message.
pub fn read_request(message: &[u8]) -> Option<Transaction> {
    read(message, REQUEST).map(|(transaction, _)| transaction)
}

/// Returns `true` if a datagram may be an answer: it has STUN's magic cookie, which no WireGuard
/// message has at that offset.
pub fn is_response(message: &[u8]) -> bool {
    read(message, SUCCESS).is_some()
}

fn read(message: &[u8], kind: u16) -> Option<(Transaction, &[u8])> {
    let (head, attributes) = message.split_first_chunk::<HEADER>()?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let fits = head[..2] == kind.to_be_bytes()
        && head[4..8] == COOKIE.to_be_bytes()
        && length == attributes.len();
    let mut transaction = [0; 12];
    transaction.copy_from_slice(&head[8..]);
    fits.then_some((transaction, attributes))
}

/// Returns the answer to a request from `from`.
pub fn response(transaction: &Transaction, from: SocketAddr) -> Vec<u8> {
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    let (family, address) = match from.ip() {
        IpAddr::V4(address) => (1, address.octets().to_vec()),
        IpAddr::V6(address) => (2, address.octets().to_vec()),
    };
    let mask = mask(transaction);
    let mut value = vec![0, family];
    value.extend((from.port() ^ (COOKIE >> 16) as u16).to_be_bytes());
    value.extend(address.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
    let mut message = header(SUCCESS, (4 + value.len()) as u16, transaction).to_vec();
    message.extend(XOR_MAPPED_ADDRESS.to_be_bytes());
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
    message
}

/// Returns the mask of addresses (RFC 8489 §14.2): the magic cookie, then the transaction id.
fn mask(transaction: &Transaction) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(transaction);
    mask
}

/// Returns the address in an answer to this request; `None` for any other message.
pub fn read_response(message: &[u8], transaction: &Transaction) -> Option<SocketAddr> {
    let (answered, mut attributes) = read(message, SUCCESS)?;
    if answered != *transaction {
        return None;
    }
    while let Some((head, rest)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = rest.get(..length)?;
        if u16::from_be_bytes([head[0], head[1]]) == XOR_MAPPED_ADDRESS {
            return address(value, transaction);
        }
        // Attributes are padded to a multiple of four bytes.
        attributes = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn address(value: &[u8], transaction: &Transaction) -> Option<SocketAddr> {
    let (head, masked) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([head[2], head[3]]) ^ (COOKIE >> 16) as u16;
    let mask = mask(transaction);
    let bytes: Vec<u8> = masked.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
    let ip = match head[1] {
        1 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        2 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRANSACTION: Transaction = *b"meshward-tst";

    #[test]
    fn an_answer_tells_who_asked() {
        for from in ["192.0.2.7:51820", "[2001:db8::7]:3"] {
            let from: SocketAddr = from.parse().unwrap();
            assert_eq!(read_request(&request(&TRANSACTION)), Some(TRANSACTION));
            let answer = response(&TRANSACTION, from);
            assert!(answer.len() <= request(&TRANSACTION).len(), "nothing is amplified");
            assert!(is_response(&answer) && read_request(&answer).is_none());
            assert_eq!(read_response(&answer, &TRANSACTION), Some(from));
            assert_eq!(read_response(&answer, b"another-one!"), None);
        }
    }

    #[test]
    fn the_rfcs_own_example_is_read() {
        // RFC 5769 §2.2, with attributes before and after the address.
        let message: Vec<u8> = [
            "0101003c2112a442b7e7a701bc34d686fa87dfae",
            "8022000b7465737420766563746f7220",
            "002000080001a147e112a643",
            "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7",
            "80280004c07d4c96",
        ]
        .concat()
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
        let transaction = message[8..20].try_into().unwrap();
        assert_eq!(read_response(&message, &transaction), Some("192.0.2.1:32853".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_not(
            message in prop::collection::vec(any::<u8>(), 0..80),
            cut in 0usize..44,
        ) {
            let _ = read_response(&message, &TRANSACTION);
            let whole = response(&TRANSACTION, "192.0.2.1:1".parse().unwrap());
            prop_assert_eq!(read_response(&whole[..cut.min(whole.len() - 1)], &TRANSACTION), None);
            let mut odd = whole;
            for (target, byte) in odd[20..].iter_mut().zip(&message) {
                *target = *byte;
            }
            let _ = read_response(&odd, &TRANSACTION);
        }
    }
}
