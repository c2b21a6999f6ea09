//! Port mapping by the router: PCP (RFC 6887), or NAT-PMP (RFC 6886) where it knows that alone.

use super::{Direct, Reachability};
use anyhow::{Context, Result};
use crab_nat::{
    GatewayAddress, InternetProtocol, PortMapping, PortMappingOptions, PortMappingType,
    TimeoutConfig, natpmp,
};
use meshward_netns::Netns;
use meshward_types::NetworkName;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{debug, info};

/// The requested lifetime of a mapping, in seconds; it is renewed at half of the granted one.
const LIFETIME: u32 = 7200;
/// The interval at which mappings are checked.
const LOOK: Duration = Duration::from_secs(1);
/// The time within which a router must answer; that for the network check; and the shortest pause
/// between two requests, however short a mapping's lifetime is.
const PATIENCE: Duration = Duration::from_secs(20);
const ASKING: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(30);
/// The pause after a router that does not answer.
const REST: Duration = Duration::from_mins(5);

/// Keeps a port mapped for each endpoint while this node is behind a NAT, for ever.
pub async fn keep(reachability: Arc<Reachability>) {
    if !reachability.config.port_mapping {
        return;
    }
    let mut mapped: BTreeMap<NetworkName, (u16, PortMapping, Instant)> = BTreeMap::new();
    let mut rest_until: Option<Instant> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        if reachability.direct() != Direct::No
            || rest_until.is_some_and(|until| Instant::now() < until)
        {
            continue;
        }
        let ports = reachability.ports();
        mapped.retain(|network, (port, ..)| ports.get(network) == Some(port));
        for (network, port) in ports {
            let due = mapped.get(&network).is_none_or(|(_, mapping, asked)| {
                let left = mapping.expiration().saturating_duration_since(Instant::now());
                left <= Duration::from_secs(u64::from(mapping.lifetime()) / 2)
                    && asked.elapsed() >= AGAIN
            });
            if !due {
                continue;
            }
            let asked = tokio::time::timeout(PATIENCE, map(port)).await;
            match asked.unwrap_or_else(|_| Err(anyhow::anyhow!("it does not answer"))) {
                Ok((mapping, address)) => {
                    info!(%network, port, %address, "the router has mapped a port");
                    mapped.insert(network.clone(), (port, mapping, Instant::now()));
                    reachability.set_mapped(&network, Some(address));
                }
                Err(error) => {
                    debug!(%network, port, "the router maps no port: {error:#}");
                    mapped.remove(&network);
                    reachability.set_mapped(&network, None);
                    rest_until = Some(Instant::now() + REST);
                }
            }
        }
    }
}

/// Requests a mapping of a UDP port. Returns it and the address outside.
async fn map(port: u16) -> Result<(PortMapping, SocketAddr)> {
    let find = || Netns::current()?.links(async |links| links.default_gateway().await);
    let router = tokio::task::spawn_blocking(find).await??.context("there is no default route")?;
    let port = NonZeroU16::new(port).context("the endpoint has no port")?;
    map_by(router, own_address(router)?, port, None).await
}

/// Requests a mapping of one router. Without `timeouts`, those of the protocols apply.
async fn map_by(
    router: Ipv4Addr,
    own: IpAddr,
    port: NonZeroU16,
    timeouts: Option<TimeoutConfig>,
) -> Result<(PortMapping, SocketAddr)> {
    let gateway = GatewayAddress::IpV4(router);
    let options = PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: Some(LIFETIME),
        timeout_config: timeouts,
    };
    let mapping = PortMapping::new(gateway, own, InternetProtocol::Udp, port, options).await?;
    let ip = match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => external_ip.to_canonical(),
        PortMappingType::NatPmp => natpmp::external_address(gateway, timeouts).await?.into(),
    };
    let is_one = !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast());
    anyhow::ensure!(is_one, "the router does not know its own address: it says {ip}");
    let outside = mapping.external_port().get();
    Ok((mapping, SocketAddr::new(ip, outside)))
}

/// Returns the router's address outside, if it answers NAT-PMP (RFC 6886 §3.2), which changes
/// nothing there.
pub async fn router_outside() -> Option<IpAddr> {
    let find = || Netns::current()?.links(async |links| links.default_gateway().await);
    let router = tokio::task::spawn_blocking(find).await.ok()?.ok()??;
    let asked = natpmp::external_address(GatewayAddress::IpV4(router), None);
    let address = tokio::time::timeout(ASKING, asked).await.ok()?.ok()?;
    (!address.is_unspecified()).then_some(address.into())
}

/// Returns the address of this host towards another.
fn own_address(towards: Ipv4Addr) -> Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((towards, 5351))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(any(test, fuzzing))]
pub mod fuzzing {
    //! Routers' answers; see the crate `meshward-fuzzing`.

    use super::*;
    use meshward_fuzzing::{Bytes, blocks};
    use std::sync::OnceLock;
    use tokio::{net::UdpSocket as Socket, runtime::Runtime};

    /// The port of both protocols (RFC 6886 §1.1, RFC 6887 §19.3).
    const PORT: u16 = 5351;
    const TIMEOUTS: TimeoutConfig = TimeoutConfig {
        initial_timeout: Duration::from_millis(3),
        max_retries: 1,
        max_retry_timeout: None,
    };

    /// A router on loopback, at an address of this process's own.
    fn router() -> &'static (Runtime, Socket, Ipv4Addr) {
        static ROUTER: OnceLock<(Runtime, Socket, Ipv4Addr)> = OnceLock::new();
        ROUTER.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            let [_, first, second, third] = std::process::id().to_be_bytes();
            let address = Ipv4Addr::new(127, first.max(1), second, third);
            let socket =
                runtime.block_on(Socket::bind((address, PORT))).expect("a port on loopback");
            (runtime, socket, address)
        })
    }

    /// Runs answers of a router: a block for each, in their order. The nonce of a PCP request is
    /// put into an answer that is long enough for one, as every router does. An accepted mapping
    /// has an address, and mapping ends in time whatever the answers are.
    ///
    /// # Panics
    /// Panics if an answer breaks that.
    pub fn answers(data: &[u8]) {
        let (runtime, socket, address) = router();
        let mut said = Bytes(data);
        let port = NonZeroU16::new(51820).expect("a port");
        let answering = async {
            let mut request = [0; 1200];
            while let Ok((length, from)) = socket.recv_from(&mut request).await {
                let mut answer = said.block().to_vec();
                if let (24..=60, Some(nonce)) = (length - length % 4, answer.get_mut(24..36)) {
                    nonce.copy_from_slice(&request[24..36]);
                }
                if !answer.is_empty() {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        };
        let mapped = runtime.block_on(async {
            tokio::select! {
                mapped = map_by(*address, IpAddr::V4(*address), port, Some(TIMEOUTS)) => mapped,
                () = answering => unreachable!("the router answers for ever"),
            }
        });
        if let Ok((mapping, outside)) = mapped {
            assert!(
                outside.port() != 0
                    && !outside.ip().is_unspecified()
                    && !outside.ip().is_loopback()
            );
            assert_eq!(mapping.internal_port(), port);
        }
    }

    /// Answers of PCP and NAT-PMP routers that the corpus begins with.
    pub fn samples() -> Vec<Vec<u8>> {
        // PCP: version, opcode with the bit of an answer, result, lifetime, epoch; nonce, protocol,
        // ports, address.
        let mut pcp = vec![2, 0x81, 0, 0, 0, 0, 0x1c, 0x20, 0, 0, 0, 9];
        pcp.extend([0; 24]);
        pcp.extend([17, 0, 0, 0, 0xca, 0x6c, 0x30, 0x39]);
        pcp.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 7]);
        let mut refused = pcp.clone();
        refused[3] = 2;
        // NAT-PMP: a version of PCP is not known; the mapping; the address.
        let unknown = [0, 0x81, 0, 1, 0, 0, 0, 9];
        let mapping = [0, 0x81, 0, 0, 0, 0, 0, 9, 0xca, 0x6c, 0x30, 0x39, 0, 0, 0x1c, 0x20];
        let address = [0, 0x80, 0, 0, 0, 0, 0, 9, 198, 51, 100, 7];
        vec![
            blocks([&pcp]),
            blocks([&refused]),
            blocks([&unknown[..], &mapping, &address]),
            blocks([&unknown[..], &mapping, &[0, 0x80, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0]]),
            vec![],
        ]
    }
}
