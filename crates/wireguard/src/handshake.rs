//! The handshake: Noise's `IKpsk2` with WireGuard's names, by `snow` (Noise Protocol Framework,
//! revision 34; paper §5.4.2 and §5.4.3). It leaves a key for each direction.

use crate::{
    PublicKey, SecretKey,
    message::{INITIATION_LENGTH, INITIATION_NOISE, RESPONSE_LENGTH, RESPONSE_NOISE},
    timestamp::Tai64n,
};
use snow::{Builder, HandshakeState, params::NoiseParams};
use std::sync::LazyLock;

const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// The paper's default where there is no pre-shared key.
const NO_PRESHARED_KEY: [u8; 32] = [0; 32];

static PARAMETERS: LazyLock<NoiseParams> = LazyLock::new(|| {
    let name = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
    name.parse().expect("the pattern's name is one that snow knows")
});

/// The keys of a session, for each direction.
pub struct SessionKeys {
    /// Seals what is sent.
    pub send: [u8; 32],
    /// Opens what is received.
    pub receive: [u8; 32],
}

/// A message does not fit its handshake or session: it is forged, damaged, replayed, or for another
/// key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message does not authenticate")]
pub struct Unauthentic;

impl From<snow::Error> for Unauthentic {
    fn from(_: snow::Error) -> Self {
        Self
    }
}

/// The initiator's side of a handshake.
pub struct Initiator(Box<HandshakeState>);

impl Initiator {
    /// Begins a handshake: writes Noise's part of an initiation to `message`.
    ///
    /// # Errors
    /// Fails if the peer's key is of low order.
    pub fn begin(
        own: &SecretKey,
        peer: &PublicKey,
        timestamp: Tai64n,
        message: &mut [u8; INITIATION_LENGTH],
    ) -> Result<Self, Unauthentic> {
        let own = own.to_bytes();
        let mut state = builder(&own)?.remote_public_key(&peer.0)?.build_initiator()?;
        state.write_message(&timestamp.to_bytes(), &mut message[INITIATION_NOISE])?;
        Ok(Self(Box::new(state)))
    }

    /// Reads a response. One that does not fit leaves the handshake as it was.
    ///
    /// # Errors
    /// Fails if the response does not authenticate.
    pub fn finish(&mut self, message: &[u8]) -> Result<SessionKeys, Unauthentic> {
        let noise = message.get(RESPONSE_NOISE).ok_or(Unauthentic)?;
        self.0.read_message(noise, &mut [])?;
        let (send, receive) = self.0.dangerously_get_raw_split();
        Ok(SessionKeys { send, receive })
    }
}

/// The responder's side of a handshake.
pub struct Responder {
    state: HandshakeState,
    /// The initiator's key, which the message proves.
    pub peer: PublicKey,
    /// The time of the initiation, by the initiator's clock.
    pub timestamp: Tai64n,
}

impl Responder {
    /// Reads an initiation.
    ///
    /// # Errors
    /// Fails if the initiation does not authenticate.
    pub fn read(own: &SecretKey, message: &[u8]) -> Result<Self, Unauthentic> {
        let own = own.to_bytes();
        let mut state = builder(&own)?.build_responder()?;
        let mut timestamp = [0; 12];
        let noise = message.get(INITIATION_NOISE).ok_or(Unauthentic)?;
        state.read_message(noise, &mut timestamp)?;
        let peer = state.get_remote_static().and_then(|key| key.try_into().ok());
        let peer = PublicKey(peer.ok_or(Unauthentic)?);
        Ok(Self { state, peer, timestamp: Tai64n::from_bytes(timestamp) })
    }

    /// Writes Noise's part of a response to `message`.
    ///
    /// # Errors
    /// Fails if the initiator's ephemeral key is of low order.
    pub fn finish(
        mut self,
        message: &mut [u8; RESPONSE_LENGTH],
    ) -> Result<SessionKeys, Unauthentic> {
        self.state.write_message(&[], &mut message[RESPONSE_NOISE])?;
        let (receive, send) = self.state.dangerously_get_raw_split();
        Ok(SessionKeys { send, receive })
    }
}

fn builder(own: &[u8; 32]) -> Result<Builder<'_>, Unauthentic> {
    let builder = Builder::new(PARAMETERS.clone()).prologue(PROLOGUE)?.local_private_key(own)?;
    Ok(builder.psk(2, &NO_PRESHARED_KEY)?)
}
