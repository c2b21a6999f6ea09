//! A request of gRPC's health checking protocol:
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use crate::grpc::{Call, CallError, NOT_FOUND, UNIMPLEMENTED, call};
use prost::Message;
use std::net::SocketAddr;
use tokio::net::TcpStream;

const METHOD: &str = "grpc.health.v1.Health/Check";
/// The largest answer, in bytes.
const MAX_ANSWER: usize = 4096;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    /// An enumeration, of which later versions may have more values.
    #[prost(uint64, tag = "1")]
    status: u64,
}

/// `HealthCheckResponse.ServingStatus`.
const SERVING: u64 = 1;
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Asks about a service: its status has to be `SERVING`.
///
/// # Errors
/// The reason why it has not passed.
pub(super) async fn ask(
    stream: TcpStream,
    address: SocketAddr,
    service: &str,
) -> Result<(), String> {
    let message = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let authority = address.to_string();
    let asked = Call { authority: &authority, method: METHOD, message, max_answer: MAX_ANSWER };
    let answer = call(stream, asked).await.map_err(|error| match error {
        // The protocol's answer about a service that the server does not know.
        CallError::Status { code: NOT_FOUND, message } => {
            format!("it does not know the service: {message}")
        }
        CallError::Status { code: UNIMPLEMENTED, .. } => format!("it does not implement {METHOD}"),
        other => other.to_string(),
    })?;
    match serving_status(&answer) {
        Some(SERVING) => Ok(()),
        Some(other) => {
            let name = usize::try_from(other).ok().and_then(|at| STATUSES.get(at));
            let name = name.map_or_else(|| other.to_string(), |name| (*name).to_owned());
            Err(format!("it answers {name}"))
        }
        None => Err("it does not answer as grpc.health.v1 does".into()),
    }
}

/// Reads the status of a `HealthCheckResponse`: 0 if it is left out. `None` if that is none.
fn serving_status(message: &[u8]) -> Option<u64> {
    HealthCheckResponse::decode(message).ok().map(|response| response.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_the_first_field_and_others_are_passed_over() {
        assert_eq!(serving_status(&[8, 1]), Some(SERVING));
        assert_eq!(serving_status(&[]), Some(0));
        assert_eq!(serving_status(&[0x12, 2, 9, 9, 8, 2]), Some(2));
        assert_eq!(serving_status(&[8]), None);
    }

    #[test]
    fn answers_cut_anywhere_or_changed_anywhere_are_read_or_refused() {
        let whole = [0x12, 2, 9, 9, 0x19, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1];
        assert_eq!(serving_status(&whole), Some(SERVING));
        for length in [1, 2, 3, 5, 12, 14] {
            assert_eq!(serving_status(&whole[..length]), None, "{length}");
        }
        for at in 0..whole.len() {
            for byte in 0..=255 {
                let mut changed = whole;
                changed[at] = byte;
                let _ = serving_status(&changed);
            }
        }
        assert_eq!(serving_status(&[0x12, 0xff, 0xff, 0x7f]), None);
        assert_eq!(serving_status(&[0xff; 11]), None, "a number that is too long");
    }
}
