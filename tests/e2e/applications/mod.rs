//! The connections of applications: many, long ones, and by every kind of path.

mod downloads;
mod paths;
mod restarts;
