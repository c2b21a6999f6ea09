//! The beginning of a session: the node says who it is, and what it has.

use super::{budget::BudgetMeter, link::NodeLink};
use crate::{
    control::{inbox::Inbox, limits::FIRST_MESSAGE},
    limits::session_rate,
    sessions::Duplicate,
};
use anyhow::Result;
use meshward_control_proto::{
    CLOSE_REMOVED, EndpointReport, FromCoordinator, FromNode, InstanceId, WorkloadReport,
    view::Digest,
};
use meshward_control_state::{Plan, plans::nodes, world::World};
use meshward_relay::listener::check_unexpired;
use meshward_runtime::tls::{MemberCertificate, clocks_apart};
use meshward_types::Revision;
use quinn::Connection;
use std::{collections::BTreeMap, time::Duration};
use time::OffsetDateTime;
use tracing::{info, warn};

/// The maximum number of parts in which a node lists its endpoints and workloads.
const MAX_PARTS: usize = 4096;
/// The maximum number of endpoints and workloads in these parts.
const MAX_ELEMENTS: usize = 1 << 17;
/// Time limit for a duplicate to close its connection, after it got the reason.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The hello of a node that may have a session.
pub(super) struct Hello {
    /// The version of its daemon.
    pub(super) version: String,
    /// The start of its daemon.
    pub(super) instance: InstanceId,
    /// The revision that it enforces.
    pub(super) revision: Revision,
    /// The digest of its view.
    pub(super) digest: Digest,
    /// The difference between its clock and the coordinator's, in words.
    pub(super) clock_problem: Option<String>,
}

/// The endpoints and workloads of a node.
pub(super) struct Inventory {
    /// The endpoints, one for each network.
    pub(super) endpoints: Vec<EndpointReport>,
    /// The workloads that the budget allows.
    pub(super) workloads: Vec<WorkloadReport>,
}

/// Opens a session. Returns `None` if the node wanted something else and has got it: to leave the
/// mesh, or a new certificate in place of one that has expired.
///
/// # Errors
/// Fails if the node may not have a session; its connection is closed with the reason.
pub(super) async fn open(
    link: &mut NodeLink,
    inbox: &mut Inbox,
    connection: &Connection,
    certificate: &MemberCertificate,
) -> Result<Option<Hello>> {
    let mut first = inbox.expect(FIRST_MESSAGE).await?;
    if matches!(first, FromNode::Leave) {
        leave(link, connection).await?;
        return Ok(None);
    }
    if let FromNode::Renew { csr } = first {
        link.renew(&csr).await?;
        if check_unexpired(certificate).is_err() {
            // The new certificate is for the node's next session.
            let _ = tokio::time::timeout(FIRST_MESSAGE, connection.closed()).await;
            return Ok(None);
        }
        first = inbox.expect(FIRST_MESSAGE).await?;
    }
    if let Err(error) = check_unexpired(certificate) {
        connection.close(7u32.into(), format!("{error:#}").as_bytes());
        return Err(error);
    }
    let FromNode::Hello { version, instance, clock, revision, digest } = first else {
        anyhow::bail!("the session does not begin with a hello");
    };
    let clock_problem = clocks_apart(clock, OffsetDateTime::now_utc().unix_timestamp());
    if let Some(problem) = &clock_problem {
        warn!(node = %link.node, "{problem}");
    }
    let (mesh, now) = (&link.mesh, std::time::Instant::now());
    if !mesh.sessions.may_begin(&link.node, session_rate(&mesh.budget), now) {
        let text = "too many sessions in a short time (`nodes.sessions_per_minute`); wait a minute";
        connection.close(5u32.into(), text.as_bytes());
        anyhow::bail!("{} begins too many sessions", link.node);
    }
    if let Err(duplicate) = mesh.sessions.admit(&link.node, instance, link.from).await {
        return Err(refuse_duplicate(link, connection, &duplicate).await?);
    }
    Ok(Some(Hello { version, instance, revision, digest, clock_problem }))
}

/// Removes the node from the mesh, as it asks for.
async fn leave(link: &NodeLink, connection: &Connection) -> Result<()> {
    let plan = |world: &World| match world.nodes.contains_key(&link.node) {
        true => nodes::remove(world, &link.node),
        // Somebody has removed it meanwhile.
        false => Ok(Plan::nothing(())),
    };
    link.mesh.change(&link.context_with_origin(), plan).await?;
    info!(node = %link.node, "left the mesh");
    link.mesh.disconnect(&link.node, "this node has left the mesh");
    connection.close(CLOSE_REMOVED.into(), b"this node has left the mesh");
    Ok(())
}

/// Refuses a second machine with the node's identity, with the reason. Returns the error with which
/// the session ends.
async fn refuse_duplicate(
    link: &mut NodeLink,
    connection: &Connection,
    duplicate: &Duplicate,
) -> Result<anyhow::Error> {
    let reason = duplicate.reason();
    warn!(node = %link.node, from = %link.from, "refused a duplicate: {reason}");
    if duplicate.is_new {
        let action = format!(
            "refused a second machine with the identity of node {}, at {}",
            link.node,
            link.from.ip()
        );
        let context = link.context_with_origin();
        link.mesh.change(&context, |_| Ok(Plan::noted(action.clone()))).await?;
    }
    link.send(&FromCoordinator::StandBy { reason: reason.clone() }).await?;
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.closed()).await;
    connection.close(6u32.into(), reason.as_bytes());
    Ok(anyhow::anyhow!("two machines have the identity of node {}", link.node))
}

/// Receives the node's endpoints and workloads, part by part. A workload that the budget does not
/// allow is refused.
///
/// # Errors
/// Fails if a message of another type comes, or too many parts.
pub(super) async fn receive_inventory(
    link: &mut NodeLink,
    inbox: &mut Inbox,
    budget: &mut BudgetMeter,
) -> Result<Inventory> {
    let mut all_endpoints = BTreeMap::new();
    // By id: a later report of a workload replaces an earlier one.
    let mut reports = BTreeMap::new();
    let (mut parts, mut elements) = (0, 0);
    loop {
        let FromNode::Inventory { endpoints, workloads, is_last } =
            inbox.expect(FIRST_MESSAGE).await?
        else {
            anyhow::bail!("the node sent another message before it had listed all that it has");
        };
        parts += 1;
        elements += endpoints.len() + workloads.len();
        anyhow::ensure!(
            parts <= MAX_PARTS && elements <= MAX_ELEMENTS,
            "the node lists more than {MAX_ELEMENTS} endpoints and workloads"
        );
        for report in endpoints {
            if link.mesh.look(|world| world.networks.contains_key(&report.network)) {
                all_endpoints.insert(report.network.clone(), report);
            }
        }
        for report in workloads {
            match budget.add(&report) {
                Ok(()) => drop(reports.insert(report.id.clone(), report)),
                Err(limit) => {
                    reports.remove(&report.id);
                    budget.refuse(report.id, limit, link).await?;
                }
            }
        }
        if is_last {
            return Ok(Inventory {
                endpoints: all_endpoints.into_values().collect(),
                workloads: reports.into_values().collect(),
            });
        }
    }
}
