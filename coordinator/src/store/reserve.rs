//! The reserve: a file that keeps room on the disk for mutations that revoke access. It is deleted
//! when the disk is full, and created again when there is room.

use nix::fcntl::{FallocateFlags, fallocate};
use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tracing::{error, info};

/// The size of the file in bytes: a write needs some dozen KiB, and the write-ahead log up to 4
/// MiB.
const SIZE: u64 = 8 << 20;
/// The time between two attempts to create the file again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The reserve of one database.
pub(super) struct Reserve {
    path: PathBuf,
    exists: bool,
    last_attempt: Option<Instant>,
}

impl Reserve {
    /// Returns the reserve of a database, in the same folder.
    pub(super) fn beside(database: &Path) -> Self {
        let path = database.with_extension("reserve");
        let exists = fs::metadata(&path).is_ok_and(|metadata| metadata.len() >= SIZE);
        Self { path, exists, last_attempt: None }
    }

    /// Creates the file if it does not exist and there is room. Returns `true` if it exists.
    pub(super) fn ensure(&mut self) -> bool {
        if self.exists || self.last_attempt.is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return self.exists;
        }
        let first = self.last_attempt.is_none();
        self.last_attempt = Some(Instant::now());
        match self.create() {
            Ok(()) => {
                self.exists = true;
                if !first {
                    info!("there is room on the disk of the data folder again");
                }
            }
            Err(failure) => {
                let _ = fs::remove_file(&self.path);
                if first {
                    error!(
                        "the disk of the data folder is full ({failure}): only what revokes access \
                        is written"
                    );
                }
            }
        }
        self.exists
    }

    fn create(&self) -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&self.path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, SIZE as i64) {
            Ok(()) => {}
            // The file system cannot allocate: written bytes take room as well.
            Err(nix::errno::Errno::EOPNOTSUPP) => {
                use std::io::Write;
                let block = vec![0xa5; 64 << 10];
                for _ in 0..SIZE / block.len() as u64 {
                    (&file).write_all(&block)?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        file.sync_all()
    }

    /// Deletes the file. Returns `true` if that freed room.
    pub(super) fn release(&mut self) -> bool {
        let existed = std::mem::take(&mut self.exists);
        self.last_attempt = Some(Instant::now());
        if existed {
            error!(
                "the disk of the data folder is full: the reserve is used for what revokes \
                access"
            );
        }
        existed && fs::remove_file(&self.path).is_ok()
    }
}
