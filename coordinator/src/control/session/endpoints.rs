//! Reports of a node's endpoints: peers learn of them at a bounded rate.

use super::{link::NodeLink, retry::retry_at};
use anyhow::Result;
use meshward_control_proto::{EndpointReport, FromCoordinator};
use meshward_control_state::{
    plans::endpoints::{EndpointClaims, RefusedEndpoint, set_endpoints},
    world::World,
};
use meshward_runtime::sources::{Bucket, Rate};
use meshward_types::{NetworkName, NodeName, PublicKey};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;
use tracing::warn;

/// The rate at which a node's endpoints are written: that many times at once, then once a second.
const WRITE_RATE: Rate = Rate { burst: 10.0, per_second: 1.0 };
/// The maximum number of other nodes' keys that a session remembers to have been claimed.
const MAX_REFUSED_KEYS: usize = 64;

/// The reports of one node's endpoints that wait to be written.
pub(super) struct EndpointReports {
    waiting: BTreeMap<NetworkName, EndpointReport>,
    /// The time at which they are to be written.
    pub(super) due: Option<Instant>,
    writes: Bucket,
    /// The keys that the node has claimed and that belong to others: each is in the audit log once.
    refused_keys: BTreeSet<PublicKey>,
}

impl EndpointReports {
    /// Creates an empty queue.
    pub(super) fn new() -> Self {
        Self {
            waiting: BTreeMap::new(),
            due: None,
            writes: Bucket::full(WRITE_RATE, std::time::Instant::now()),
            refused_keys: BTreeSet::new(),
        }
    }

    /// Queues a report, in place of an older one of the same network.
    pub(super) fn queue(&mut self, report: EndpointReport) {
        self.waiting.insert(report.network.clone(), report);
        if self.due.is_none() {
            let wait = self.writes.owe(WRITE_RATE, 1.0, std::time::Instant::now());
            self.due = Some(Instant::now() + wait);
        }
    }

    /// Writes the reports that wait.
    ///
    /// # Errors
    /// Fails as [`Self::write`] does.
    pub(super) async fn flush(&mut self, link: &mut NodeLink) -> Result<()> {
        self.due = None;
        let reports = std::mem::take(&mut self.waiting).into_values().collect();
        self.write(reports, link).await
    }

    /// Writes reports. Those whose keys belong to other nodes are refused, and the node gets the
    /// reason.
    ///
    /// # Errors
    /// Fails if the reports cannot be written for a reason other than a full disk.
    pub(super) async fn write(
        &mut self,
        reports: Vec<EndpointReport>,
        link: &mut NodeLink,
    ) -> Result<()> {
        let (node, sessions) = (&link.node, &link.mesh.sessions);
        let claims = EndpointClaims {
            reports: &reports,
            session_address: link.from.ip(),
            session_address_of: &|node: &NodeName| Some(sessions.get(node)?.node.address.ip()),
            logged_keys: &self.refused_keys,
        };
        let plan = |world: &World| set_endpoints(world, node, &claims);
        let refused = match link.mesh.change(&link.context(), plan).await {
            Ok(done) => done.outcome,
            Err(refusal) => {
                self.due = Some(retry_at(refusal)?);
                for report in reports {
                    self.waiting.entry(report.network.clone()).or_insert(report);
                }
                return Ok(());
            }
        };
        for RefusedEndpoint { network, key, reason } in refused {
            warn!(node = %link.node, %network, "refused an endpoint: {reason}");
            if self.refused_keys.len() < MAX_REFUSED_KEYS {
                self.refused_keys.insert(key);
            }
            link.send(&FromCoordinator::RefusedEndpoint { network, reason }).await?;
        }
        Ok(())
    }
}
