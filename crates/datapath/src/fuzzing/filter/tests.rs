use super::{
    filter,
    packet::{Direction, Packet, address},
};
use crate::{
    headers::{Fragment, Headers, Icmp, SYN},
    icmp_error::Quoted,
};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn nothing_passes_that_the_model_denies(data in prop::collection::vec(any::<u8>(), 0..1500)) {
        filter(&data);
    }
}

#[test]
fn packets_are_read_as_they_were_meant() {
    for (is_v6, protocol) in [(false, 6), (true, 6), (false, 17), (true, 58)] {
        for fragment in [Fragment::Whole, Fragment::First(1), Fragment::Later(1)] {
            let direction = Direction { from: 0, to: 1, source_port: 80, destination_port: 5000 };
            let packet = Packet {
                direction,
                is_v6,
                protocol,
                flags: SYN,
                sequence: 7,
                acknowledgement: 8,
                fragment,
                icmp: 128,
                quoted: None,
            };
            let headers = Headers::parse(&packet.bytes()).unwrap();
            assert_eq!((headers.fragment, headers.ip_protocol), (fragment, protocol));
            assert_eq!(headers.source, address(is_v6, 0));
            let error = Packet {
                direction: direction.reversed(),
                protocol: if is_v6 { 58 } else { 1 },
                fragment: Fragment::Whole,
                icmp: 3,
                quoted: Some(Box::new(packet.clone())),
                ..packet
            };
            let bytes = error.bytes();
            let headers = Headers::parse(&bytes).unwrap();
            assert_eq!(headers.icmp, Icmp::Error);
            let quoted = Quoted::read(&bytes, &headers);
            assert_eq!(quoted.is_some(), !matches!(fragment, Fragment::Later(_)));
        }
    }
}
