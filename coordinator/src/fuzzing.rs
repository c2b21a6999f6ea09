//! Fuzz targets of the coordinator: whatever it receives or finds on its disk; see the crate
//! `meshward-fuzzing`.

mod requests;

use crate::{
    ca::{Ca, SignedCertificate},
    store::{Sqlite, Store},
};
use meshward_control_proto::MemberKind;
use meshward_runtime::tls::Members;
use meshward_types::NodeName;
use rustls::{
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier,
};
use std::{fs, path::PathBuf, sync::OnceLock, time::Duration};

meshward_fuzzing::targets! {
    api: requests::api, requests::samples, |length| (24 << 20) + 4096 * length as u64;
    csr: csr, requests_for_certificates;
    store: store, stores, |length| (8 << 20) + 1024 * length as u64;
}

/// A folder of this process's own.
fn folder() -> PathBuf {
    meshward_fuzzing::scratch("coordinator")
}

fn ca() -> &'static Ca {
    static CA: OnceLock<Ca> = OnceLock::new();
    CA.get_or_init(|| Ca::open(&folder()).expect("a CA can be made"))
}

/// A request for a certificate: the certificate is for the member that the coordinator means, and
/// for nothing else, whatever the request says.
fn csr(data: &[u8]) {
    let (ca, now) = (ca(), UnixTime::now());
    let name: NodeName = "rack".parse().expect("a name");
    for kind in [MemberKind::Node, MemberKind::Relay] {
        let Ok(SignedCertificate { der: certificate, certificate: read }) =
            ca.sign_member(kind, &name, data, Duration::from_hours(1))
        else {
            return;
        };
        assert!(read.kind == kind && read.node == name && read.mesh == ca.mesh);
        assert!(certificate.len() < 2048, "only the key of a request is copied");
        let members = Members::of(ca.certificate.clone()).expect("a CA's certificate");
        let shown = CertificateDer::from(certificate);
        members.verify_client_cert(&shown, &[], now).expect("the signed certificate is accepted");
    }
}

fn requests_for_certificates() -> Vec<Vec<u8>> {
    use rcgen::{CertificateParams, IsCa, KeyPair, PKCS_ED25519};
    let key = KeyPair::generate().expect("a key");
    let other = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let mut greedy =
        CertificateParams::new(["coordinator.meshward.internal".to_owned()]).expect("a name");
    greedy.is_ca = IsCa::NoCa;
    let request = |params: &CertificateParams, key: &KeyPair| {
        params.serialize_request(key).expect("a request can be made").der().to_vec()
    };
    vec![
        request(&CertificateParams::default(), &key),
        request(&greedy, &key),
        request(&greedy, &other),
    ]
}

/// A damaged database, as a list of changed bytes: it is read as far as it is intact, or refused
/// with a sentence; nothing panics.
fn store(data: &[u8]) {
    let (whole, file) = (database(), folder().join("damaged.db"));
    let mut damaged = whole.clone();
    for hole in data.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([hole[0], hole[1]])) % damaged.len();
        damaged[at] = hole[2];
    }
    if let [cut] = data.chunks_exact(3).remainder() {
        damaged.truncate(damaged.len() * usize::from(*cut) / 255);
    }
    fs::write(&file, &damaged).expect("a file can be written");
    let loaded = Sqlite::open(&file).and_then(|mut store| store.load());
    for beside in
        ["damaged.db", "damaged.db-wal", "damaged.db-shm", "damaged.db-journal", "damaged.lock"]
    {
        let _ = fs::remove_file(folder().join(beside));
    }
    match loaded {
        Ok(contents) => assert!(contents.records.len() <= 64),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Returns a database with some records.
fn database() -> &'static Vec<u8> {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let file = folder().join("whole.db");
        let store = Sqlite::open(&file).expect("a store can be made");
        requests::filled(Box::new(store));
        fs::read(file).expect("it is there")
    })
}

fn stores() -> Vec<Vec<u8>> {
    vec![
        vec![],
        vec![0, 0, 7],
        vec![0, 18, 3, 16, 5, 1],
        vec![120],
        vec![0x30, 0x10, 0x7b, 0x20, 0, 0xff, 255],
    ]
}
