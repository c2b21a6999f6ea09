//! Counters of queries, by kind and outcome.

use meshward_names::{Outcome, QueryKind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The outcome of a query, as metrics have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CountedOutcome {
    Own(Outcome),
    /// An upstream has answered, whatever it has said.
    Upstream,
    /// No upstream has answered.
    Failed,
    /// The workload has asked for too much at once.
    Limited,
}

const OUTCOMES: [(CountedOutcome, &str); 9] = [
    (CountedOutcome::Own(Outcome::Answered), "answered"),
    (CountedOutcome::Own(Outcome::NoData), "no_data"),
    (CountedOutcome::Own(Outcome::Unknown), "unknown"),
    (CountedOutcome::Own(Outcome::Hidden), "hidden"),
    (CountedOutcome::Own(Outcome::Refused), "refused"),
    (CountedOutcome::Own(Outcome::Malformed), "malformed"),
    (CountedOutcome::Upstream, "upstream"),
    (CountedOutcome::Failed, "failed"),
    (CountedOutcome::Limited, "limited"),
];

/// Queries so far.
#[derive(Debug, Default)]
pub(crate) struct QueryCounts([[AtomicU64; OUTCOMES.len()]; QueryKind::ALL.len()]);

/// The number of queries of a kind that had an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueryCount {
    /// The kind: a record type.
    pub(crate) kind: &'static str,
    pub(crate) outcome: &'static str,
    pub(crate) queries: u64,
}

impl QueryCounts {
    /// Counts a query.
    pub(crate) fn count(&self, kind: QueryKind, outcome: CountedOutcome) {
        let kind = QueryKind::ALL.iter().position(|(own, _)| *own == kind);
        let outcome = OUTCOMES.iter().position(|(own, _)| *own == outcome);
        if let (Some(kind), Some(outcome)) = (kind, outcome) {
            self.0[kind][outcome].fetch_add(1, Relaxed);
        }
    }

    /// Returns the counts that are not zero.
    pub(crate) fn read(&self) -> Vec<QueryCount> {
        let rows = QueryKind::ALL.iter().zip(&self.0);
        let all = rows.flat_map(|((_, kind), row)| {
            OUTCOMES.iter().zip(row).map(|((_, outcome), queries)| QueryCount {
                kind,
                outcome,
                queries: queries.load(Relaxed),
            })
        });
        all.filter(|count| count.queries > 0).collect()
    }
}
