//! Timestamps, as the API and the audit log have them.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Formats a time as RFC 3339, to the second.
///
/// # Panics
/// Never, for a time that a clock can show.
pub fn timestamp(at: OffsetDateTime) -> String {
    let seconds = at.replace_nanosecond(0).unwrap_or(at);
    // Every year that a clock can show fits RFC 3339's four digits for the next eight thousand
    // years.
    seconds.format(&Rfc3339).expect("a time of this era has an RFC 3339 form")
}
