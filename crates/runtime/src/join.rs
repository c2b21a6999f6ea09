//! Joining a mesh: the machine makes its key and gets a certificate.

use crate::{
    Mistake, csr,
    dial::Dial,
    frames,
    member::{Credentials, MemberFolder, Membership},
    tls::clock,
};
use anyhow::{Context, Result};
use meshward_api_types::with_port;
use meshward_control_proto::{JoinReply, JoinRequest, MAX_JOIN_FRAME};
use meshward_types::{
    DEFAULT_PORT, Labels, NodeName,
    token::{Fingerprint, JoinToken},
};
use rustls::pki_types::CertificateDer;
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// An invitation: `TOKEN@HOST[:PORT]`.
#[derive(Debug, Clone)]
pub struct Invitation {
    token: JoinToken,
    coordinator: String,
}

impl std::str::FromStr for Invitation {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (token, host) = text.rsplit_once('@').ok_or(
            "write TOKEN@HOST, with the token of `meshctl token create` and the coordinator's \
            address",
        )?;
        let token = token.parse::<JoinToken>().map_err(|error| error.to_string())?;
        if host.is_empty() {
            return Err("the coordinator's address is missing after the @".into());
        }
        Ok(Self { token, coordinator: with_port(host, DEFAULT_PORT) })
    }
}

/// The source of an invitation. It is a secret, and every process of the machine sees what stands
/// on a command line.
#[derive(Debug, Clone, clap::Args)]
pub struct InvitationSource {
    /// The token, an @, and the coordinator's host name or address, with :PORT if it is not 7443.
    /// Better not on a shared machine's command line: else from --token-file, the variables
    /// `MESHWARD_JOIN_TOKEN` or `MESHWARD_JOIN_TOKEN_FILE`, or the systemd credential
    /// `meshward.join-token`
    #[arg(value_name = "TOKEN@HOST", conflicts_with = "token_file")]
    invitation: Option<Invitation>,
    /// A file with TOKEN@HOST, or with the token alone beside --coordinator; - is standard input
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The coordinator's host name or address, with :PORT if it is not 7443, where it does not
    /// stand behind the token
    #[arg(long, value_name = "HOST")]
    coordinator: Option<String>,
}

/// The longest text that is read as an invitation, in bytes.
const MAX_INVITATION: u64 = 4096;
/// The name of the token among systemd's credentials (systemd.exec(5), `LoadCredential=`).
const CREDENTIAL: &str = "meshward.join-token";

impl InvitationSource {
    /// Reads the invitation from its source.
    ///
    /// # Errors
    /// [`Mistake`] if there is none, or the text is not an invitation.
    pub fn read(&self) -> Result<Invitation, Mistake> {
        if let Some(invitation) = &self.invitation {
            return Ok(invitation.clone());
        }
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let credential = || {
            let file = PathBuf::from(variable("CREDENTIALS_DIRECTORY")?).join(CREDENTIAL);
            file.exists().then_some(file)
        };
        let (text, source) = if let Some(file) = &self.token_file {
            (read_text(file)?, file.display().to_string())
        } else if let Some(text) = variable("MESHWARD_JOIN_TOKEN") {
            (text.to_string_lossy().into_owned(), "MESHWARD_JOIN_TOKEN".into())
        } else if let Some(file) =
            variable("MESHWARD_JOIN_TOKEN_FILE").map(PathBuf::from).or_else(credential)
        {
            (read_text(&file)?, file.display().to_string())
        } else {
            return Err(Mistake(
                "there is no join token: give TOKEN@HOST, --token-file FILE (or - for standard \
                input), MESHWARD_JOIN_TOKEN, MESHWARD_JOIN_TOKEN_FILE, or the systemd credential \
                meshward.join-token"
                    .into(),
            ));
        };
        self.complete(text.trim()).map_err(|text| Mistake(format!("{source}: {text}")))
    }

    fn complete(&self, text: &str) -> Result<Invitation, String> {
        let token = text.rsplit_once('@').map_or(text, |(token, _)| token);
        match &self.coordinator {
            Some(host) => format!("{token}@{host}").parse(),
            None if !text.contains('@') => {
                Err("it holds a token alone; say where the coordinator is with --coordinator HOST"
                    .into())
            }
            None => text.parse(),
        }
    }
}

fn read_text(file: &Path) -> Result<String, Mistake> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(MAX_INVITATION).read_to_string(&mut text)
    } else {
        File::open(file).and_then(|file| file.take(MAX_INVITATION).read_to_string(&mut text))
    };
    read.map_err(|error| {
        Mistake(format!("cannot read the join token from {}: {error}", file.display()))
    })?;
    Ok(text)
}

/// Joins the mesh.
///
/// # Errors
/// [`Mistake`] with the coordinator's reason if it refuses; then only the machine's own key is
/// kept.
pub async fn join(
    folder: &MemberFolder,
    invitation: &Invitation,
    name: NodeName,
    labels: Labels,
    forget_after: Option<u64>,
) -> Result<Membership> {
    if let Some(member) = folder.membership_or_aside()? {
        return Err(Mistake(format!(
            "this machine is {} `{}` of the mesh at {} already; to join another, leave that one \
            first (`meshward-node leave`) or use another --data-dir",
            folder.kind(),
            member.name,
            member.coordinator
        ))
        .into());
    }
    let key = folder.key_to_join()?;
    let Invitation { token, coordinator } = invitation;
    let reached = Dial::to_join(token.ca)?.dial(coordinator).await.map_err(explain)?;
    let connection = &reached.connection;
    let ca = pinned(connection, token.ca)?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let request = JoinRequest {
        secret: token.secret(),
        name: name.clone(),
        kind: folder.kind(),
        labels,
        csr: csr::request(&key)?,
        clock: clock(),
        forget_after,
    };
    frames::send(&mut send, &request).await?;
    let reply = frames::receive(&mut receive, MAX_JOIN_FRAME).await?;
    connection.close(0u32.into(), b"joined");
    match reply {
        JoinReply::Refused(reason) => {
            Err(Mistake(format!("the coordinator refused: {reason}")).into())
        }
        JoinReply::Accepted { certificate, mesh, site } => {
            let membership = Membership { name, coordinator: coordinator.clone(), mesh, site };
            folder.keep_membership(&membership, &Credentials { ca, certificate, key })?;
            Ok(membership)
        }
    }
}

/// Returns the CA's certificate from the chain that the coordinator showed.
fn pinned(connection: &quinn::Connection, ca: Fingerprint) -> Result<Vec<u8>> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer>>().ok())
        .context("the coordinator showed no certificate")?;
    let found = chain.iter().find(|certificate| Fingerprint::of(certificate) == ca);
    Ok(found.context("the coordinator showed another CA")?.to_vec())
}

/// Distinguishes a coordinator with another CA from one that cannot be reached.
fn explain(error: anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    if text.contains("UnknownIssuer") {
        return Mistake(
            "the coordinator at this address has another CA than the join token says: it is not \
            the mesh that the token is for, or somebody stands in between"
                .into(),
        )
        .into();
    }
    if text.contains("this machine's clock") {
        return Mistake(text).into();
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_port_gets_the_usual_one() {
        for (given, full) in [
            ("mesh.example", "mesh.example:7443"),
            ("mesh.example:9", "mesh.example:9"),
            ("192.0.2.1", "192.0.2.1:7443"),
            ("fd42::1", "[fd42::1]:7443"),
            ("[fd42::1]:9", "[fd42::1]:9"),
        ] {
            assert_eq!(with_port(given, DEFAULT_PORT), full);
        }
    }

    #[test]
    fn a_token_comes_with_its_host_or_gets_one() {
        let token = JoinToken::new(Fingerprint::of(b"a CA"), [7; 24]).to_string();
        let source = |coordinator: Option<&str>| InvitationSource {
            invitation: None,
            token_file: None,
            coordinator: coordinator.map(ToOwned::to_owned),
        };
        let whole = format!("{token}@mesh.example");
        assert_eq!(source(None).complete(&whole).unwrap().coordinator, "mesh.example:7443");
        assert_eq!(source(Some("other:9")).complete(&whole).unwrap().coordinator, "other:9");
        assert_eq!(source(Some("other")).complete(&token).unwrap().coordinator, "other:7443");
        assert!(source(None).complete(&token).unwrap_err().contains("--coordinator"));
    }

    #[test]
    fn a_malformed_invitation_says_what_is_missing() {
        for (given, says) in
            [("x", "TOKEN@HOST"), ("x@host", "not a join token"), ("mwj1_AA@host", "damaged")]
        {
            let error = given.parse::<Invitation>().unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
