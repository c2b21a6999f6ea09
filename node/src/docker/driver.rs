//! The network driver and the IPAM driver. Docker's networks and endpoints are kept on disk: Docker
//! does not repeat them after a restart of this daemon, nor its requests for addresses after one of
//! its own.

use super::bodies::{
    ADDRESS_TYPE, Address, AddressOfPool, CreateEndpoint, CreateNetwork, CreatedEndpoint, GATEWAY,
    GENERIC, Interface, InterfaceName, Join, Joined, OfEndpoint, OfNetwork, Pool, RequestPool,
    StaticRoute, address,
};
use crate::{
    app::Node,
    attachment::{Attachment, Origin},
    folder::DOCKER,
    names::host,
    refusal::Refusal,
    runtimes::Engine,
    state_files::{DockerEndpoint, DockerFile},
    workloads::NewContainer,
};
use anyhow::Result;
use ipnet::IpNet;
use meshward_control_proto::view::NetworkSpec;
use meshward_types::{NetworkName, dns::servers_for};
use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Mutex;
use tracing::{debug, info};

/// The pause before connecting to Docker again.
const RECONNECT: Duration = Duration::from_secs(1);
/// The prefix of interfaces' names before Docker has moved them; a part of the endpoint's id
/// follows.
const BEFORE: &str = "mw";
/// The name servers that Docker takes if the host has none but on its loopback interface.
const DOCKER_SERVERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4))];
/// The prefix of their names in the container; a number follows.
const WITHIN: &str = "mesh";

/// The drivers.
pub(super) struct Driver {
    node: Arc<Node>,
    kept: Mutex<DockerFile>,
    /// Endpoints that were kept at the start: Docker may have ended them meanwhile.
    unsure: Mutex<BTreeSet<String>>,
}

impl Driver {
    /// Restores networks and endpoints from disk; a file that cannot be read is set aside.
    pub(super) fn restore(node: Arc<Node>) -> Self {
        let kept: DockerFile = node.folder.read_state(DOCKER).unwrap_or_default();
        let addresses = kept.endpoints.values().flat_map(|endpoint| {
            endpoint.addresses.iter().map(|address| (endpoint.network.clone(), *address))
        });
        node.workloads.restore_reserved(addresses);
        let unsure = kept.endpoints.keys().cloned().collect();
        Self { node, kept: Mutex::new(kept), unsure: Mutex::new(unsure) }
    }

    /// Listens to Docker, for ever, so that a container is measured as soon as it runs; and lets go
    /// of what Docker has ended while this daemon was away.
    pub(super) async fn follow(&self) {
        loop {
            let followed = async {
                let engine = Engine::connect(&self.node.config.docker_socket).await?;
                if !self.unsure.lock().await.is_empty() {
                    let running = engine.running().await?;
                    let unsure = std::mem::take(&mut *self.unsure.lock().await);
                    for endpoint_id in
                        unsure.into_iter().filter(|id| !running.by_endpoint.contains_key(id))
                    {
                        info!(endpoint = endpoint_id, "Docker has ended it meanwhile");
                        self.delete_endpoint(OfEndpoint { endpoint_id }).await?;
                    }
                }
                self.node.workloads.to_measure.notify_one();
                engine.follow(|| self.node.workloads.to_measure.notify_one()).await;
                anyhow::Ok(())
            };
            if let Err(error) = followed.await {
                debug!("{error:#}");
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    async fn keep(&self, kept: &DockerFile) -> Result<(), Refusal> {
        let folder = &self.node.folder;
        folder
            .write_state_later(DOCKER, kept)
            .map_err(|error| Refusal::Failed(format!("{error:#}")))?;
        folder.flush().await;
        Ok(())
    }

    /// Gives the prefix of a network of the mesh as a pool.
    pub(super) async fn request_pool(&self, wanted: RequestPool) -> Result<Pool, Refusal> {
        if !wanted.sub_pool.is_empty() {
            return Err(Refusal::Invalid(
                "this node gives addresses from its own block; leave out `--ip-range`".into(),
            ));
        }
        let subnet: Option<IpNet> = match wanted.pool.as_str() {
            "" => None,
            text => Some(read_subnet(text)?),
        };
        let named = wanted.options.as_ref().and_then(|options| options.get("network"));
        let (name, spec) = self.choose(named.map(String::as_str), subnet).await?;
        let pool = prefix(&name, &spec, wanted.ipv6)?;
        if let Some(subnet) = subnet
            && subnet.trunc() != pool
        {
            return Err(Refusal::Invalid(format!(
                "network {name} of the mesh has the prefix {pool}, not {subnet}"
            )));
        }
        let family = if wanted.ipv6 { 6 } else { 4 };
        // Named, so that Docker does not ask for one. Nobody has this address: packets leave by the
        // interface alone.
        let data = HashMap::from([(
            GATEWAY,
            IpNet::new_assert(pool.network(), pool.prefix_len()).to_string(),
        )]);
        Ok(Pool { id: format!("{name}/{family}"), subnet: pool, data })
    }

    /// The network that is named, or the one that is meant where none is.
    async fn choose(
        &self,
        named: Option<&str>,
        subnet: Option<IpNet>,
    ) -> Result<(NetworkName, NetworkSpec), Refusal> {
        let Some(name) = named else { return self.guess(subnet).await };
        let name: NetworkName =
            name.parse().map_err(|error| Refusal::Invalid(format!("{error}")))?;
        let spec = self.node.enforcement.wait_network(&name).await?;
        Ok((name, spec))
    }

    /// The network that a pool is of which was asked for without a name.
    async fn guess(&self, subnet: Option<IpNet>) -> Result<(NetworkName, NetworkSpec), Refusal> {
        let mut networks = self.node.enforcement.wait_networks().await;
        if let Some(subnet) = subnet {
            networks.retain(|(_, spec)| spec.prefixes.contains(&subnet.trunc()));
        }
        let names: Vec<String> = networks.iter().map(|(name, _)| name.to_string()).collect();
        match networks.pop() {
            Some(only) if networks.is_empty() => Ok(only),
            Some(_) => Err(Refusal::Invalid(format!(
                "this node serves several networks ({}); add `--ipam-opt network=NAME`",
                names.join(", ")
            ))),
            None => Err(Refusal::Missing(match subnet {
                Some(subnet) => {
                    format!("no network of the mesh has the prefix {subnet}; leave out `--subnet`")
                }
                None => "this node serves no network of the mesh yet".into(),
            })),
        }
    }

    /// Gives an address of a pool.
    pub(super) async fn request_address(&self, wanted: AddressOfPool) -> Result<Address, Refusal> {
        let AddressPool { network: name, ipv6 } = read_pool(&wanted.pool_id)?;
        let pool = prefix(&name, &self.node.enforcement.wait_network(&name).await?, ipv6)?;
        let kind = wanted.options.as_ref().and_then(|options| options.get(ADDRESS_TYPE));
        if kind.is_some_and(|kind| kind == GATEWAY) {
            return Ok(Address { address: IpNet::new_assert(pool.network(), pool.prefix_len()) });
        }
        let preferred = address(&wanted.address).map_err(Refusal::Invalid)?;
        let address = self.node.workloads.reserve(&name, ipv6, preferred).await?;
        Ok(Address { address: IpNet::new_assert(address, pool.prefix_len()) })
    }

    /// Takes an address back. Docker also brings, without a pool, those that the network driver
    /// gave: they go with the endpoint.
    pub(super) fn release_address(&self, given: &AddressOfPool) -> Result<(), Refusal> {
        if given.pool_id.is_empty() {
            return Ok(());
        }
        let AddressPool { network: name, .. } = read_pool(&given.pool_id)?;
        if let Some(address) = address(&given.address).map_err(Refusal::Invalid)? {
            self.node.workloads.release(&name, address);
        }
        Ok(())
    }

    /// Notes which network of the mesh one of Docker's is.
    pub(super) async fn create_network(&self, wanted: CreateNetwork) -> Result<(), Refusal> {
        let generic = wanted.options.as_ref().and_then(|options| options.get(GENERIC));
        let named = generic.and_then(|generic| generic.get("network")?.as_str());
        let pools = wanted.ipv4.iter().chain(&wanted.ipv6).flatten();
        let pools: Vec<IpNet> =
            pools.map(|data| read_subnet(&data.pool)).collect::<Result<_, _>>()?;
        let (name, spec) = self.choose(named, pools.first().copied()).await?;
        if let Some(other) = pools.iter().find(|pool| !spec.prefixes.contains(pool)) {
            return Err(Refusal::Invalid(format!(
                "Docker would give out addresses of {other}, which are not those of network \
                {name}; add `--ipam-driver meshward --ipam-opt network={name}`"
            )));
        }
        let mut kept = self.kept.lock().await;
        kept.networks.insert(wanted.network_id, name.clone());
        self.keep(&kept).await?;
        info!(network = %name, "a network of Docker's is on the mesh");
        Ok(())
    }

    /// Forgets one of Docker's networks.
    pub(super) async fn delete_network(&self, gone: OfNetwork) -> Result<(), Refusal> {
        let mut kept = self.kept.lock().await;
        if kept.networks.remove(&gone.network_id).is_some() {
            self.keep(&kept).await?;
        }
        Ok(())
    }

    /// Notes the addresses of a container-to-be; those of the other family are added.
    pub(super) async fn create_endpoint(
        &self,
        wanted: CreateEndpoint,
    ) -> Result<CreatedEndpoint, Refusal> {
        let mut kept = self.kept.lock().await;
        let name = known(&kept, &wanted.network_id)?;
        let spec = self.node.enforcement.wait_network(&name).await?;
        let given = wanted.interface.unwrap_or_default();
        let mut addresses = Vec::new();
        for text in [&given.address, &given.address_ipv6] {
            addresses.extend(address(text).map_err(Refusal::Invalid)?);
        }
        if addresses.is_empty()
            || !addresses
                .iter()
                .all(|address| spec.blocks.iter().any(|block| block.contains(address)))
        {
            return Err(Refusal::Invalid(format!(
                "Docker gave the container an address that is not of this node's block of network \
                {name}; make the network anew with `--ipam-driver meshward`"
            )));
        }
        // Docker takes what it has not given by itself.
        let mut interface = Interface::default();
        let has_ipv6 = spec.blocks.iter().any(|block| block.addr().is_ipv6());
        if has_ipv6 && given.address_ipv6.is_empty() {
            let pool = prefix(&name, &spec, true)?;
            let address = self.node.workloads.reserve(&name, true, None).await?;
            interface.address_ipv6 = IpNet::new_assert(address, pool.prefix_len()).to_string();
            addresses.push(address);
        }
        kept.endpoints.insert(wanted.endpoint_id, DockerEndpoint { network: name, addresses });
        self.keep(&kept).await?;
        Ok(CreatedEndpoint { interface })
    }

    /// Forgets a container's endpoint.
    pub(super) async fn delete_endpoint(&self, gone: OfEndpoint) -> Result<(), Refusal> {
        self.detach(&gone.endpoint_id)?;
        let mut kept = self.kept.lock().await;
        if let Some(endpoint) = kept.endpoints.remove(&gone.endpoint_id) {
            for address in &endpoint.addresses {
                self.node.workloads.release(&endpoint.network, *address);
            }
            self.keep(&kept).await?;
        }
        Ok(())
    }

    /// Makes the interface of a container, and hands it to Docker.
    pub(super) async fn join(&self, wanted: Join) -> Result<Joined, Refusal> {
        let endpoint = {
            let kept = self.kept.lock().await;
            known(&kept, &wanted.network_id)?;
            kept.endpoints.get(&wanted.endpoint_id).cloned().ok_or_else(|| {
                Refusal::Missing(format!("there is no endpoint {}", wanted.endpoint_id))
            })?
        };
        // A join that Docker gave up on may have left its interface behind.
        self.detach(&wanted.endpoint_id)?;
        let part: String =
            wanted.endpoint_id.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        let src_name = format!("{BEFORE}{part}");
        let static_routes = self.routes_to_servers(&endpoint.network, &endpoint.addresses);
        let container = NewContainer {
            network: endpoint.network,
            addresses: endpoint.addresses,
            netns: wanted.sandbox_key,
            interface: src_name.clone(),
            origin: Origin::Docker { endpoint: wanted.endpoint_id },
        };
        self.node.workloads.attach_container_outside(container).await?;
        let interface_name = InterfaceName { src_name, dst_prefix: WITHIN };
        Ok(Joined { interface_name, static_routes, disable_gateway_service: true })
    }

    /// Returns routes by the mesh to the name servers that Docker's own server forwards to, in the
    /// container's namespace: the host's, or else those that Docker takes (libnetwork's
    /// `defaultIPv4Dns`). There are none unless the node answers queries to any address.
    fn routes_to_servers(&self, network: &NetworkName, addresses: &[IpAddr]) -> Vec<StaticRoute> {
        let served = self.node.enforcement.endpoint(network);
        let intercepts = served.is_some_and(|served| served.resolver.settings().dns.intercept);
        if !intercepts {
            return vec![];
        }
        let mut servers = host::servers_in(&self.node.config.resolv_conf);
        servers.retain(|server| !server.is_loopback());
        if servers.is_empty() {
            servers.extend(DOCKER_SERVERS);
        }
        let servers = servers_for(addresses, servers);
        servers.into_iter().map(|server| StaticRoute::by_interface(server.into())).collect()
    }

    /// Takes the interface of a container away.
    pub(super) fn leave(&self, gone: &OfEndpoint) -> Result<(), Refusal> {
        self.detach(&gone.endpoint_id)
    }

    fn detach(&self, id: &str) -> Result<(), Refusal> {
        let is = |attachment: &Attachment| match &attachment.origin {
            Origin::Docker { endpoint } => endpoint == id,
            _ => false,
        };
        let Some((workload, _)) = self.node.workloads.find(is) else { return Ok(()) };
        // They stay those of the endpoint.
        self.node.workloads.reserve_all(&workload.network, &workload.addresses);
        match self.node.workloads.detach(&workload.id) {
            Ok(()) | Err(Refusal::Missing(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }
}

fn known(kept: &DockerFile, id: &str) -> Result<NetworkName, Refusal> {
    let network = kept.networks.get(id).cloned();
    network.ok_or_else(|| {
        Refusal::Missing(format!("Docker's network {id} is not known to this node; make it anew"))
    })
}

/// The prefix of a network of which the node has its block.
fn prefix(name: &NetworkName, spec: &NetworkSpec, ipv6: bool) -> Result<IpNet, Refusal> {
    let block = spec.blocks.iter().find(|block| block.addr().is_ipv6() == ipv6);
    let prefix = block.and_then(|block| spec.prefixes.iter().find(|prefix| prefix.contains(block)));
    prefix.copied().ok_or_else(|| {
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        Refusal::Invalid(format!("network {name} has no {family} prefix"))
    })
}

/// An address pool: the prefix of a network in one address family.
struct AddressPool {
    network: NetworkName,
    ipv6: bool,
}

fn read_pool(id: &str) -> Result<AddressPool, Refusal> {
    let read = || -> Option<AddressPool> {
        let (name, family) = id.rsplit_once('/')?;
        let ipv6 = match family {
            "4" => false,
            "6" => true,
            _ => return None,
        };
        Some(AddressPool { network: name.parse().ok()?, ipv6 })
    };
    read().ok_or_else(|| Refusal::Invalid(format!("`{id}` is no pool of this plugin")))
}

fn read_subnet(text: &str) -> Result<IpNet, Refusal> {
    text.parse().map_err(|_| Refusal::Invalid(format!("`{text}` is no subnet")))
}
