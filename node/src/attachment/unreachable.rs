//! Unreachable routes to the mesh's prefixes: where no interface of the mesh leads to them, their
//! packets go nowhere. They do not leave in clear, even while the interface is gone or this daemon
//! is down.

use ipnet::IpNet;
use meshward_netns::{Links, Netns};

/// Adds the routes to the namespace of `links`. A family that is switched off has nothing to lose.
pub(super) async fn add_unreachable_routes(links: &Links, prefixes: &[IpNet]) {
    for prefix in prefixes {
        if let Err(error) = links.add_unreachable_route(*prefix).await {
            tracing::debug!("{error}");
        }
    }
}

/// Keeps packets of this host to a network of the mesh from leaving by other interfaces.
pub(crate) fn block_other_interfaces(prefixes: &[IpNet]) {
    let done = Netns::current().and_then(|here| {
        here.links(async |links| {
            add_unreachable_routes(links, prefixes).await;
            Ok(())
        })
    });
    if let Err(error) = done {
        tracing::warn!(
            "packets of this host to the mesh may leave by other interfaces: no unreachable routes \
            can be added: {error}"
        );
    }
}

/// Undoes [`block_other_interfaces`]: this host does not serve the network any more.
pub(crate) fn allow_other_interfaces(prefixes: &[IpNet]) {
    let done = Netns::current().and_then(|here| {
        here.links(async |links| {
            for prefix in prefixes {
                links.remove_unreachable_route(*prefix).await?;
            }
            Ok(())
        })
    });
    if let Err(error) = done {
        tracing::debug!("{error}");
    }
}
