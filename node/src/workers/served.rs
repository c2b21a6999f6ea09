//! An endpoint with its sockets and its workloads' TUNs.

use super::{source_addresses::SourceAddresses, tasks::TaskQueue};
use crate::{
    clock,
    names::{
        self,
        resolver::{Effect, NetworkResolver},
    },
    offloads::Offloads,
    relay_queue,
    sys::{self, Tun},
};
use meshward_control_proto::Change;
use meshward_datapath::{CoalesceOptions, ConfigChange, Endpoint, WorkloadIndex};
use meshward_types::{Revision, relay::RelayNetwork};
use parking_lot::RwLock;
use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// An endpoint that is served.
pub struct ServedEndpoint {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The network's names.
    pub(crate) resolver: NetworkResolver,
    pub(super) number: u32,
    /// `true` if its sockets are IPv6 ones, which reach IPv4 by mapped addresses.
    pub(super) ipv6: bool,
    /// The source addresses by peer.
    pub(super) sources: SourceAddresses,
    /// The sockets, one for each worker.
    pub(super) sockets: Vec<UdpSocket>,
    /// The workloads' interfaces by index.
    pub(super) interfaces: RwLock<Vec<Option<Tun>>>,
    pub(super) offloads: OffloadFlags,
    pub(super) queue: TaskQueue,
    pub(super) relay: relay_queue::Sender,
    /// The network's number in relayed messages.
    pub(super) relayed_as: RelayNetwork,
}

/// The offloads in use; each is cleared once the kernel has refused it.
#[derive(Debug)]
pub(super) struct OffloadFlags {
    pub(super) tcp_segmentation: AtomicBool,
    pub(super) udp_segmentation: AtomicBool,
    pub(super) batched_sending: AtomicBool,
    pub(super) batched_receiving: bool,
}

impl ServedEndpoint {
    /// Applies changes of the network's view: when this returns, they are in force for the next
    /// packet and the next query. `config`: the changes as the endpoint's configuration.
    pub(crate) fn apply<'a>(
        &self,
        revision: Revision,
        config: Vec<ConfigChange>,
        changes: impl IntoIterator<Item = &'a Change>,
    ) {
        let services = config.iter().filter_map(names::changes::of_config).collect();
        self.endpoint.apply(clock::now(), config);
        if self.resolver.apply(revision, changes, services) == Effect::Settings {
            let streams = self.endpoint.resolver().streams;
            self.endpoint.set_resolver(self.resolver.config(streams));
            self.resolver.request_configuration();
        }
    }

    /// Returns what may be coalesced for its workloads' interfaces.
    pub(super) fn coalesce_options(&self) -> CoalesceOptions {
        let OffloadFlags { tcp_segmentation, udp_segmentation, .. } = &self.offloads;
        CoalesceOptions { tcp: tcp_segmentation.load(Relaxed), udp: udp_segmentation.load(Relaxed) }
    }

    /// Returns the name of a workload's interface, in whatever namespace it is.
    pub(crate) fn interface_name(&self, index: WorkloadIndex) -> Option<String> {
        let interfaces = self.interfaces.read();
        sys::tun_name(interfaces.get(index.position())?.as_ref()?).ok()
    }

    /// Returns the offloads that are in use.
    pub fn offloads(&self) -> Offloads {
        let flags: &OffloadFlags = &self.offloads;
        Offloads {
            tcp_segmentation: flags.tcp_segmentation.load(Relaxed),
            udp_segmentation: flags.udp_segmentation.load(Relaxed),
            batched_sending: flags.batched_sending.load(Relaxed),
            batched_receiving: flags.batched_receiving,
        }
    }
}
