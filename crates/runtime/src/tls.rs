//! Certificates of a mesh's members and its coordinator.
//!
//! The mesh's own CA is the only root. The coordinator's certificate carries
//! [`COORDINATOR_NAME`](meshward_control_proto::COORDINATOR_NAME), which clients verify whatever
//! address they dial; a member's carries its SPIFFE id. Neither can impersonate the other, since
//! names and extended key usages differ.

use meshward_control_proto::{CLOCK_TOLERANCE, MemberKind};
use meshward_types::{NodeName, token::Fingerprint};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, ring::default_provider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

/// The time after its expiry for which a certificate may still be renewed, and used for nothing
/// else.
pub const RENEWAL_GRACE: Duration = Duration::from_hours(2160);

/// The time by which certificates are valid before they are signed, since clocks differ.
pub const SKEW: Duration = Duration::from_mins(10);

/// Describes the difference between the clocks of a node and of the coordinator (seconds since the
/// epoch), if it is more than is tolerated.
pub fn clocks_apart(node: i64, coordinator: i64) -> Option<String> {
    let apart = node.saturating_sub(coordinator);
    (apart.unsigned_abs() > CLOCK_TOLERANCE.as_secs()).then(|| {
        let direction = if apart > 0 { "ahead of" } else { "behind" };
        format!(
            "the node's clock ({}) is {} s {direction} the coordinator's ({})",
            date(node),
            apart.unsigned_abs(),
            date(coordinator)
        )
    })
}

/// Formats seconds since the epoch as RFC 3339.
pub fn date(seconds: i64) -> String {
    let date = time::OffsetDateTime::from_unix_timestamp(seconds).ok();
    let text =
        date.and_then(|date| date.format(&time::format_description::well_known::Rfc3339).ok());
    text.unwrap_or_else(|| format!("{seconds} s after 1970"))
}

/// Returns this machine's time, in seconds since the epoch.
pub fn clock() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

/// Adds both clocks to the error of a certificate that is refused for its validity period.
fn explain_time(error: Error, certificate: &CertificateDer<'_>, now: UnixTime) -> Error {
    let Error::InvalidCertificate(reason) = &error else { return error };
    let (early, late) = (
        matches!(
            reason,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }
        ),
        matches!(reason, CertificateError::Expired | CertificateError::ExpiredContext { .. }),
    );
    let read = X509Certificate::from_der(certificate).ok();
    let Some((_, read)) = read.filter(|_| early || late) else { return error };
    let own = date(now.as_secs() as i64);
    let validity = read.validity();
    let (begins, ends) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    Error::General(if early {
        format!(
            "this machine's clock says {own}, and the coordinator's certificate is good from {} \
            on: this machine's clock is behind, or the coordinator's is ahead; set it and try \
            again",
            date(begins)
        )
    } else {
        format!(
            "this machine's clock says {own}, and the coordinator's certificate ended at {}: this \
            machine's clock is ahead, or the coordinator's is behind; set it and try again",
            date(ends)
        )
    })
}

/// The algorithms of ring by which signatures are verified.
static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> =
    LazyLock::new(|| default_provider().signature_verification_algorithms);

/// The methods of a verifier that concern signatures in the handshake: those of TLS 1.3 alone, by
/// the algorithms of ring.
macro_rules! tls13_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.3 only".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &ALGORITHMS)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            ALGORITHMS.supported_schemes()
        }
    };
}

/// A verifier that accepts servers with a certificate of a mesh's CA, and reports both clocks if
/// one is refused for its validity period.
#[derive(Debug)]
pub struct Servers(Arc<WebPkiServerVerifier>);

impl Servers {
    /// Creates the verifier for the mesh of this CA.
    ///
    /// # Errors
    /// Fails if it is not a CA certificate.
    pub fn of(ca: CertificateDer<'static>) -> Result<Self, Error> {
        let provider = Arc::new(default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(roots(ca)?, provider).build();
        inner.map(Self).map_err(|error| Error::General(error.to_string()))
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.map_err(|error| explain_time(error, end_entity, now))
    }

    tls13_signatures!();
}

/// Returns root certificates with only the mesh's CA.
///
/// # Errors
/// Fails if it is not a CA certificate.
pub fn roots(ca: CertificateDer<'static>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    Ok(Arc::new(roots))
}

/// The content of a member's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberCertificate {
    /// The mesh's id.
    pub mesh: String,
    /// The kind of member.
    pub kind: MemberKind,
    /// The member's name.
    pub node: NodeName,
    /// SHA-256 of the public key (`SubjectPublicKeyInfo`).
    pub key: Fingerprint,
    /// The start of its validity, in seconds since the epoch.
    pub not_before: i64,
    /// The end of its validity, in seconds since the epoch.
    pub not_after: i64,
}

/// Returns the SPIFFE id of a member.
pub fn spiffe_id(mesh: &str, kind: MemberKind, name: &NodeName) -> String {
    format!("spiffe://{mesh}.meshward/{kind}/{name}")
}

impl MemberCertificate {
    /// Returns the time after which a certificate that has just arrived is renewed: two thirds of
    /// its lifetime, whatever this machine's clock says.
    pub fn renewal_after(&self) -> Duration {
        let life = (self.not_after - self.not_before - SKEW.as_secs() as i64).max(3) as u64;
        Duration::from_secs(life * 2 / 3)
    }

    /// Returns the time from `now` (seconds since the epoch) until it should be renewed, at two
    /// thirds of its lifetime.
    pub fn renewal_in(&self, now: i64) -> Duration {
        let life = (self.not_after - self.not_before - SKEW.as_secs() as i64).max(3);
        Duration::from_secs((self.not_after - life / 3 - now).max(1) as u64)
    }

    /// Reads a certificate; `None` if it is not a member's.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let uri = names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
            _ => None,
        })?;
        let (mesh, path) = uri.split_once(".meshward/")?;
        let (kind, node) = match path.split_once('/')? {
            ("node", name) => (MemberKind::Node, name),
            ("relay", name) => (MemberKind::Relay, name),
            _ => return None,
        };
        Some(Self {
            mesh: mesh.to_owned(),
            kind,
            node: node.parse().ok()?,
            key: Fingerprint::of(certificate.public_key().raw),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }
}

/// A verifier that accepts a server whose chain has the CA with a known fingerprint: the way in
/// which a machine that has only a token authenticates its mesh.
#[derive(Debug)]
pub struct PinnedCa(pub Fingerprint);

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().find(|ca| Fingerprint::of(ca) == self.0);
        // A separate error, so that the user learns that it is another coordinator.
        let ca = pinned.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        Servers::of(ca.clone().into_owned())?.verify_server_cert(
            end_entity,
            &[],
            server_name,
            ocsp_response,
            now,
        )
    }

    tls13_signatures!();
}

/// A verifier that accepts clients with a member's certificate of this mesh, and clients without
/// one, which may only join.
///
/// An expired certificate is accepted for [`RENEWAL_GRACE`]; its session gets nothing but a
/// renewal. One that is not valid yet is accepted to be told so, with both clocks.
#[derive(Debug)]
pub struct Members(Arc<dyn ClientCertVerifier>);

impl Members {
    /// Creates the verifier for the mesh of this CA.
    ///
    /// # Errors
    /// Fails if it is not a CA certificate.
    pub fn of(ca: CertificateDer<'static>) -> Result<Self, Error> {
        let inner = WebPkiClientVerifier::builder(roots(ca)?)
            .allow_unauthenticated()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self(inner))
    }
}

impl ClientCertVerifier for Members {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let expired = || Error::InvalidCertificate(CertificateError::Expired);
        let certificate = MemberCertificate::read(end_entity)
            .ok_or(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))?;
        let end = u64::try_from(certificate.not_after).map_err(|_| expired())?;
        if now.as_secs() > end + RENEWAL_GRACE.as_secs() {
            return Err(expired());
        }
        let begin = u64::try_from(certificate.not_before).unwrap_or(0).min(end);
        let verified_at =
            UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().clamp(begin, end)));
        self.0.verify_client_cert(end_entity, intermediates, verified_at)
    }

    tls13_signatures!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life() {
        let signed = 1_000_000;
        let certificate = MemberCertificate {
            mesh: "m".into(),
            kind: MemberKind::Node,
            node: "n".parse().unwrap(),
            key: Fingerprint([0; 32]),
            not_before: signed - SKEW.as_secs() as i64,
            not_after: signed + 90,
        };
        assert_eq!(certificate.renewal_in(signed).as_secs(), 60);
        assert_eq!(certificate.renewal_in(signed + 50).as_secs(), 10);
        assert_eq!(
            certificate.renewal_in(signed + 80).as_secs(),
            1,
            "late, but never without a pause"
        );
    }
}
