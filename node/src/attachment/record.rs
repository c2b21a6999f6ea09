//! The record of an attached workload.

use super::owner::Owner;
use meshward_api_types::local::Pod;
use meshward_control_proto::WorkloadReport;
use meshward_netns::{Netns, NetnsId};
use meshward_runtime::random;
use meshward_types::{Health, ServiceName, WorkloadId, measurement::Measurement};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

/// The findings of a workload's health checks, by the services that want them. Without a finding,
/// the workload counts as healthy.
pub(crate) type Findings = BTreeMap<ServiceName, Health>;

/// An attached workload. It is kept on disk, so that a restarted daemon finds it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// The workload, as the coordinator is told of it.
    pub(crate) report: WorkloadReport,
    /// The path of its network namespace.
    pub(crate) netns: PathBuf,
    /// The identity of the namespace: another one under the same path is not mistaken for it.
    /// `None` until Docker has made the namespace and moved the interface there.
    pub(crate) netns_id: Option<NetnsId>,
    /// The process whose end detaches it.
    pub(crate) owner: Option<Owner>,
    /// The name of its interface.
    pub(crate) interface: String,
    /// The address from which it has sent last, if it is a device.
    pub(crate) last_address: Option<SocketAddr>,
    /// The end of a quarantine that this node has decided by itself, in seconds since the epoch.
    pub(crate) quarantined_until: Option<u64>,
    /// The maker of the namespace.
    pub(crate) origin: Origin,
    /// `true` once it is known what runs in it. Before, nobody is told of it, and nothing passes.
    pub(crate) measured: bool,
    /// The measurement under which it was admitted, while it is something else and the coordinator
    /// is away, which would have to admit that: it is closed.
    pub(crate) admitted_as: Option<Arc<Measurement>>,
    /// The findings of health checks, by the services that want them.
    pub(crate) findings: Findings,
}

/// The maker of a workload's namespace, and the workload's name there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A user of this machine, who names it by its path.
    #[default]
    Local,
    /// None: a device has no namespace here.
    Device,
    /// The host: the workload represents the prefixes behind it.
    Route,
    /// Docker, by the network plugin.
    Docker {
        /// libnetwork's id of the endpoint.
        endpoint: String,
    },
    /// A container runtime, by the CNI plugin.
    Cni {
        /// The id of the container or pod.
        container: String,
        /// The runtime's name for the interface.
        asked: String,
        /// The socket of an API like Docker's that knows the container.
        engine: Option<PathBuf>,
        /// The pod that it is, if Kubernetes is to be asked.
        pod: Option<Pod>,
    },
}

impl Attachment {
    /// Creates the record of a workload that is in no namespace yet, has no owner, and was not
    /// measured.
    pub(crate) fn new(
        report: WorkloadReport,
        netns: PathBuf,
        interface: String,
        origin: Origin,
    ) -> Self {
        Self {
            report,
            netns,
            netns_id: None,
            owner: None,
            interface,
            last_address: None,
            quarantined_until: None,
            origin,
            measured: false,
            admitted_as: None,
            findings: Findings::new(),
        }
    }

    /// Returns `true` once its interface is in its namespace.
    pub(crate) fn is_in_namespace(&self) -> bool {
        self.netns_id.is_some()
    }

    /// Returns `true` while the workload's namespace and owner exist.
    pub(crate) fn lives(&self) -> bool {
        self.origin == Origin::Device
            || self.owner.is_none_or(|owner| owner.lives()) && self.open_netns().is_some()
    }

    /// Opens its namespace; `None` if it is gone, or another one has its path.
    pub(crate) fn open_netns(&self) -> Option<Netns> {
        let netns = Netns::open(&self.netns).ok()?;
        (netns.id().ok() == self.netns_id).then_some(netns)
    }

    /// Returns `true` if a daemon that was restarted finds what was attached: its interface
    /// outlives the daemon. The kernel reuses numbers of namespaces, so a namespace without the
    /// interface may be another one with the same path and number.
    pub(crate) fn outlived_daemon(&self) -> bool {
        match self.origin {
            Origin::Device => true,
            // The namespace is the host's: no other can be mistaken for it.
            Origin::Route => self.lives(),
            Origin::Local | Origin::Docker { .. } | Origin::Cni { .. } => {
                self.lives() && self.has_interface()
            }
        }
    }
}

/// Returns the services for which findings say that a workload is unhealthy.
pub(crate) fn unhealthy_for(findings: &Findings) -> Vec<ServiceName> {
    let ill = findings.iter().filter(|(_, health)| **health == Health::Unhealthy);
    ill.map(|(service, _)| service.clone()).collect()
}

/// Returns a new workload id.
pub(crate) fn new_id() -> WorkloadId {
    let number = random::<6>().iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    // `w-` and hexadecimal digits are a name.
    format!("w-{number:012x}").parse().expect("a workload id is a name")
}
