//! Resources' states: null and empty attributes, keys, request bodies and durations.

use meshward_terraform::{Diagnostic, Diagnostics, Path, Value, duration};
use serde::de::DeserializeOwned;
use std::time::Duration;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Keeps null attributes of the state null where the coordinator returns an empty collection, which
/// means the same.
pub(super) fn keep_unset(state: &Value, now: &mut Value, attributes: &[&str]) {
    for name in attributes {
        let empty = match now.get(name) {
            Value::List(all) => all.is_empty(),
            Value::Map(all) => all.is_empty(),
            _ => false,
        };
        if empty && state.get(name).is_null() {
            now.set(name, Value::Null);
        }
    }
}

/// Builds the body of a request from attributes of the same names.
pub(super) fn body<T: DeserializeOwned>(value: &Value, fields: &[&str]) -> Result<T, Diagnostics> {
    let mut wanted = Value::default();
    for name in fields {
        wanted.set(name, value.get(name).clone());
    }
    Ok(wanted.to()?)
}

/// Returns a state in which only the key is set.
pub(super) fn keyed(parts: &[(&str, &str)]) -> Value {
    let mut state = Value::default();
    for (name, part) in parts {
        state.set(name, *part);
    }
    state
}

/// Returns an attribute that is part of the key. Fails if it is not set.
pub(super) fn text(state: &Value, name: &str) -> Result<String, Diagnostics> {
    let missing = || Diagnostic::error("The state is incomplete", format!("It has no `{name}`."));
    Ok(state.get(name).text().ok_or_else(missing)?.to_owned())
}

/// Parses an attribute that is a duration, if it is set.
pub(super) fn lasting_time(value: &Value, name: &str) -> Result<Option<Duration>, Diagnostics> {
    let read = value.get(name).text().map(duration).transpose();
    Ok(read.map_err(|text| Diagnostic::error(format!("Invalid {name}"), text).at(Path::of(name)))?)
}

/// Parses an attribute that is a duration, if it is set; returns whole seconds.
pub(super) fn lasting(value: &Value, name: &str) -> Result<Option<u64>, Diagnostics> {
    Ok(lasting_time(value, name)?.map(|time| time.as_secs()))
}

/// Returns the time that is left until an RFC 3339 timestamp; negative once it has passed.
pub(super) fn remaining(expires: &str) -> Result<time::Duration, Diagnostics> {
    let expires = OffsetDateTime::parse(expires, &Rfc3339).map_err(|error| {
        Diagnostic::error("The coordinator's answer has no time", error.to_string())
    })?;
    Ok(expires - OffsetDateTime::now_utc())
}

/// Formats a number of seconds as users write a duration, such as `1h30m`.
pub(crate) fn duration_text(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string().replace(' ', "")
}

/// Returns the error `wrong` if `renew_before` is not shorter than the lifetime, which is the
/// attribute `whole`.
pub(super) fn check_renewal(config: &Value, whole: &str, wrong: &str) -> Option<Diagnostics> {
    let (Ok(Some(whole)), Ok(Some(before))) =
        (lasting_time(config, whole), lasting_time(config, "renew_before"))
    else {
        return None;
    };
    let error =
        || Diagnostic::error("Invalid renew_before", wrong).at(Path::of("renew_before")).into();
    (before >= whole).then(error)
}

/// Returns the error of an id that does not have the form `form`.
pub(super) fn bad_id(id: &str, form: &str) -> Diagnostics {
    Diagnostic::error("Invalid id", format!("`{id}` is not a valid id; write {form}.")).into()
}
