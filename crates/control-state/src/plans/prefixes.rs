//! Prefixes behind gateways.

use crate::{Refusal, world::World};
use ipnet::IpNet;
use meshward_types::NetworkName;

/// Refuses a prefix behind a gateway that overlaps with the network itself. The default route of an
/// egress gateway leads to what is outside of it.
pub(super) fn check_prefix(
    world: &World,
    network: &NetworkName,
    prefix: &IpNet,
) -> Result<(), Refusal> {
    let Some(network) = world.networks.get(network).filter(|_| prefix.prefix_len() > 0) else {
        return Ok(());
    };
    let overlaps = |own: &&IpNet| own.contains(prefix) || prefix.contains(*own);
    match network.record.prefixes.iter().find(overlaps) {
        Some(own) => Err(Refusal::Invalid(format!(
            "{prefix} overlaps with {own}, which is network {} itself: name the prefixes behind \
            the gateway",
            network.record.name
        ))
        .about("prefix")),
        None => Ok(()),
    }
}
