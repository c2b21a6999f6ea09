//! Random ids and secrets.

use meshward_control_state::plans::tokens::TokenSeed;
use meshward_runtime::random;
use std::fmt::Write;

/// Returns `BYTES` random bytes in hexadecimal.
pub(crate) fn random_hex<const BYTES: usize>() -> String {
    random::<BYTES>().iter().fold(String::with_capacity(2 * BYTES), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns a random id of 64 bits, in hexadecimal.
pub(crate) fn new_id() -> String {
    random_hex::<8>()
}

/// Returns the random numbers for a join token.
pub(crate) fn token_seed() -> TokenSeed {
    TokenSeed { id: new_id(), secret: random() }
}
