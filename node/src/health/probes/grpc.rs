//! A request of gRPC's health checking protocol:
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use crate::grpc::{
    Call, CallError, NOT_FOUND, UNIMPLEMENTED, call,
    protobuf::{Value, fields, put_bytes},
};
use std::net::SocketAddr;
use tokio::net::TcpStream;

const METHOD: &str = "grpc.health.v1.Health/Check";
/// The largest answer, in bytes.
const MAX_ANSWER: usize = 4096;

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
    let mut message = vec![];
    put_bytes(&mut message, 1, service.as_bytes());
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

/// Reads the status of a `HealthCheckResponse`: field 1; 0 if it is left out.
fn serving_status(message: &[u8]) -> Option<u64> {
    let all = fields(message)?;
    let status = all.iter().rev().find(|(field, value)| match value {
        Value::Number(_) => *field == 1,
        _ => false,
    });
    Some(status.map_or(0, |(_, value)| value.number()))
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
}
