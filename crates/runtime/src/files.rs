//! State files: each is written atomically and survives a loss of power. One that cannot be read is
//! set aside, so that its user starts without it.

use std::{
    ffi::OsString,
    fmt::Display,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
use time::{OffsetDateTime, macros::format_description};
use tracing::error;

/// The suffix of a file that is being written.
const PARTIAL: &str = ".new";
/// The text between a file's name and the time at which it was set aside.
const DAMAGED: &str = ".damaged-";
/// The number of damaged versions of a file that are kept; the oldest are removed.
const MOST_DAMAGED: usize = 3;

/// Writes a file atomically. When this returns, the file survives a loss of power.
///
/// # Errors
/// The errors of the kernel; then the file is unchanged, and nothing partial takes up space.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let partial = with_ending(path, PARTIAL);
    for target in [path, &partial] {
        if fs::symlink_metadata(target).is_ok_and(|found| found.is_dir()) {
            set_aside(target, &"a folder stands where a file belongs");
        }
    }
    let written = write_through(path, &partial, bytes, mode);
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

fn write_through(path: &Path, partial: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // A partial file that was left behind may be readable for more users than this one may be.
    remove_if_there(partial)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(partial)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(partial, path)?;
    sync_folder(path)
}

/// Reads a file; `None` if it does not exist.
///
/// # Errors
/// The errors of the kernel, and [`ErrorKind::InvalidData`] if it is not a regular file.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // Checked first, since opening a pipe waits for a writer.
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            Err(io::Error::new(ErrorKind::InvalidData, "it is no regular file"))
        }
        Ok(_) => fs::read(path).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a file if it exists. When this returns, the removal survives a loss of power.
///
/// # Errors
/// The errors of the kernel.
pub fn remove(path: &Path) -> io::Result<()> {
    match remove_if_there(path)? {
        true => sync_folder(path),
        false => Ok(()),
    }
}

/// Removes a file or a folder, and its damaged versions.
///
/// # Errors
/// The errors of the kernel.
pub fn remove_with_damaged(path: &Path) -> io::Result<()> {
    for target in damaged(path).into_iter().chain([path.to_owned()]) {
        let gone = match fs::symlink_metadata(&target).is_ok_and(|found| found.is_dir()) {
            true => fs::remove_dir_all(&target),
            false => fs::remove_file(&target),
        };
        if let Err(error) = gone
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    match path.parent().is_some_and(Path::exists) {
        true => sync_folder(path),
        false => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Renames a file that cannot be used to `NAME.damaged-TIME` beside it, and logs that. Its user
/// goes on as if it did not exist. If it cannot be renamed, it stays and is not used either.
pub fn set_aside(path: &Path, why: &dyn Display) {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let time = OffsetDateTime::now_utc().format(&format).unwrap_or_default();
    let mut aside = with_ending(path, &format!("{DAMAGED}{time}"));
    for number in 2.. {
        if fs::symlink_metadata(&aside).is_err() {
            break;
        }
        aside = with_ending(path, &format!("{DAMAGED}{time}-{number}"));
    }
    let (shown, beside) = (path.display(), aside.display());
    match fs::rename(path, &aside) {
        Ok(()) => {
            error!(
                "{shown} cannot be used: {why}. It was set aside as {beside}, and this daemon goes \
                on without it"
            );
        }
        Err(error) => {
            error!(
                "{shown} cannot be used: {why}. It cannot be renamed either ({error}); this daemon \
                goes on without it"
            );
        }
    }
    forget_oldest_damaged(path);
}

fn forget_oldest_damaged(path: &Path) {
    let all = damaged(path);
    let too_many = all.len().saturating_sub(MOST_DAMAGED);
    for old in &all[..too_many] {
        let _ = fs::remove_file(old).or_else(|_| fs::remove_dir_all(old));
    }
}

/// Returns the damaged versions of a file, the oldest first.
fn damaged(path: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return vec![] };
    let mut start = name.to_os_string();
    start.push(DAMAGED);
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        name.starts_with(start.as_encoded_bytes())
    };
    let mut all: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_one).collect();
    all.sort();
    all
}

/// Removes files of a folder that were being written when the process or the machine stopped: they
/// may hold half of a key.
pub fn remove_partial(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default();
        if name.as_encoded_bytes().ends_with(PARTIAL.as_bytes()) {
            let _ = fs::remove_file(&path);
        }
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut whole: OsString = path.as_os_str().to_owned();
    whole.push(ending);
    whole.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let mut all: Vec<String> = fs::read_dir(folder).unwrap().flatten().map(name).collect();
        all.sort();
        all
    }

    #[test]
    fn a_file_is_written_whole_for_its_owner_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(folder.path().join("key.new"), b"of before").unwrap();
        fs::set_permissions(folder.path().join("key.new"), Permissions::from_mode(0o644)).unwrap();
        write(&path, b"secret", 0o600).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"secret");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(folder.path()), ["key"]);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn what_is_no_file_is_not_read_and_gives_way_to_one() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, inner) = (folder.path().join("pipe"), folder.path().join("inner"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("x"), b"x").unwrap();
        for path in [&pipe, &inner] {
            assert_eq!(read(path).unwrap_err().kind(), ErrorKind::InvalidData);
            write(path, b"whole", 0o600).unwrap();
            assert_eq!(read(path).unwrap().unwrap(), b"whole");
        }
    }

    #[test]
    fn damaged_files_are_kept_beside_but_not_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("view");
        for round in 0..6 {
            fs::write(&path, [round]).unwrap();
            set_aside(&path, &"a test");
            assert!(!path.exists());
        }
        assert_eq!(names(folder.path()).len(), MOST_DAMAGED);
        assert!(names(folder.path()).iter().all(|name| name.starts_with("view.damaged-")));
    }
}
