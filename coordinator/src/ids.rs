//! Random ids and secrets.

use meshward_control_state::plans::tokens::TokenSeed;
use meshward_runtime::random;

/// Returns `BYTES` random bytes in hexadecimal.
pub(crate) fn random_hex<const BYTES: usize>() -> String {
    random::<BYTES>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns a short id that nothing else has: of 64 bits by chance.
pub(crate) fn new_id() -> String {
    random_hex::<8>()
}

/// Returns the random numbers for a join token.
pub(crate) fn token_seed() -> TokenSeed {
    TokenSeed { id: new_id(), secret: random() }
}
