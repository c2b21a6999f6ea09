//! Containers that the CNI plugin attaches, on behalf of the local API.

use super::{
    containers::{AttachedContainer, ContainerFacts, NewContainer},
    interfaces::check_unattached,
    state::Workloads,
};
use crate::{
    attachment::{self, Attachment, Origin},
    refusal::Refusal,
};
use meshward_api_types::local::{
    AddContainer, AddedContainer, AttachedContainer as ShownContainer, ContainerKey, DryRun,
};
use meshward_control_proto::view::NetworkSpec;
use meshward_netns::NetnsId;
use meshward_types::{NetworkName, WorkloadId};
use std::{net::IpAddr, path::Path};
use tracing::info;

impl Workloads {
    /// Attaches a container, closed until it is measured. A container that is attached already is
    /// given as it is; one whose interface is gone is attached again, with the same addresses.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left of it.
    pub async fn add_container(
        &self,
        wanted: AddContainer,
        dry_run: DryRun,
    ) -> Result<AddedContainer, Refusal> {
        let network = &wanted.network;
        let spec = self.enforcement.wait_network(network).await?;
        let shown = |id, addresses| AddedContainer {
            id,
            addresses,
            prefixes: spec.prefixes.clone(),
            mtu: spec.mtu,
            resolver: spec.resolver.clone(),
        };
        let mut reserved = Vec::new();
        match self.look_at_container(&wanted, &spec).await? {
            ContainerState::Missing => {}
            ContainerState::Attached { id, addresses } => return Ok(shown(id, addresses)),
            ContainerState::Lost { id, addresses, .. } if dry_run.0 => {
                return Ok(shown(id, addresses));
            }
            ContainerState::Lost { id, network: of, addresses: own } => {
                if of == *network && wanted.addresses.iter().all(|address| own.contains(address)) {
                    self.reserve_all(network, &own);
                    reserved = own;
                }
                self.detach_lost(&id)?;
            }
        }
        if reserved.is_empty() {
            reserved = self.reserve_wanted(network, &spec, &wanted.addresses).await?;
        }
        if dry_run.0 {
            let rehearsed = self.rehearse_container(network, &spec, &wanted.netns, &reserved).await;
            self.release_all(network, &reserved);
            return rehearsed;
        }
        let attached = self.attach_wanted(wanted, reserved).await?;
        let AttachedContainer { id, addresses, network: spec } = attached;
        let NetworkSpec { prefixes, mtu, resolver, .. } = spec;
        Ok(AddedContainer { id, addresses, prefixes, mtu, resolver })
    }

    /// Reserves the addresses that a container is to have; none if it asks for none.
    async fn reserve_wanted(
        &self,
        network: &NetworkName,
        spec: &NetworkSpec,
        addresses: &[IpAddr],
    ) -> Result<Vec<IpAddr>, Refusal> {
        for ipv6 in [false, true] {
            if addresses.iter().filter(|address| address.is_ipv6() == ipv6).count() > 1 {
                return Err(Refusal::Invalid(
                    "at most one address of each family can be asked for".into(),
                ));
            }
        }
        let mut reserved = Vec::new();
        if addresses.is_empty() {
            return Ok(reserved);
        }
        for block in &spec.blocks {
            let ipv6 = block.addr().is_ipv6();
            let wanted = addresses.iter().find(|address| address.is_ipv6() == ipv6);
            match self.reserve(network, ipv6, wanted.copied()).await {
                Ok(address) => reserved.push(address),
                Err(refusal) => {
                    self.release_all(network, &reserved);
                    return Err(refusal);
                }
            }
        }
        Ok(reserved)
    }

    async fn attach_wanted(
        &self,
        wanted: AddContainer,
        reserved: Vec<IpAddr>,
    ) -> Result<AttachedContainer, Refusal> {
        let AddContainer { network, container, interface, named, netns, declared, .. } = wanted;
        let is_measured_elsewhere = wanted.engine.is_some() || wanted.pod.is_some();
        let origin =
            Origin::Cni { container, asked: interface, engine: wanted.engine, pod: wanted.pod };
        let new = NewContainer {
            network: network.clone(),
            addresses: reserved.clone(),
            netns,
            interface: named,
            origin,
        };
        let attached = match self.attach_container(new).await {
            Ok(attached) => attached,
            Err(refusal) => {
                self.release_all(&network, &reserved);
                return Err(refusal);
            }
        };
        if !is_measured_elsewhere {
            let (name, labels, accepts) = (declared.name, declared.labels, declared.accepts);
            let facts = ContainerFacts { name, labels, accepts, ..ContainerFacts::default() };
            self.record_facts(&attached.id, facts);
        }
        Ok(attached)
    }

    /// Compares what is known of a container with what is there: with the namespace, and with the
    /// interface in it.
    async fn look_at_container(
        &self,
        wanted: &AddContainer,
        spec: &NetworkSpec,
    ) -> Result<ContainerState, Refusal> {
        let AddContainer { network, container, interface, netns, addresses, .. } = wanted;
        let key = ContainerKey { container: container.clone(), interface: interface.clone() };
        let Some((there, attachment)) = self.find(|attachment| is(attachment, &key)) else {
            return Ok(ContainerState::Missing);
        };
        let netns_id =
            NetnsId::of_path(netns).map_err(|error| Refusal::Invalid(error.to_string()))?;
        let is_same = attachment.netns_id == Some(netns_id) && there.network == *network;
        let holds = self.has_interface(&there.id, &attachment).await;
        if !holds {
            info!(workload = %there.id, container = key.container, "its interface or namespace is \
                gone");
            let (id, network, addresses) = (there.id, there.network, there.addresses);
            return Ok(ContainerState::Lost { id, network, addresses });
        }
        if !is_same {
            return Err(Refusal::Invalid(format!(
                "container {} has an interface {} already, in network {} and namespace {}; detach \
                it first",
                key.container,
                key.interface,
                there.network,
                there.netns.display()
            )));
        }
        if let Some(other) = addresses.iter().find(|address| !there.addresses.contains(address)) {
            return Err(Refusal::Invalid(format!(
                "container {} has an interface {} already, without the address {other}; detach it \
                first",
                key.container, key.interface
            )));
        }
        let spec = spec.clone();
        let mended = tokio::task::spawn_blocking(move || {
            if attachment.is_configured(&spec) { Ok(()) } else { attachment.configure(&spec) }
        });
        let mended = mended.await.map_err(|panic| Refusal::Failed(panic.to_string()))?;
        mended.map_err(|error| Refusal::Failed(error.to_string()))?;
        Ok(ContainerState::Attached { id: there.id, addresses: there.addresses })
    }

    async fn rehearse_container(
        &self,
        network: &NetworkName,
        spec: &NetworkSpec,
        netns: &Path,
        reserved: &[IpAddr],
    ) -> Result<AddedContainer, Refusal> {
        let netns_id =
            NetnsId::of_path(netns).map_err(|error| Refusal::Invalid(error.to_string()))?;
        let lost = self.without_interface(network, netns_id).await;
        let before = self.allocator(network);
        let mut state = self.state.lock();
        check_unattached(&state, network, netns_id, netns, lost.as_ref())?;
        let addresses = match reserved.is_empty() {
            true => {
                let addresses = self.allocate(&mut state, network, &spec.blocks);
                state.allocators.insert(network.clone(), before);
                addresses?
            }
            false => reserved.to_vec(),
        };
        let NetworkSpec { prefixes, mtu, resolver, .. } = spec.clone();
        Ok(AddedContainer { id: attachment::new_id(), addresses, prefixes, mtu, resolver })
    }

    fn release_all(&self, network: &NetworkName, addresses: &[IpAddr]) {
        for address in addresses {
            self.release(network, *address);
        }
    }

    /// Returns a container as it is attached.
    ///
    /// # Errors
    /// [`Refusal::Missing`].
    pub async fn container(&self, key: ContainerKey) -> Result<ShownContainer, Refusal> {
        let (workload, attachment) =
            self.find(|attachment| is(attachment, &key)).ok_or_else(|| missing(&key))?;
        let spec = self.enforcement.wait_network(&workload.network).await?;
        let is_there = self.has_interface(&workload.id, &attachment).await;
        let is_set_up = tokio::task::spawn_blocking(move || attachment.is_configured(&spec)).await;
        Ok(ShownContainer { workload, is_there: is_there && is_set_up.unwrap_or(false) })
    }

    /// Detaches a container.
    ///
    /// # Errors
    /// [`Refusal::Missing`] if it is not there.
    pub fn remove_container(&self, key: &ContainerKey, dry_run: DryRun) -> Result<(), Refusal> {
        let (workload, _) =
            self.find(|attachment| is(attachment, key)).ok_or_else(|| missing(key))?;
        self.detach_if(&workload.id, dry_run)
    }

    /// Returns the containers of a network that the CNI plugin has attached.
    pub fn containers_in(&self, network: &NetworkName) -> Vec<ContainerKey> {
        let own = |attachment: &Attachment| attachment.report.network == *network;
        let all = self.find_all(own).into_iter();
        all.filter_map(|(_, attachment)| match attachment.origin {
            Origin::Cni { container, .. } => {
                Some(ContainerKey { container, interface: attachment.interface })
            }
            Origin::Local | Origin::Route | Origin::Device | Origin::Docker { .. } => None,
        })
        .collect()
    }
}

/// The state of a container that the CNI plugin asks for.
enum ContainerState {
    /// The container is not attached.
    Missing,
    /// The container is attached.
    Attached { id: WorkloadId, addresses: Vec<IpAddr> },
    /// The container's interface or namespace is gone.
    Lost { id: WorkloadId, network: NetworkName, addresses: Vec<IpAddr> },
}

fn is(attachment: &Attachment, key: &ContainerKey) -> bool {
    matches!(
        &attachment.origin,
        Origin::Cni { container, asked, .. }
            if *container == key.container && *asked == key.interface
    )
}

fn missing(key: &ContainerKey) -> Refusal {
    Refusal::Missing(format!(
        "container {} has no interface {} on the mesh",
        key.container, key.interface
    ))
}
