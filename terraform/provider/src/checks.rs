//! Checks of attributes' values, which run when a configuration is validated. They parse with the
//! types that the coordinator uses.

use ipnet::IpNet;
use meshward_terraform::{Diagnostic, Diagnostics, Path, Value, duration};
use meshward_types::{
    FanOut, Labels, NetworkName, NodeName, PublicKey, Selector, ServiceName, WorkloadName, labels,
};
use std::{collections::BTreeMap, fmt::Display, str::FromStr, time::Duration};

fn parses<T: FromStr<Err: Display>>(value: &Value) -> Result<(), String> {
    value.text().unwrap_or_default().parse::<T>().map(drop).map_err(|error| error.to_string())
}

pub(crate) fn network(value: &Value) -> Result<(), String> {
    parses::<NetworkName>(value)
}

pub(crate) fn service(value: &Value) -> Result<(), String> {
    parses::<ServiceName>(value)
}

pub(crate) fn fan_out(value: &Value) -> Result<(), String> {
    parses::<FanOut>(value)
}

pub(crate) fn node(value: &Value) -> Result<(), String> {
    parses::<NodeName>(value)
}

pub(crate) fn workload(value: &Value) -> Result<(), String> {
    parses::<WorkloadName>(value)
}

pub(crate) fn selector(value: &Value) -> Result<(), String> {
    parses::<Selector>(value)
}

pub(crate) fn label_set(value: &Value) -> Result<(), String> {
    parses::<Labels>(value)
}

pub(crate) fn public_key(value: &Value) -> Result<(), String> {
    parses::<PublicKey>(value)
}

pub(crate) fn label_value(value: &Value) -> Result<(), String> {
    labels::check_value(value.text().unwrap_or_default()).map_err(|error| error.to_string())
}

/// Checks that a value is a prefix in the form in which the coordinator returns it, so that the
/// configuration can be compared with the state.
pub(crate) fn prefix(value: &Value) -> Result<(), String> {
    let text = value.text().unwrap_or_default();
    let Ok(prefix) = text.parse::<IpNet>() else {
        return Err(format!(
            "`{text}` is not a prefix; write one such as 10.42.0.0/16 or fd42::/48"
        ));
    };
    let whole = prefix.trunc().to_string();
    if whole == text { Ok(()) } else { Err(format!("`{text}` must be written as {whole}")) }
}

/// Checks that a value is a duration of whole seconds, from `least` to `most` seconds.
pub(crate) fn lasts(value: &Value, least: u64, most: u64, what: &str) -> Result<(), String> {
    let time = duration(value.text().unwrap_or_default())?;
    if (Duration::from_secs(least)..=Duration::from_secs(most)).contains(&time)
        && time.subsec_nanos() == 0
    {
        Ok(())
    } else {
        Err(format!("{what} must be {least} seconds to {} days, in whole seconds.", most / 86_400))
    }
}

pub(crate) fn role(value: &Value) -> Result<(), String> {
    one_of(value, &["viewer", "operator", "owner", "admin"])
}

pub(crate) fn expectation(value: &Value) -> Result<(), String> {
    one_of(value, &["allow", "deny", "reject"])
}

pub(crate) fn mode(value: &Value) -> Result<(), String> {
    one_of(value, &["enforce", "observe"])
}

pub(crate) fn shared(value: &Value) -> Result<(), String> {
    one_of(value, &["allow", "judge"])
}

pub(crate) fn declarations(value: &Value) -> Result<(), String> {
    one_of(value, &["narrow", "open"])
}

pub(crate) fn on_deny(value: &Value) -> Result<(), String> {
    one_of(value, &["drop", "reject"])
}

pub(crate) fn on_revoke(value: &Value) -> Result<(), String> {
    one_of(value, &["drop", "reset"])
}

fn one_of(value: &Value, words: &[&str]) -> Result<(), String> {
    let text = value.text().unwrap_or_default();
    if words.contains(&text) {
        Ok(())
    } else {
        Err(format!("`{text}` is not one of {}", words.join(", ")))
    }
}

/// Checks that a number is from `least` to `most`.
pub(crate) fn within(value: &Value, least: i64, most: i64, what: &str) -> Result<(), String> {
    let number = match value {
        Value::Number(number) => number.as_i64(),
        _ => None,
    };
    match number {
        Some(number) if (least..=most).contains(&number) => Ok(()),
        _ => Err(format!("{what} must be a whole number from {least} to {most}")),
    }
}

/// Checks that labels are ones that a user may set; each diagnostic has the path of its key.
pub(crate) fn labels(config: &Value, attribute: &str) -> Diagnostics {
    let Value::Map(all) = config.get(attribute) else { return vec![] };
    let path = Path::of(attribute);
    let wrong = |key: &str, text: String| {
        Diagnostic::error(format!("Invalid label \"{key}\""), text).at(path.key(key))
    };
    let mut said = Vec::new();
    for (key, value) in all {
        let value = value.text().unwrap_or("unknown");
        let one = BTreeMap::from([(key.as_str(), value)]);
        let read = serde_json::to_value(one).and_then(serde_json::from_value::<Labels>);
        match read.map(|labels| labels.check_unreserved()) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => said.push(wrong(key, error.to_string())),
            Err(error) => said.push(wrong(key, error.to_string())),
        }
    }
    said
}
