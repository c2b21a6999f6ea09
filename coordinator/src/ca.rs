//! The mesh's certificate authority. Its key is created at the first start and never leaves the
//! data folder.

use anyhow::{Context, Result, bail};
use meshward_control_proto::{COORDINATOR_NAME, MemberKind, relay::server_name};
use meshward_runtime::tls::{MemberCertificate, SKEW, spiffe_id};
use meshward_types::{NodeName, token::Fingerprint};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    fs,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use time::OffsetDateTime;

const CA_YEARS: i64 = 20;
/// The lifetime of the coordinator's own certificate, and the time after which it is renewed.
const SERVER_DAYS: i64 = 30;
const SERVER_RENEWAL: Duration = Duration::from_hours(24);

/// The certificate authority.
pub struct Ca {
    /// The CA's certificate (DER).
    pub certificate: CertificateDer<'static>,
    /// The certificate in PEM.
    pub pem: String,
    /// The mesh's id: part of every SPIFFE id.
    pub mesh: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that was signed just now.
pub struct SignedCertificate {
    /// The certificate (DER).
    pub der: Vec<u8>,
    /// The fields of the certificate.
    pub certificate: MemberCertificate,
}

impl Ca {
    /// Opens the CA in `folder`, or creates it.
    ///
    /// # Errors
    /// Fails if one of its files is missing, or cannot be read or written.
    pub fn open(folder: &Path) -> Result<Self> {
        let (key_file, certificate_file) = (folder.join("ca.key"), folder.join("ca.pem"));
        // A first start that ended halfway has left a certificate with which nothing was signed.
        if !key_file.exists() && (!certificate_file.exists() || !folder.join("mesh.db").exists()) {
            Self::make(&key_file, &certificate_file)?;
        }
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| {
                format!("cannot read {}; put it back from a backup", path.display())
            })
        };
        let (key, pem) = (read(&key_file)?, read(&certificate_file)?);
        let key = KeyPair::from_pem(&key).with_context(|| {
            format!(
                "{} holds no key; the mesh rests on it: put it back from a backup",
                key_file.display()
            )
        })?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).with_context(|| {
            format!(
                "{} holds no certificate; put it back from a backup",
                certificate_file.display()
            )
        })?;
        let certificate =
            <CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(pem.as_bytes())
                .map_err(|error| anyhow::anyhow!("{}: {error}", certificate_file.display()))?;
        let mesh = Fingerprint::of(&certificate).to_string()[..12].to_owned();
        Ok(Self { certificate, pem, mesh, issuer })
    }

    fn make(key_file: &Path, certificate_file: &Path) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Meshward CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) =
            (now - SKEW, now + time::Duration::days(365 * CA_YEARS));
        let certificate = params.self_signed(&key)?;
        // The certificate is written first: with a key, the CA counts as complete.
        write_private(certificate_file, &certificate.pem(), 0o644)?;
        write_private(key_file, &key.serialize_pem(), 0o600)
    }

    /// The fingerprint that join tokens carry.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Signs a member's certificate. Only the public key of the request is used: the caller knows
    /// the member.
    ///
    /// # Errors
    /// Fails if the request is malformed or not signed by its own key.
    pub fn sign_member(
        &self,
        kind: MemberKind,
        node: &NodeName,
        csr: &[u8],
        lifetime: Duration,
    ) -> Result<SignedCertificate> {
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
                .context("the certificate request is malformed or its signature is wrong")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.subject_alt_names =
            vec![SanType::URI(spiffe_id(&self.mesh, kind, node).try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if kind == MemberKind::Relay {
            params.subject_alt_names.push(SanType::DnsName(server_name(node).try_into()?));
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - SKEW, now + lifetime);
        let der = params.signed_by(&request.public_key, &self.issuer)?.der().to_vec();
        let Some(certificate) = MemberCertificate::read(&der) else {
            bail!("a certificate was signed that cannot be read back");
        };
        Ok(SignedCertificate { der, certificate })
    }

    fn sign_server(&self, names: &[String]) -> Result<CertifiedKey> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Meshward coordinator");
        let fixed = [COORDINATOR_NAME, "localhost", "127.0.0.1", "::1"];
        for name in fixed.into_iter().chain(names.iter().map(String::as_str)) {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(
                    name.try_into().with_context(|| format!("`{name}` is no DNS name"))?,
                ),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) =
            (now - SKEW, now + time::Duration::days(SERVER_DAYS));
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
        Ok(CertifiedKey::new(chain, key))
    }
}

/// Writes a file atomically, with an access mode.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn write_private(path: &Path, text: &str, mode: u32) -> Result<()> {
    meshward_runtime::files::write(path, text.as_bytes(), mode)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The coordinator's own certificate, renewed each day.
pub struct ServerCertificate {
    ca: Arc<Ca>,
    names: Vec<String>,
    current: Mutex<CurrentCertificate>,
}

struct CurrentCertificate {
    made: Instant,
    key: Arc<CertifiedKey>,
}

impl ServerCertificate {
    /// Signs a first certificate for these names.
    ///
    /// # Errors
    /// Fails if a name is neither a DNS name nor an address.
    pub fn new(ca: Arc<Ca>, names: Vec<String>) -> Result<Self> {
        let key = Arc::new(ca.sign_server(&names)?);
        let current = CurrentCertificate { made: Instant::now(), key };
        Ok(Self { ca, names, current: Mutex::new(current) })
    }
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock();
        if current.made.elapsed() > SERVER_RENEWAL
            && let Ok(next) = self.ca.sign_server(&self.names)
        {
            *current = CurrentCertificate { made: Instant::now(), key: Arc::new(next) };
        }
        Some(current.key.clone())
    }
}
