//! Where the coordinator is, and who we are to it: files as the coordinator writes them.

use crate::Error;
use meshward_model::api::Context;
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// Where a context is looked for if nobody names one: what was copied to this machine, then the coordinator's own.
pub fn usual_places() -> [PathBuf; 3] {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    [
        home.join(".config/meshward/context.json"),
        "/var/lib/meshward/coordinator/admin.json".into(),
        home.join(".local/state/meshward/coordinator/admin.json"),
    ]
}

/// The context in a file; in the first of the usual ones that is there, if none is named. None if there is none.
///
/// # Errors
/// [`Error::Refused`], if what was named is not there, or a file cannot be read or is no context.
pub fn find(named: Option<&Path>) -> Result<Option<Context>, Error> {
    let candidates = match named {
        Some(file) => vec![file.to_owned()],
        None => usual_places().to_vec(),
    };
    for file in &candidates {
        match fs::read(file) {
            Ok(text) => {
                return serde_json::from_slice(&text).map(Some).map_err(|error| {
                    Error::refused(format!("{} is no context file: {error}", file.display()))
                });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::refused(format!("cannot read {}: {error}", file.display()))),
        }
    }
    match named {
        Some(file) => Err(Error::refused(format!("there is no context file {}", file.display()))),
        None => Ok(None),
    }
}
