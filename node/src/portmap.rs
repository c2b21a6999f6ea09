//! Asking the router for a port of its own: PCP (RFC 6887), or NAT-PMP (RFC 6886) where it knows that alone.

use crate::daemon::{Node, Reach};
use anyhow::{Context, Result};
use crab_nat::{GatewayAddress, InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, natpmp};
use meshward_model::NetworkName;
use meshward_netns::Netns;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{debug, info};

/// How long a mapping is asked for, in seconds; it is renewed at half of what was given.
const LIFETIME: u32 = 7200;
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a router may take to answer, and how soon it is asked again at the earliest, however short a mapping lasts.
const PATIENCE: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_secs(30);
/// How long a router that does not answer is left alone.
const REST: Duration = Duration::from_secs(300);

/// Keeps a port mapped for each endpoint while this node is behind a NAT, for ever.
pub async fn keep(node: Arc<Node>) {
    if !node.config.port_mapping {
        return;
    }
    let mut mapped: BTreeMap<NetworkName, (u16, PortMapping, Instant)> = BTreeMap::new();
    let mut rest_until: Option<Instant> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        if node.reach() != Reach::Hidden || rest_until.is_some_and(|until| Instant::now() < until) {
            continue;
        }
        let ports = node.ports().await;
        mapped.retain(|network, (port, ..)| ports.get(network) == Some(port));
        for (network, port) in ports {
            let due = mapped.get(&network).is_none_or(|(_, mapping, asked)| {
                let left = mapping.expiration().saturating_duration_since(Instant::now());
                left <= Duration::from_secs(u64::from(mapping.lifetime()) / 2) && asked.elapsed() >= AGAIN
            });
            if !due {
                continue;
            }
            let asked = tokio::time::timeout(PATIENCE, map(port)).await;
            match asked.unwrap_or_else(|_| Err(anyhow::anyhow!("it does not answer"))) {
                Ok((mapping, address)) => {
                    info!(%network, port, %address, "the router has mapped a port");
                    mapped.insert(network.clone(), (port, mapping, Instant::now()));
                    node.set_mapped(&network, Some(address)).await;
                }
                Err(error) => {
                    debug!(%network, port, "the router maps no port: {error:#}");
                    mapped.remove(&network);
                    node.set_mapped(&network, None).await;
                    rest_until = Some(Instant::now() + REST);
                }
            }
        }
    }
}

/// Asks for a mapping of a UDP port: where others reach it.
async fn map(port: u16) -> Result<(PortMapping, SocketAddr)> {
    let find = || Netns::current()?.links(async |links| links.default_gateway().await);
    let router = tokio::task::spawn_blocking(find).await??.context("there is no default route")?;
    let gateway = GatewayAddress::IpV4(router);
    let own = own_address(router)?;
    let port = NonZeroU16::new(port).context("the endpoint has no port")?;
    let options = PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: Some(LIFETIME),
        ..PortMappingOptions::default()
    };
    let mapping = PortMapping::new(gateway, own, InternetProtocol::Udp, port, options).await?;
    let ip = match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => external_ip.to_canonical(),
        PortMappingType::NatPmp => natpmp::external_address(gateway, None).await?.into(),
    };
    anyhow::ensure!(!ip.is_unspecified(), "the router does not know its own address");
    let outside = mapping.external_port().get();
    Ok((mapping, SocketAddr::new(ip, outside)))
}

/// The address that this host has towards another.
fn own_address(towards: Ipv4Addr) -> Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((towards, 5351))?;
    Ok(socket.local_addr()?.ip())
}
