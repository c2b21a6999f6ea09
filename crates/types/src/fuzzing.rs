//! Properties that input from outside must satisfy; see the crate `meshward-fuzzing`.

mod samples;

use crate::{
    AcceptFrom, LabelKey, Labels, NetworkName, NodeName, PortSpec, PublicKey, Revision, Selector,
    WorkloadId, WorkloadName,
    measurement::{Repository, Sha256},
    stun,
    token::JoinToken,
};
use meshward_fuzzing::Bytes;
use std::{
    fmt::{Debug, Display},
    net::{Ipv6Addr, SocketAddr},
    str::FromStr,
};

meshward_fuzzing::targets! {
    stun: stun_messages, samples::stun;
    text: text, samples::text;
}

/// STUN: a request gets an answer that is hardly longer, and the answer has the address that was
/// seen. `data` is used as a message, then as that address.
fn stun_messages(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut transaction = stun::Transaction::default();
    transaction.copy_from_slice(&[bytes.take(12), &[0; 12]].concat()[..12]);
    for message in [data, bytes.0] {
        if let Some(asked) = stun::read_request(message) {
            let answer = stun::response(&asked, ([192, 0, 2, 1], 7).into());
            assert!(answer.len() <= 2 * message.len(), "nothing is gained by a forged sender");
            assert!(!stun::is_response(message));
        }
        if stun::read_response(message, &transaction).is_some() {
            assert!(stun::is_response(message), "it would be taken for WireGuard's");
        }
    }
    let mut address = [0; 16];
    address.copy_from_slice(&[bytes.take(16), &[0; 16]].concat()[..16]);
    let seen = SocketAddr::new(
        Ipv6Addr::from(address).to_canonical(),
        u16::from_be_bytes([bytes.byte(), bytes.byte()]),
    );
    let answer = stun::response(&transaction, seen);
    assert_eq!(stun::read_response(&answer, &transaction), Some(seen));
}

/// Identifiers: printing a parsed value and parsing it again gives the same value.
fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let labels = read::<Labels>(text).unwrap_or_default();
    // The selector that matches everything is printed for people.
    if text.parse().is_ok_and(|selector: Selector| !selector.is_empty()) {
        read::<Selector>(text).expect("it was read before").matches(&labels);
    }
    read::<LabelKey>(text);
    read::<PortSpec>(text);
    read::<AcceptFrom>(text);
    read::<PublicKey>(text);
    read::<NodeName>(text);
    read::<NetworkName>(text);
    read::<WorkloadName>(text);
    read::<WorkloadId>(text);
    read::<Revision>(text);
    read::<Sha256>(text);
    read::<JoinToken>(text);
    if let Ok(all) = AcceptFrom::parse_all(text) {
        AcceptFrom::check_count(&all).expect("they are as many as a workload may carry");
    }
    if let Ok(repository) = Repository::of_reference(text) {
        assert_eq!(Repository::of_reference(repository.as_str()).as_ref(), Ok(&repository));
        assert_eq!(format!("{}/{}", repository.registry(), repository.path()), repository.as_str());
    }
    if let Some(name) = WorkloadName::like(text) {
        assert_eq!(name.as_str().parse().as_ref(), Ok(&name));
    }
}

fn read<T: FromStr<Err: Debug + Display> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let printed = value.to_string();
            assert_eq!(
                printed.parse::<T>().expect("what was printed can be read"),
                value,
                "{printed}"
            );
            Some(value)
        }
        Err(error) => {
            let said = error.to_string();
            assert!(
                !said.is_empty() && said.len() <= 300 + 2 * text.len(),
                "an error is a sentence: {said}"
            );
            None
        }
    }
}
