//! Retention: deletes lines of the audit log and former states of records that are too old or too
//! many.

use super::interface::StoreError;
use crate::limits::Retention;
use meshward_control_state::timestamp;
use rusqlite::{Connection, params};
use time::OffsetDateTime;

/// The largest number of rows that one transaction deletes, so that no write waits for long.
const MAX_ROWS: u32 = 2000;

/// The states of the history, each with the revision of the next one, until which it was in force.
const STATES: &str = "
    SELECT state.kind, state.name, state.revision,
        (SELECT min(revision) FROM history
         WHERE kind = state.kind AND name = state.name AND revision > state.revision) AS until
    FROM history AS state";

/// A state to which as many newer ones exist as are to be kept.
const HAS_NEWER: &str = "
    (SELECT count(*) FROM history
     WHERE kind = state.kind AND name = state.name AND revision > state.revision) >= ?1";

/// A state of a record that was deleted before a time.
const WAS_DELETED: &str = "
    EXISTS (SELECT 1 FROM history AS last JOIN audit ON audit.revision = last.revision
        WHERE last.kind = state.kind AND last.name = state.name AND last.body IS NULL
          AND audit.at < ?2
          AND last.revision = (SELECT max(revision) FROM history
              WHERE kind = state.kind AND name = state.name))";

/// Deletes some of the lines and states that are not to be kept at `now`, in seconds since the Unix
/// epoch. Returns `true` if there may be more of them.
///
/// # Errors
/// Fails if the database does.
pub(super) fn forget(
    connection: &Connection,
    retention: &Retention,
    now: i64,
) -> Result<bool, StoreError> {
    let oldest = now.saturating_sub(i64::from(retention.audit_days) * 24 * 3600);
    let oldest = OffsetDateTime::from_unix_timestamp(oldest).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let oldest = timestamp(oldest);
    let states = delete_states(connection, retention.history_states, &oldest)?;
    let lines = delete_lines(connection, retention.audit_lines, &oldest)?;
    Ok(states.max(lines) >= MAX_ROWS as usize)
}

/// Deletes states beyond the number that is kept of a record, and those of records that were
/// deleted before a time. Returns how many.
fn delete_states(
    connection: &Connection,
    kept_states: u32,
    oldest: &str,
) -> Result<usize, StoreError> {
    connection.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS forgotten (kind TEXT, name TEXT, revision INTEGER, \
            until INTEGER);
         DELETE FROM temp.forgotten;",
    )?;
    connection.execute(
        &format!("INSERT INTO temp.forgotten {STATES} WHERE {HAS_NEWER} OR {WAS_DELETED} LIMIT ?3"),
        params![kept_states, oldest, MAX_ROWS],
    )?;
    let floor: Option<i64> = connection.query_row(
        "SELECT max(coalesce(until, revision)) FROM temp.forgotten",
        [],
        |row| row.get(0),
    )?;
    if let Some(floor) = floor {
        connection.execute(
            "INSERT INTO floors VALUES ('history', ?1)
             ON CONFLICT (name) DO UPDATE SET revision = max(revision, excluded.revision)",
            [floor],
        )?;
    }
    Ok(connection.execute(
        "DELETE FROM history WHERE (kind, name, revision) IN
             (SELECT kind, name, revision FROM temp.forgotten)",
        [],
    )?)
}

/// Deletes lines of the audit log beyond the number that is kept, and those before a time, but for
/// the newest and those that a state needs. Returns how many.
fn delete_lines(
    connection: &Connection,
    kept_lines: u32,
    oldest: &str,
) -> Result<usize, StoreError> {
    let newest: Option<i64> =
        connection.query_row("SELECT max(revision) FROM audit", [], |row| row.get(0))?;
    let newest = newest.unwrap_or(0);
    Ok(connection.execute(
        "DELETE FROM audit WHERE revision IN (SELECT revision FROM audit
           WHERE (at < ?1 OR revision <= ?2) AND revision < ?3
             AND revision NOT IN (SELECT revision FROM history)
           ORDER BY revision LIMIT ?4)",
        params![oldest, newest - i64::from(kept_lines), newest, MAX_ROWS],
    )?)
}
