//! Bodies of Docker's calls.

use super::{bodies::*, read};
use serde::de::DeserializeOwned;

fn takes<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    match read::<T>(body) {
        Ok(body) => Some(body),
        Err(refusal) => {
            assert!(refusal.to_string().starts_with("the request cannot be read"));
            None
        }
    }
}

/// Any body, as each call takes it: it is read, or refused with a sentence.
pub(crate) fn docker(body: &[u8]) {
    takes::<RequestPool>(body);
    if let Some(AddressOfPool { address: text, .. }) = takes(body)
        && let Ok(Some(read)) = address(&text)
    {
        assert_eq!(address(&read.to_string()), Ok(Some(read)));
    }
    takes::<CreateNetwork>(body);
    takes::<OfNetwork>(body);
    takes::<CreateEndpoint>(body);
    takes::<OfEndpoint>(body);
    takes::<Join>(body);
}
