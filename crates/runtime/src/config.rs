//! Configuration: defaults < file < environment < flags. An unknown key is an error that names key
//! and file. An unknown environment variable is only warned about, since Kubernetes makes such
//! variables from the names of services.

use crate::Mistake;
use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Env, Format, Serialized, Toml},
    value::{Dict, Map},
};
use meshward_types::environment::{is_of_kubernetes, unknown};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use std::{fmt, path::Path, time::Duration};
use tracing::warn;

/// The prefix of environment variables.
pub const ENV_PREFIX: &str = "MESHWARD_";

/// Variables that are not configuration keys: those of `meshward-node join`, and those that
/// `meshctl run` sets for commands.
const OTHER_VARIABLES: [&str; 4] =
    ["MESHWARD_JOIN_TOKEN", "MESHWARD_JOIN_TOKEN_FILE", "MESHWARD_WORKLOAD", "MESHWARD_ADDRESSES"];

/// A time, written as `24h`, or as a number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lasting(pub Duration);

impl Serialize for Lasting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&humantime::format_duration(self.0).to_string())
    }
}

impl<'de> Deserialize<'de> for Lasting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LastingVisitor).map(Self)
    }
}

struct LastingVisitor;

impl serde::de::Visitor<'_> for LastingVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a time such as \"24h\", or a number of seconds")
    }

    fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<Duration, E> {
        Ok(Duration::from_secs(seconds))
    }

    fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<Duration, E> {
        u64::try_from(seconds)
            .map(Duration::from_secs)
            .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(seconds), &self))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
        if let Ok(seconds) = text.parse() {
            return Ok(Duration::from_secs(seconds));
        }
        humantime::parse_duration(text)
            .map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))
    }
}

impl std::str::FromStr for Lasting {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let read: Result<Duration, serde::de::value::Error> =
            serde::de::Visitor::visit_str(LastingVisitor, text);
        read.map(Self).map_err(|error| error.to_string())
    }
}

/// Keys that were renamed, with the old names that still work.
const RENAMED: [(&str, &str); 2] =
    [("certificate_seconds", "certificate_lifetime"), ("rotate_keys_seconds", "rotate_keys")];

/// A source of settings that accepts old names of keys.
struct Renamed<P>(P);

impl<P: Provider> Provider for Renamed<P> {
    fn metadata(&self) -> Metadata {
        self.0.metadata()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut data = self.0.data()?;
        for keys in data.values_mut() {
            for (before, now) in RENAMED {
                if let Some(value) = keys.remove(before) {
                    keys.entry(now.to_owned()).or_insert(value);
                }
            }
        }
        Ok(data)
    }
}

/// Loads a configuration.
///
/// `file` must exist if it is given; `usual` is read if it exists. `flags` holds only flags that
/// were given.
///
/// # Errors
/// [`Mistake`], which names the key and its source.
pub fn load<T: Serialize + DeserializeOwned + Default>(
    file: Option<&Path>,
    usual: &Path,
    flags: impl Serialize,
) -> Result<T, Mistake> {
    let mut figment = Figment::from(Serialized::defaults(T::default()));
    match file {
        Some(file) if !file.is_file() => {
            return Err(Mistake(format!("there is no configuration file {}", file.display())));
        }
        Some(file) => figment = figment.merge(Renamed(Toml::file_exact(file))),
        None if usual.is_file() => figment = figment.merge(Renamed(Toml::file_exact(usual))),
        None => {}
    }
    let keys = own_keys::<T>();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    figment
        .merge(Renamed(Env::prefixed(ENV_PREFIX).only(&keys)))
        .merge(Serialized::defaults(flags))
        .extract()
        .map_err(|errors| Mistake(describe(errors)))
}

/// Returns the keys that are read from the environment, and warns about other variables with the
/// prefix.
fn own_keys<T: Serialize + Default>() -> Vec<String> {
    let defaults = serde_json::to_value(T::default()).unwrap_or_default();
    let mut keys: Vec<String> =
        defaults.as_object().into_iter().flat_map(|all| all.keys().cloned()).collect();
    let before = RENAMED.iter().filter(|(_, now)| keys.iter().any(|key| key == now));
    let before: Vec<String> = before.map(|(before, _)| (*before).to_owned()).collect();
    keys.extend(before);
    let names: Vec<String> =
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    let variable = |key: &String| format!("{ENV_PREFIX}{}", key.to_uppercase());
    let known: Vec<String> =
        keys.iter().map(variable).chain(OTHER_VARIABLES.map(ToOwned::to_owned)).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    for unknown in unknown(ENV_PREFIX, &known, names.iter().cloned()) {
        warn!("{unknown}");
    }
    keys.retain(|key| !is_of_kubernetes(&variable(key), &names));
    keys
}

fn describe(errors: figment::Error) -> String {
    let each = errors.into_iter().map(|error| {
        let location = match error.metadata.as_ref() {
            Some(meta) => match &meta.source {
                Some(source) => format!(" in {source}"),
                None => format!(" in {}", meta.name),
            },
            None => String::new(),
        };
        let key = error.path.join(".");
        let key = if key.is_empty() { key } else { format!(" (key `{key}`)") };
        format!("configuration: {}{key}{location}", error.kind)
    });
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        listen: String,
        size: u32,
    }

    impl Default for Config {
        fn default() -> Self {
            Self { listen: "here".into(), size: 1 }
        }
    }

    #[derive(Serialize)]
    struct Flags {
        #[serde(skip_serializing_if = "Option::is_none")]
        size: Option<u32>,
    }

    const NO_FLAGS: Flags = Flags { size: None };

    #[test]
    #[allow(clippy::result_large_err, reason = "figment decides how large its errors are")]
    fn later_sources_win() {
        figment::Jail::expect_with(|jail| {
            jail.create_file("c.toml", "size = 2\nlisten = \"file\"")?;
            let file = Path::new("c.toml");
            let config: Config = load(Some(file), Path::new("none"), NO_FLAGS).unwrap();
            assert_eq!(config, Config { listen: "file".into(), size: 2 });
            jail.set_env("MESHWARD_SIZE", "3");
            let config: Config = load(Some(file), Path::new("none"), NO_FLAGS).unwrap();
            assert_eq!(config.size, 3);
            let config: Config =
                load(Some(file), Path::new("none"), Flags { size: Some(4) }).unwrap();
            assert_eq!(config.size, 4);
            Ok(())
        });
    }

    #[test]
    #[allow(clippy::result_large_err, reason = "figment decides how large its errors are")]
    fn an_unknown_key_is_named_with_its_file() {
        figment::Jail::expect_with(|jail| {
            jail.create_file("c.toml", "sise = 2")?;
            let error = load::<Config>(Some(Path::new("c.toml")), Path::new("none"), NO_FLAGS);
            let said = error.unwrap_err().to_string();
            assert!(said.contains("sise") && said.contains("c.toml"), "{said}");
            jail.create_file("c.toml", "size = \"big\"")?;
            let error = load::<Config>(Some(Path::new("c.toml")), Path::new("none"), NO_FLAGS);
            let said = error.unwrap_err().to_string();
            assert!(said.contains("`size`") && said.contains("c.toml"), "{said}");
            Ok(())
        });
    }

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Ports {
        first_port: u16,
        keep: Option<Lasting>,
    }

    impl Default for Ports {
        fn default() -> Self {
            Self { first_port: 1, keep: None }
        }
    }

    #[test]
    #[allow(clippy::result_large_err, reason = "figment decides how large its errors are")]
    fn variables_of_kubernetes_services_are_no_settings() {
        figment::Jail::expect_with(|jail| {
            jail.set_env("MESHWARD_FIRST_PORT", "2");
            let flags = serde_json::json!({});
            let config: Ports = load(None, Path::new("none"), &flags).unwrap();
            assert_eq!(config.first_port, 2);
            jail.set_env("MESHWARD_FIRST_PORT", "tcp://10.0.0.1:80");
            for end in ["SERVICE_HOST", "SERVICE_PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR"] {
                jail.set_env(format!("MESHWARD_FIRST_{end}"), "10.0.0.1");
            }
            jail.set_env("MESHWARD_COORDINATOR_SERVICE_HOST", "10.0.0.2");
            jail.set_env("MESHWARD_COLOUR", "red");
            let config: Ports = load(None, Path::new("none"), &flags).unwrap();
            assert_eq!(config.first_port, 1);
            Ok(())
        });
    }

    #[test]
    #[allow(clippy::result_large_err, reason = "figment decides how large its errors are")]
    fn a_time_is_written_as_people_write_it() {
        figment::Jail::expect_with(|jail| {
            let flags = serde_json::json!({});
            for (written, seconds) in
                [("\"24h\"", 86_400), ("90", 90), ("\"7d\"", 604_800), ("\"90\"", 90)]
            {
                jail.create_file("c.toml", &format!("keep = {written}"))?;
                let config: Ports =
                    load(Some(Path::new("c.toml")), Path::new("none"), &flags).unwrap();
                assert_eq!(config.keep, Some(Lasting(Duration::from_secs(seconds))), "{written}");
            }
            jail.create_file("c.toml", "keep = \"soon\"")?;
            let said = load::<Ports>(Some(Path::new("c.toml")), Path::new("none"), &flags)
                .unwrap_err()
                .to_string();
            assert!(said.contains("24h") && said.contains("`keep`"), "{said}");
            Ok(())
        });
    }
}
