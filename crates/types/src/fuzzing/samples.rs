//! Seeds of fuzz targets.

use super::*;
use crate::token::Fingerprint;

pub(super) fn name<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().expect("a sample is well-formed")
}

pub(super) fn stun() -> Vec<Vec<u8>> {
    let transaction = [5; 12];
    let answer = |seen: &str| stun::response(&transaction, name(seen));
    let with = |message: &[u8]| [&transaction[..], message].concat();
    vec![
        stun::request(&transaction).to_vec(),
        with(&stun::request(&transaction)),
        with(&answer("198.51.100.7:4000")),
        with(&answer("[2001:db8::7]:4000")),
    ]
}

pub(super) fn text() -> Vec<Vec<u8>> {
    let token = JoinToken::new(Fingerprint([3; 32]), [4; 24]).to_string();
    let all = [
        "app=web,env in (prod, test),!debug,tier!=x",
        "app=web,env=prod",
        "tcp/80-90",
        "udp/*",
        "icmp",
        "app=a,port=tcp/80; app=b, port=udp/53",
        "registry.example:5000/shop/web:1.2@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "r17",
        "Web_1.of Shop",
        &PublicKey([8; 32]).to_string(),
        &token,
    ];
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}
