//! The handshake: Noise's IKpsk2 with WireGuard's names, by `snow` (Noise Protocol Framework,
//! revision 34; the WireGuard paper §5.4.2 and §5.4.3). What it leaves is a key for each direction.

use super::{
    SecretKey,
    message::{INITIATION_NOISE, RESPONSE_NOISE},
    stamp::{STEP, STEPS, Stamp},
};
use meshward_types::PublicKey;
use snow::{Builder, HandshakeState, params::NoiseParams};
use std::sync::LazyLock;

const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// A mesh uses no pre-shared keys: the paper's default.
const NO_PRESHARED_KEY: [u8; 32] = [0; 32];

static PARAMETERS: LazyLock<NoiseParams> = LazyLock::new(|| {
    let name = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
    name.parse().expect("the pattern's name is one that snow knows")
});

/// When an initiation was made, in TAI64N (<https://cr.yp.to/libtai/tai64.html>): later ones are
/// greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp([u8; 12]);

impl From<Stamp> for Timestamp {
    fn from(stamp: Stamp) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&(0x4000_0000_0000_000a + stamp.seconds()).to_be_bytes());
        bytes[8..].copy_from_slice(&((stamp.0 % STEPS) as u32 * STEP).to_be_bytes());
        Self(bytes)
    }
}

/// The keys that a handshake has made.
pub(crate) struct Keys {
    pub send: [u8; 32],
    pub receive: [u8; 32],
}

/// A handshake does not fit: forged, broken, or for somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

impl From<snow::Error> for Refused {
    fn from(_: snow::Error) -> Self {
        Self
    }
}

/// A handshake that we began.
pub(crate) struct Initiator(Box<HandshakeState>);

impl Initiator {
    /// Begins: writes Noise's part of an initiation to `message`.
    pub fn begin(
        own: &SecretKey,
        peer: &PublicKey,
        timestamp: Timestamp,
        message: &mut [u8],
    ) -> Result<Self, Refused> {
        let own = own.bytes();
        let builder = builder(&own)?.remote_public_key(&peer.0)?;
        let mut state = builder.build_initiator()?;
        state.write_message(&timestamp.0, &mut message[INITIATION_NOISE])?;
        Ok(Self(Box::new(state)))
    }

    /// Reads a response. One that does not fit leaves the handshake as it was.
    pub fn finish(&mut self, message: &[u8]) -> Result<Keys, Refused> {
        self.0.read_message(&message[RESPONSE_NOISE], &mut [])?;
        let (send, receive) = self.0.dangerously_get_raw_split();
        Ok(Keys { send, receive })
    }
}

/// A handshake that a peer began.
pub(crate) struct Responder {
    state: HandshakeState,
    /// Who says to have begun it; the message proves that.
    pub peer: PublicKey,
    pub timestamp: Timestamp,
}

impl Responder {
    /// Reads an initiation.
    pub fn read(own: &SecretKey, message: &[u8]) -> Result<Self, Refused> {
        let own = own.bytes();
        let mut state = builder(&own)?.build_responder()?;
        let mut timestamp = [0; 12];
        state.read_message(&message[INITIATION_NOISE], &mut timestamp)?;
        let peer = state.get_remote_static().and_then(|key| key.try_into().ok()).ok_or(Refused)?;
        Ok(Self { state, peer: PublicKey(peer), timestamp: Timestamp(timestamp) })
    }

    /// Writes Noise's part of a response to `message`.
    pub fn finish(mut self, message: &mut [u8]) -> Result<Keys, Refused> {
        self.state.write_message(&[], &mut message[RESPONSE_NOISE])?;
        let (receive, send) = self.state.dangerously_get_raw_split();
        Ok(Keys { send, receive })
    }
}

fn builder(own: &[u8; 32]) -> Result<Builder<'_>, Refused> {
    let builder = Builder::new(PARAMETERS.clone()).prologue(PROLOGUE)?.local_private_key(own)?;
    Ok(builder.psk(2, &NO_PRESHARED_KEY)?)
}
