//! Temporary folders of a fuzzing process, removed when it ends.

use std::{
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// The folders, and the number of running replays: the last one to end removes the folders.
static MADE: Mutex<(Vec<PathBuf>, usize)> = Mutex::new((Vec::new(), 0));

/// Returns a folder of this process, in memory where possible, and creates it if necessary.
/// `MESHWARD_FUZZ_SCRATCH` sets its parent; the caller who sets it removes it.
///
/// # Panics
/// Panics if the folder cannot be created.
pub fn scratch(name: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let usual = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let base = std::env::var_os("MESHWARD_FUZZ_SCRATCH").map_or(usual, PathBuf::from);
    let folder = base.join(format!("meshward-fuzz-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder can be made");
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if !made.0.contains(&folder) {
        made.0.push(folder.clone());
    }
    folder
}

/// A guard for a replay that runs.
pub(crate) struct Running;

impl Running {
    pub(crate) fn begin() -> Self {
        MADE.lock().unwrap_or_else(PoisonError::into_inner).1 += 1;
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        made.1 -= 1;
        if made.1 == 0 {
            made.0.drain(..).for_each(|folder| drop(fs::remove_dir_all(folder)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_there_until_the_last_replay_ends() {
        let (first, second) = (Running::begin(), Running::begin());
        let folder = scratch("tests");
        fs::write(folder.join("a"), "x").unwrap();
        drop(first);
        assert_eq!(scratch("tests"), folder);
        assert!(folder.join("a").exists());
        drop(second);
        assert!(!folder.exists());
    }
}
