//! Configuration: defaults < file < environment < flags. A key that nobody knows is an error that names key and file.

use crate::Mistake;
use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
};
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;

/// The prefix of the environment variables.
pub const ENV_PREFIX: &str = "MESHWARD_";

/// Loads a configuration.
///
/// `file` must exist if it is given; `usual` is read if it is there. `flags` holds only what was given.
///
/// # Errors
/// [`Mistake`], naming the key and where it stands.
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
        Some(file) => figment = figment.merge(Toml::file_exact(file)),
        None if usual.is_file() => figment = figment.merge(Toml::file_exact(usual)),
        None => {}
    }
    figment
        .merge(Env::prefixed(ENV_PREFIX))
        .merge(Serialized::defaults(flags))
        .extract()
        .map_err(|errors| Mistake(describe(errors)))
}

fn describe(errors: figment::Error) -> String {
    let each = errors.into_iter().map(|error| {
        let place = match error.metadata.as_ref() {
            Some(meta) => match &meta.source {
                Some(source) => format!(" in {source}"),
                None => format!(" in {}", meta.name),
            },
            None => String::new(),
        };
        let key = error.path.join(".");
        let key = if key.is_empty() { key } else { format!(" (key `{key}`)") };
        format!("configuration: {}{key}{place}", error.kind)
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
    #[allow(clippy::result_large_err)]
    fn later_sources_win() {
        figment::Jail::expect_with(|jail| {
            jail.create_file("c.toml", "size = 2\nlisten = \"file\"")?;
            let file = Path::new("c.toml");
            let config: Config = load(Some(file), Path::new("none"), NO_FLAGS).unwrap();
            assert_eq!(config, Config { listen: "file".into(), size: 2 });
            jail.set_env("MESHWARD_SIZE", "3");
            let config: Config = load(Some(file), Path::new("none"), NO_FLAGS).unwrap();
            assert_eq!(config.size, 3);
            let config: Config = load(Some(file), Path::new("none"), Flags { size: Some(4) }).unwrap();
            assert_eq!(config.size, 4);
            Ok(())
        });
    }

    #[test]
    #[allow(clippy::result_large_err)]
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
            jail.create_file("c.toml", "")?;
            jail.set_env("MESHWARD_COLOUR", "red");
            let error = load::<Config>(Some(Path::new("c.toml")), Path::new("none"), NO_FLAGS);
            let said = error.unwrap_err().to_string();
            assert!(said.contains("colour") && said.contains("MESHWARD_"), "{said}");
            Ok(())
        });
    }
}
