//! What applications see of their connections, where they have many of them, for long, and by every
//! kind of path.

mod downloads;
mod paths;
mod restarts;
