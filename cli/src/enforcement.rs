//! Telling how far a change is enforced: where it is not yet, the node by name, and since when
//! nothing was heard of it.

use crate::{
    arguments::Common,
    note,
    output::{bad, count, few},
};
use meshward_api_types::{Enforcement, SilentNode};
use std::process::ExitCode;

/// In a few words, for the line that says what was done.
pub(crate) fn in_short(enforcement: &Enforcement) -> String {
    match (enforcement.nodes, enforcement.nodes_enforcing) {
        (0, _) => "no node had to change anything".into(),
        (1, enforcing) => format!("{enforcing} of 1 node enforces it"),
        (nodes, enforcing) => format!("{enforcing} of {nodes} nodes enforce it"),
    }
}

/// Names the nodes that do not say that they enforce it.
pub(crate) fn name_silent(common: &Common, enforcement: &Enforcement) {
    few(common, &enforcement.nodes_silent, |node| note!("{} {}", bad("not yet:"), describe(node)));
    if !enforcement.nodes_silent.is_empty() {
        note!("they enforce it before anything else once they are heard again");
    }
}

fn describe(silent: &SilentNode) -> String {
    let since = match (&silent.since, silent.connected) {
        (Some(since), true) => format!("does not answer, and was heard last at {since}"),
        (Some(since), false) => format!("is away since {since}"),
        (None, _) => "is away since before the coordinator's start".into(),
    };
    let peers = match (silent.peers, silent.peers_enforcing) {
        (0, _) => "it has no peers".into(),
        (1, 1) => "its only peer enforces it at its end".to_owned(),
        (peers, enforcing) if peers == enforcing => {
            format!("all its {} enforce it at their end", count(peers, "peer"))
        }
        (peers, enforcing) => {
            format!("{enforcing} of its {} enforce it at their end", count(peers, "peer"))
        }
    };
    format!("node {} {since}; {peers}", silent.node)
}

/// Done if it is enforced everywhere.
pub(crate) fn exit_code(enforcement: Option<&Enforcement>) -> ExitCode {
    match enforcement {
        Some(enforcement) if !enforcement.nodes_silent.is_empty() => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_is_told_with_what_holds_all_the_same() {
        let node = |connected, since: Option<&str>, peers, peers_enforcing| SilentNode {
            node: "rack".parse().unwrap(),
            connected,
            since: since.map(Into::into),
            peers,
            peers_enforcing,
        };
        let at = Some("2026-11-26T21:00:00Z");
        for (silent, says) in [
            (
                node(true, at, 3, 3),
                "node rack does not answer, and was heard last at 2026-11-26T21:00:00Z; all its 3 \
                 peers enforce it at their end",
            ),
            (
                node(false, at, 3, 2),
                "node rack is away since 2026-11-26T21:00:00Z; 2 of its 3 peers enforce it at \
                 their end",
            ),
            (
                node(false, None, 1, 1),
                "node rack is away since before the coordinator's start; its only peer enforces it \
                 at its end",
            ),
        ] {
            assert_eq!(describe(&silent), says);
        }
    }
}
