//! Contexts: where a coordinator is, and who we are to it. One file holds several, by name; a file
//! as the coordinator writes it holds one.

use crate::Error;
pub use meshward_api_types::Context;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// The name of a context that was alone in its file.
const ALONE: &str = "default";

/// Contexts by name, as they are kept.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The one in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// The contexts by name.
    pub contexts: BTreeMap<String, Context>,
}

/// Returns the paths where a context is looked for if none is named: this user's contexts, then the
/// coordinator's own file on this machine.
pub fn default_paths() -> [PathBuf; 3] {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    [
        home.join(".config/meshward/context.json"),
        "/var/lib/meshward/coordinator/admin.json".into(),
        home.join(".local/state/meshward/coordinator/admin.json"),
    ]
}

impl Contexts {
    /// The contexts in a file; `None` if there is no such file.
    ///
    /// # Errors
    /// [`Error::Refused`], if it cannot be read or holds none.
    pub fn read(file: &Path) -> Result<Option<Self>, Error> {
        let text = match fs::metadata(file) {
            Ok(meta) if meta.len() > MAX_FILE => {
                return Err(Error::refused(format!(
                    "{} is no context file: it is too long",
                    file.display()
                )));
            }
            Ok(_) => fs::read(file),
            Err(error) => Err(error),
        };
        match text {
            Ok(text) => Self::parse(&text, &file.display().to_string()).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::refused(format!("cannot read {}: {error}", file.display()))),
        }
    }

    /// The contexts in a text, which comes from `place`.
    ///
    /// # Errors
    /// [`Error::Refused`], if it holds none.
    pub fn parse(text: &[u8], origin: &str) -> Result<Self, Error> {
        let bad = |error: serde_json::Error| {
            Error::refused(format!("{origin} is no context file: {error}"))
        };
        let value: serde_json::Value = serde_json::from_slice(text).map_err(bad)?;
        if value.get("contexts").is_some() {
            return serde_json::from_value(value).map_err(bad);
        }
        let context: Context = serde_json::from_value(value).map_err(bad)?;
        Ok(Self {
            current: Some(ALONE.into()),
            contexts: BTreeMap::from([(ALONE.into(), context)]),
        })
    }

    /// Keeps the contexts in a file, whole or not at all, readable for its owner only.
    ///
    /// # Errors
    /// [`Error::Refused`], if it cannot be written.
    pub fn write(&self, file: &Path) -> Result<(), Error> {
        let write = || -> std::io::Result<()> {
            if let Some(folder) = file.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            let partial = file.with_extension("new");
            let mut options = OpenOptions::new();
            let mut new =
                options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
            new.write_all(&serde_json::to_vec_pretty(self)?)?;
            new.write_all(b"\n")?;
            new.sync_all()?;
            fs::rename(&partial, file)
        };
        write().map_err(|error| Error::refused(format!("cannot write {}: {error}", file.display())))
    }

    /// The one in use: the current one, or the only one.
    pub fn in_use(&self) -> Option<(&str, &Context)> {
        let named = self.current.as_ref().and_then(|name| self.contexts.get_key_value(name));
        let only = || self.contexts.iter().next().filter(|_| self.contexts.len() == 1);
        named.or_else(only).map(|(name, context)| (name.as_str(), context))
    }
}

/// The names of this user's contexts.
///
/// # Errors
/// [`Error::Refused`], if the file cannot be read.
pub fn names() -> Result<Vec<String>, Error> {
    let kept = Contexts::read(&default_paths()[0])?;
    Ok(kept.map(|kept| kept.contexts.into_keys().collect()).unwrap_or_default())
}

/// The context that is named, by its name among this user's or by a file; in the first of the usual
/// paths that has one in use, if none is named. `None` if there is none.
///
/// # Errors
/// [`Error::Refused`], if what was named is not there, or a file cannot be read or holds no
/// context.
pub fn find(named: Option<&str>) -> Result<Option<Context>, Error> {
    let paths = default_paths();
    let Some(named) = named else {
        for path in &paths {
            if let Some((_, context)) = Contexts::read(path)?.as_ref().and_then(Contexts::in_use) {
                return Ok(Some(context.clone()));
            }
        }
        return Ok(None);
    };
    let is_path = named.contains('/')
        || Path::new(named).extension().is_some_and(|extension| extension == "json");
    let mut known = Vec::new();
    if !is_path && let Some(mut kept) = Contexts::read(&paths[0])? {
        if let Some(context) = kept.contexts.remove(named) {
            return Ok(Some(context));
        }
        known.extend(kept.contexts.into_keys());
    }
    let file = Path::new(named);
    if let Some(contexts) = Contexts::read(file)? {
        let in_use = contexts.in_use().map(|(_, context)| context.clone());
        return in_use.map(Some).ok_or_else(|| {
            Error::refused(format!(
                "{named} has several contexts and says of none that it is in use"
            ))
        });
    }
    let known =
        if known.is_empty() { String::new() } else { format!(" (there are {})", known.join(", ")) };
    Err(Error::refused(if is_path {
        format!("there is no context file {named}")
    } else {
        format!("there is neither a context `{named}`{known} nor a file of that name")
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(server: &str) -> Context {
        Context {
            server: server.into(),
            more_servers: vec![],
            ca: "CA".into(),
            token: "mwc_x".into(),
        }
    }

    #[test]
    fn a_file_of_one_context_is_read_as_several() {
        let text = serde_json::to_vec(&context("a:1")).unwrap();
        let read = Contexts::parse(&text, "f").unwrap();
        assert_eq!(read.in_use().unwrap().1.server, "a:1");
        let text = serde_json::to_vec(&read).unwrap();
        assert_eq!(Contexts::parse(&text, "f").unwrap().in_use().unwrap().0, "default");
        let said = Contexts::parse(b"{\"server\": 1}", "f").err().unwrap().to_string();
        assert!(said.contains("f is no context file"), "{said}");
    }

    #[test]
    fn what_is_kept_is_readable_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = std::env::temp_dir().join(format!("meshward-contexts-{}", std::process::id()));
        let file = folder.join("a/context.json");
        let all =
            Contexts { current: None, contexts: BTreeMap::from([("x".into(), context("a:1"))]) };
        all.write(&file).unwrap();
        let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        let read = Contexts::read(&file).unwrap().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert!(mode == 0o600 && read.in_use().unwrap().0 == "x");
    }

    #[test]
    fn places_are_put_before_those_that_are_known() {
        let all = context("127.0.0.1:9").reached_by(&["mesh.example".into(), "fd42::1".into()]);
        assert_eq!(
            all.servers().collect::<Vec<_>>(),
            ["mesh.example:9", "[fd42::1]:9", "127.0.0.1:9"]
        );
        assert!(
            !all.is_local() && context("[::1]:9").is_local() && context("localhost:9").is_local()
        );
    }
}
