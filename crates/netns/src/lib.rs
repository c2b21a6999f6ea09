//! Network namespaces: entering one on a thread of its own, and the links, addresses and routes
//! inside.
#![forbid(unsafe_code)]

mod link;
mod route;
mod rule;

pub use link::Links;
pub use rule::RuleSelector;

use nix::sched::{CloneFlags, setns, unshare};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

/// The errors of working in or with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path does not lead to a network namespace.
    #[error(
        "{path} is no network namespace that can be opened ({source}); name one like \
        /run/netns/NAME or /proc/PID/ns/net"
    )]
    Open {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel refused to create or enter a namespace.
    #[error("cannot {what} a network namespace ({source}); this needs CAP_SYS_ADMIN: run as root")]
    Enter {
        /// The operation that failed.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// No thread could be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The kernel refused a change of links, addresses or routes.
    #[error("cannot {what}: {source}")]
    Netlink {
        /// The operation that failed.
        what: String,
        /// The cause.
        source: rtnetlink::Error,
    },
    /// There is no such link.
    #[error("there is no interface `{0}` in the namespace")]
    NoLink(String),
}

/// A network namespace, held open.
#[derive(Debug, Clone)]
pub struct Netns(Arc<File>);

/// The identity of a namespace: device and inode number of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// The device number (`st_dev`).
    pub device: u64,
    /// The inode number (`st_ino`).
    pub inode: u64,
}

impl NetnsId {
    /// Returns the identity of the namespace that a path leads to.
    ///
    /// # Errors
    /// [`Error::Open`] if there is none.
    pub fn of_path(path: &Path) -> Result<Self, Error> {
        let netns = Netns::open(path)?;
        netns.id().map_err(|source| Error::Open { path: path.to_owned(), source })
    }
}

impl Netns {
    /// Opens a namespace by its path.
    ///
    /// # Errors
    /// [`Error::Open`] if there is none.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let kind =
            nix::sys::statfs::fstatfs(&file).map_err(|e| failed(e.into()))?.filesystem_type();
        if kind != nix::sys::statfs::NSFS_MAGIC {
            return Err(failed(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is an ordinary file",
            )));
        }
        Ok(Self(Arc::new(file)))
    }

    /// Returns the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Open`] if `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Creates a namespace and sets its loopback interface up.
    ///
    /// # Errors
    /// [`Error::Enter`] without the privilege.
    pub fn create() -> Result<Self, Error> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::Enter { what: "make", source: e.into() })?;
            Self::current()
        });
        let netns = made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        netns.links(async |links| links.set_up("lo").await)?;
        Ok(netns)
    }

    /// Returns a path by which other processes of this machine can open the namespace, as long as
    /// this handle is held.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Returns the identity of this namespace.
    ///
    /// # Errors
    /// Any error of `fstat`.
    pub fn id(&self) -> io::Result<NetnsId> {
        let meta = self.0.metadata()?;
        Ok(NetnsId { device: meta.dev(), inode: meta.ino() })
    }

    /// Moves the calling thread into the namespace, for good: for threads that do nothing else.
    ///
    /// # Errors
    /// [`Error::Enter`] if the namespace cannot be entered; the thread stays where it is.
    pub fn enter(&self) -> Result<(), Error> {
        setns(&*self.0, CloneFlags::CLONE_NEWNET)
            .map_err(|error| Error::Enter { what: "enter", source: error.into() })
    }

    /// Runs `work` on a new thread inside the namespace and waits for it to end.
    ///
    /// # Errors
    /// [`Error::Enter`] if the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        thread::scope(|scope| {
            let inside = thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                self.enter()?;
                Ok(work())
            });
            let inside = inside.map_err(Error::Thread)?;
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `work` with the namespace's links, addresses and routes.
    ///
    /// # Errors
    /// The errors of `work`, and [`Error::Enter`] if the namespace cannot be entered.
    pub fn links<T: Send>(
        &self,
        work: impl AsyncFnOnce(&Links) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .map_err(Error::Thread)?;
            runtime.block_on(async { work(&Links::connect()?).await })
        })?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
