//! States of resources, and times in them.

use meshward_terraform::{Diagnostic, Diagnostics, Path, Value, duration};
use serde::de::DeserializeOwned;
use std::time::Duration;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Nothing set and an empty collection are one to the coordinator: what a state has stays.
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

/// The body of a request: these attributes under their own names.
pub(super) fn body<T: DeserializeOwned>(value: &Value, fields: &[&str]) -> Result<T, Diagnostics> {
    let mut wanted = Value::default();
    for name in fields {
        wanted.set(name, value.get(name).clone());
    }
    Ok(wanted.to()?)
}

/// The state of something of which only its key is known.
pub(super) fn keyed(parts: &[(&str, &str)]) -> Value {
    let mut state = Value::default();
    for (name, part) in parts {
        state.set(name, *part);
    }
    state
}

/// What is known of a state only if the key is whole.
pub(super) fn text(state: &Value, name: &str) -> Result<String, Diagnostics> {
    let missing = || Diagnostic::error("The state is incomplete", format!("It has no `{name}`."));
    Ok(state.get(name).text().ok_or_else(missing)?.to_owned())
}

/// An attribute that is a duration, if it is set.
pub(super) fn lasting_time(value: &Value, name: &str) -> Result<Option<Duration>, Diagnostics> {
    let read = value.get(name).text().map(duration).transpose();
    Ok(read.map_err(|text| Diagnostic::error(format!("Invalid {name}"), text).at(Path::of(name)))?)
}

/// The same, in seconds.
pub(super) fn lasting(value: &Value, name: &str) -> Result<Option<u64>, Diagnostics> {
    Ok(lasting_time(value, name)?.map(|time| time.as_secs()))
}

/// How long it is to a time; negative, if that has passed.
pub(super) fn remaining(expires: &str) -> Result<time::Duration, Diagnostics> {
    let expires = OffsetDateTime::parse(expires, &Rfc3339).map_err(|error| {
        Diagnostic::error("The coordinator's answer has no time", error.to_string())
    })?;
    Ok(expires - OffsetDateTime::now_utc())
}

/// A time in seconds as Terraform's users write it.
pub(crate) fn duration_text(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string().replace(' ', "")
}

/// What is wrong with `renew_before`, if it is as long as the whole time that something is good
/// for.
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

/// An id that does not have the form of one.
pub(super) fn bad_id(id: &str, form: &str) -> Diagnostics {
    Diagnostic::error("Invalid id", format!("`{id}` is not a valid id; write {form}.")).into()
}
