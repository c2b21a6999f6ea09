//! Room on the disk that is kept for what cuts somebody off: a file that is given up when there is
//! no other room, and made anew when there is.

use nix::fcntl::{FallocateFlags, fallocate};
use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tracing::{error, info};

/// Bytes of the reserve: a write takes some dozen KiB, and the database's log up to 4 MiB.
const SIZE: u64 = 8 << 20;
/// How often it is tried to make it anew.
const EVERY: Duration = Duration::from_secs(1);

/// The reserve of one database.
pub(super) struct Reserve {
    path: PathBuf,
    is_there: bool,
    tried: Option<Instant>,
}

impl Reserve {
    /// The one beside a database.
    pub(super) fn beside(database: &Path) -> Self {
        let path = database.with_extension("reserve");
        let is_there = fs::metadata(&path).is_ok_and(|metadata| metadata.len() >= SIZE);
        Self { path, is_there, tried: None }
    }

    /// Makes it, if it is not there and there is room. Gives whether it is there.
    pub(super) fn keep(&mut self) -> bool {
        if self.is_there || self.tried.is_some_and(|tried| tried.elapsed() < EVERY) {
            return self.is_there;
        }
        let first = self.tried.is_none();
        self.tried = Some(Instant::now());
        match self.make() {
            Ok(()) => {
                self.is_there = true;
                if !first {
                    info!("there is room on the disk of the data folder again");
                }
            }
            Err(failure) => {
                let _ = fs::remove_file(&self.path);
                if first {
                    error!(
                        "the disk of the data folder is full ({failure}): only what cuts somebody \
                        off is written"
                    );
                }
            }
        }
        self.is_there
    }

    fn make(&self) -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&self.path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, SIZE as i64) {
            Ok(()) => {}
            // The file system cannot: bytes take room, too.
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

    /// Gives it up. Gives whether it was there.
    pub(super) fn give_up(&mut self) -> bool {
        let was_there = std::mem::take(&mut self.is_there);
        self.tried = Some(Instant::now());
        if was_there {
            error!(
                "the disk of the data folder is full: the reserve is used for what cuts somebody \
                off"
            );
        }
        was_there && fs::remove_file(&self.path).is_ok()
    }
}
