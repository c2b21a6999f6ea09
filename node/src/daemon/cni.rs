//! Containers that the CNI plugin places: what the local API does for it.

use super::{
    Node, Refusal,
    containers::{Found, Place, Placed},
    workloads::check_unattached,
};
use crate::attachment::{self, Attachment, Origin};
use meshward_api_types::local::{
    AttachedContainer, ContainerKey, DryRun, PlaceContainer, PlacedContainer,
};
use meshward_control_proto::view::NetworkSpec;
use meshward_types::{NetworkName, WorkloadId};
use std::{net::IpAddr, path::Path};
use tracing::info;

impl Node {
    /// Attaches a container, closed until it is measured. Asked for what is there already, it gives
    /// that; what was placed and is gone is placed again, with the same addresses.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left of it.
    pub async fn place_container(
        &self,
        wanted: PlaceContainer,
        dry_run: DryRun,
    ) -> Result<PlacedContainer, Refusal> {
        let PlaceContainer {
            network,
            container,
            interface,
            named,
            netns,
            addresses,
            engine,
            pod,
            declared,
        } = wanted;
        let spec = self.network(&network).await?;
        let key = ContainerKey { container: container.clone(), interface: interface.clone() };
        let mut reserved = Vec::new();
        match self.look_at_container(&key, &network, &spec, &netns, &addresses).await? {
            Standing::Missing => {}
            Standing::There { id, addresses } => {
                return Ok(PlacedContainer {
                    id,
                    addresses,
                    prefixes: spec.prefixes,
                    mtu: spec.mtu,
                });
            }
            Standing::Gone { id, addresses, .. } if dry_run.0 => {
                return Ok(PlacedContainer {
                    id,
                    addresses,
                    prefixes: spec.prefixes,
                    mtu: spec.mtu,
                });
            }
            Standing::Gone { id, network: of, addresses: own } => {
                if of == network && addresses.iter().all(|address| own.contains(address)) {
                    self.hold_addresses(&network, &own).await;
                    reserved = own;
                }
                self.let_go(&id).await?;
            }
        }
        for ipv6 in [false, true] {
            if addresses.iter().filter(|address| address.is_ipv6() == ipv6).count() > 1 {
                return Err(Refusal::Invalid(
                    "at most one address of each family can be asked for".into(),
                ));
            }
        }
        if reserved.is_empty() && !addresses.is_empty() {
            for block in &spec.blocks {
                let ipv6 = block.addr().is_ipv6();
                let wanted = addresses.iter().find(|address| address.is_ipv6() == ipv6);
                match self.reserve(&network, ipv6, wanted.copied()).await {
                    Ok(address) => reserved.push(address),
                    Err(refusal) => {
                        self.free_all(&network, &reserved).await;
                        return Err(refusal);
                    }
                }
            }
        }
        if dry_run.0 {
            let placed = self.rehearse_placing(&network, &spec, &netns, &reserved).await;
            self.free_all(&network, &reserved).await;
            return placed;
        }
        let measured_by_others = engine.is_some() || pod.is_some();
        let origin = Origin::Cni { container, asked: interface, engine, pod };
        let place = Place {
            network: network.clone(),
            addresses: reserved.clone(),
            netns,
            interface: named,
            origin,
        };
        let Placed { id, addresses, network: spec } = match self.place(place).await {
            Ok(placed) => placed,
            Err(refusal) => {
                self.free_all(&network, &reserved).await;
                return Err(refusal);
            }
        };
        if !measured_by_others {
            let (name, labels, accepts) = (declared.name, declared.labels, declared.accepts);
            self.settle(&id, Found { name, labels, accepts, ..Found::default() }).await;
        }
        Ok(PlacedContainer { id, addresses, prefixes: spec.prefixes, mtu: spec.mtu })
    }

    /// Compares what is known of a container with what is there: with the namespace, and with the
    /// interface in it.
    async fn look_at_container(
        &self,
        key: &ContainerKey,
        network: &NetworkName,
        spec: &NetworkSpec,
        netns: &Path,
        wanted: &[IpAddr],
    ) -> Result<Standing, Refusal> {
        let Some((there, attachment)) = self.find(|attachment| is(attachment, key)).await else {
            return Ok(Standing::Missing);
        };
        let opened = attachment::netns_of(netns);
        let (_, netns_id) = opened.map_err(|error| Refusal::Invalid(error.to_string()))?;
        let is_same = attachment.netns_id == Some(netns_id) && there.network == *network;
        let holds = self.holds_interface(&there.id, &attachment).await;
        if !holds {
            info!(workload = %there.id, container = key.container, "its interface or namespace is gone");
            let (id, network, addresses) = (there.id, there.network, there.addresses);
            return Ok(Standing::Gone { id, network, addresses });
        }
        if !is_same {
            return Err(Refusal::Invalid(format!(
                "container {} has an interface {} already, in network {} and namespace {}; detach it first",
                key.container,
                key.interface,
                there.network,
                there.netns.display()
            )));
        }
        if let Some(other) = wanted.iter().find(|address| !there.addresses.contains(address)) {
            return Err(Refusal::Invalid(format!(
                "container {} has an interface {} already, without the address {other}; detach it first",
                key.container, key.interface
            )));
        }
        let spec = spec.clone();
        let mended = tokio::task::spawn_blocking(move || {
            if attachment.is_set_up(&spec) { Ok(()) } else { attachment.mend(&spec) }
        });
        let mended = mended.await.map_err(|panic| Refusal::Failed(panic.to_string()))?;
        mended.map_err(|error| Refusal::Failed(error.to_string()))?;
        Ok(Standing::There { id: there.id, addresses: there.addresses })
    }

    async fn rehearse_placing(
        &self,
        network: &NetworkName,
        spec: &NetworkSpec,
        netns: &Path,
        reserved: &[IpAddr],
    ) -> Result<PlacedContainer, Refusal> {
        let opened = attachment::netns_of(netns);
        let (_, netns_id) = opened.map_err(|error| Refusal::Invalid(error.to_string()))?;
        let empty = self.empty_in(network, netns_id).await;
        let mut state = self.state.lock().await;
        check_unattached(&state, network, netns_id, netns, empty.as_ref())?;
        let addresses = match reserved.is_empty() {
            true => {
                let before = state.endpoints.get(network).map(|running| running.allocator.clone());
                let addresses = self.allocate(&mut state, network, &spec.blocks);
                if let (Some(running), Some(before)) = (state.endpoints.get_mut(network), before) {
                    running.allocator = before;
                }
                addresses?
            }
            false => reserved.to_vec(),
        };
        let (id, prefixes, mtu) = (attachment::new_id(), spec.prefixes.clone(), spec.mtu);
        Ok(PlacedContainer { id, addresses, prefixes, mtu })
    }

    async fn free_all(&self, network: &NetworkName, addresses: &[IpAddr]) {
        for address in addresses {
            self.free(network, *address).await;
        }
    }

    /// A container as it is attached.
    ///
    /// # Errors
    /// [`Refusal::Missing`].
    pub async fn container(&self, key: ContainerKey) -> Result<AttachedContainer, Refusal> {
        let (workload, attachment) =
            self.find(|attachment| is(attachment, &key)).await.ok_or_else(|| missing(&key))?;
        let spec = self.network(&workload.network).await?;
        let is_there = self.holds_interface(&workload.id, &attachment).await;
        let is_set_up = tokio::task::spawn_blocking(move || attachment.is_set_up(&spec)).await;
        Ok(AttachedContainer { workload, is_there: is_there && is_set_up.unwrap_or(false) })
    }

    /// Detaches a container.
    ///
    /// # Errors
    /// [`Refusal::Missing`] if it is not there.
    pub async fn remove_container(
        &self,
        key: ContainerKey,
        dry_run: DryRun,
    ) -> Result<(), Refusal> {
        let (workload, _) =
            self.find(|attachment| is(attachment, &key)).await.ok_or_else(|| missing(&key))?;
        self.detach_if(&workload.id, dry_run).await
    }

    /// The containers of a network that the CNI plugin has placed.
    pub async fn containers_in(&self, network: &NetworkName) -> Vec<ContainerKey> {
        let own = |attachment: &Attachment| attachment.report.network == *network;
        let all = self.find_all(own).await.into_iter();
        all.filter_map(|(_, attachment)| match attachment.origin {
            Origin::Cni { container, .. } => {
                Some(ContainerKey { container, interface: attachment.interface })
            }
            Origin::Local | Origin::Route | Origin::Device | Origin::Docker { .. } => None,
        })
        .collect()
    }
}

/// What has become of a container that was placed.
enum Standing {
    /// It was not placed.
    Missing,
    /// It is as it was placed.
    There { id: WorkloadId, addresses: Vec<IpAddr> },
    /// Its interface or its namespace is gone.
    Gone { id: WorkloadId, network: NetworkName, addresses: Vec<IpAddr> },
}

fn is(attachment: &Attachment, key: &ContainerKey) -> bool {
    matches!(&attachment.origin, Origin::Cni { container, asked, .. } if *container == key.container && *asked == key.interface)
}

fn missing(key: &ContainerKey) -> Refusal {
    Refusal::Missing(format!(
        "container {} has no interface {} on the mesh",
        key.container, key.interface
    ))
}
