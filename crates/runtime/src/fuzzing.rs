//! Properties of certificates and invitations, whoever made them; see the crate `meshward-fuzzing`.

use crate::{
    join::Invitation,
    tls::{MemberCertificate, Members, PinnedCa, spiffe_id},
};
use meshward_control_proto::{COORDINATOR_NAME, MemberKind};
use meshward_types::token::{Fingerprint, JoinToken};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::{
    client::danger::ServerCertVerifier,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::ClientCertVerifier,
};
use std::sync::OnceLock;

meshward_fuzzing::targets! {
    certificates: certificates, samples;
    invitation: invitation, invitations;
}

/// A mesh, and certificates that its CA has signed.
struct Signed {
    ca: CertificateDer<'static>,
    members: Members,
    node: Vec<u8>,
    server: Vec<u8>,
}

fn signed() -> &'static Signed {
    static SIGNED: OnceLock<Signed> = OnceLock::new();
    SIGNED.get_or_init(|| make().expect("certificates can be made"))
}

fn make() -> anyhow::Result<Signed> {
    let (ca_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca = params.self_signed(&ca_key)?.der().clone();
    let issuer = Issuer::new(params, ca_key);
    let sign = |name: SanType, usage: ExtendedKeyUsagePurpose| -> anyhow::Result<Vec<u8>> {
        let mut params = CertificateParams::default();
        (params.subject_alt_names, params.extended_key_usages) = (vec![name], vec![usage]);
        Ok(params.signed_by(&key, &issuer)?.der().to_vec())
    };
    let id = spiffe_id("0123456789ab", MemberKind::Node, &"rack".parse()?);
    Ok(Signed {
        members: Members::of(ca.clone())?,
        node: sign(SanType::URI(id.try_into()?), ExtendedKeyUsagePurpose::ClientAuth)?,
        server: sign(
            SanType::DnsName(COORDINATOR_NAME.try_into()?),
            ExtendedKeyUsagePurpose::ServerAuth,
        )?,
        ca,
    })
}

/// Certificates of a client, then of a server: only those that the CA has signed for just that use
/// are accepted.
fn certificates(data: &[u8]) {
    let Signed { ca, members, node, server } = signed();
    let (shown, now) = (CertificateDer::from(data), UnixTime::now());
    if let Some(read) = MemberCertificate::read(data) {
        let age = read.renewal_in(now.as_secs() as i64);
        assert!(age.as_secs() >= 1);
        assert!(read.node.as_str().len() < 256);
    }
    if members.verify_client_cert(&shown, &[], now).is_ok() {
        assert_eq!(data, node, "the CA has not signed it as a member's");
    }
    let pinned = PinnedCa(Fingerprint::of(ca));
    let name = ServerName::try_from(COORDINATOR_NAME).expect("a name");
    if pinned.verify_server_cert(&shown, std::slice::from_ref(ca), &name, &[], now).is_ok() {
        assert_eq!(data, server, "the CA has not signed it as the coordinator's");
    }
    let chain = [CertificateDer::from(data)];
    assert!(
        data == ca.as_ref()
            || pinned
                .verify_server_cert(&CertificateDer::from(&server[..]), &chain, &name, &[], now)
                .is_err()
    );
}

fn samples() -> Vec<Vec<u8>> {
    let Signed { ca, members, node, server } = signed();
    let (shown, now) = (CertificateDer::from(&node[..]), UnixTime::now());
    members.verify_client_cert(&shown, &[], now).expect("the member's certificate is good");
    vec![ca.to_vec(), node.clone(), server.clone()]
}

/// An invitation, which an operator takes to a machine.
fn invitation(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Invitation>() {
        Ok(_) => assert!(text.trim_start().starts_with("mwj1_") && text.contains('@')),
        Err(said) => assert!(!said.is_empty() && said.len() < 300 + text.len()),
    }
}

fn invitations() -> Vec<Vec<u8>> {
    let token = JoinToken::new(Fingerprint([1; 32]), [2; 24]);
    ["mesh.example", "192.0.2.1:7443", "[fd42::1]:9", ""]
        .map(|host| format!("{token}@{host}").into_bytes())
        .to_vec()
}
