//! Policy files, read from where they are named.

use crate::{Mistake, arguments::Sources};
use anyhow::{Context, Result};
use meshward_types::PolicyFile;
use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Reads files, folders with all below them, and standard input.
///
/// # Errors
/// [`Mistake`] if nothing is named or something cannot be read.
pub(crate) fn read(sources: &Sources) -> Result<Vec<PolicyFile>> {
    let paths: Vec<&PathBuf> = sources.paths.iter().chain(&sources.more).collect();
    if paths.is_empty() {
        return Err(Mistake(
            "name a policy file or a folder with such, or - for standard input".into(),
        )
        .into());
    }
    let mut files = Vec::new();
    for path in paths {
        read_path(path, &mut files)?;
    }
    Ok(files)
}

fn read_path(path: &Path, files: &mut Vec<PolicyFile>) -> Result<()> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        files.push(PolicyFile { name: "-".into(), text });
        return Ok(());
    }
    let mut paths = Vec::new();
    if path.is_dir() {
        below(path, &mut paths)?;
        if paths.is_empty() {
            return Err(Mistake(format!("{} holds no *.yaml and no *.yml", path.display())).into());
        }
    } else {
        paths.push(path.to_owned());
    }
    for path in paths {
        let text = fs::read_to_string(&path).map_err(|error| cannot_read(&path, &error))?;
        files.push(PolicyFile { name: path.display().to_string(), text });
    }
    Ok(())
}

/// The policy files in a folder and in those below it, in the order of their names. What begins
/// with a dot is left alone.
fn below(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let read = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut entries = read().map_err(|error| cannot_read(folder, &error))?;
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let yaml =
            path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if hidden {
            continue;
        }
        if path.is_dir() {
            below(&path, paths)?;
        } else if yaml {
            paths.push(path);
        }
    }
    Ok(())
}

fn cannot_read(path: &Path, error: &io::Error) -> Mistake {
    Mistake(format!("cannot read {}: {error}", path.display()))
}
