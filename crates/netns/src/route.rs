//! Routes of a namespace.

use crate::{
    Error, Links,
    link::{failed, unless},
};
use futures::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The number of the main routing table (linux/rtnetlink.h: `RT_TABLE_MAIN`).
pub(crate) const MAIN: u8 = 254;

/// The metric of an `unreachable` route: every other route comes first.
const LAST_METRIC: u32 = u32::MAX - 1;

impl Links {
    /// Adds a route through an interface, with or without a gateway, to a table or else to the main
    /// one. It replaces an existing route.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn add_route(
        &self,
        name: &str,
        to: IpNet,
        gateway: Option<IpAddr>,
        table: Option<u32>,
    ) -> Result<(), Error> {
        let message = route(self.index(name).await?, to, gateway, table);
        self.put_route(message, format!("add a route to {to} by {name}")).await
    }

    /// Removes such a route, if it exists.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn remove_route(
        &self,
        name: &str,
        to: IpNet,
        table: Option<u32>,
    ) -> Result<(), Error> {
        let message = route(self.index(name).await?, to, None, table);
        self.delete_route(message, format!("remove the route to {to} by {name}")).await
    }

    /// Adds a default route through an interface to the main table, of a metric that makes it one
    /// among others.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn add_default_route(&self, name: &str, to: IpNet, metric: u32) -> Result<(), Error> {
        let message = default_route(self.index(name).await?, to, metric);
        self.put_route(message, format!("add a default route by {name}")).await
    }

    /// Removes such a route, if it exists.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn remove_default_route(
        &self,
        name: &str,
        to: IpNet,
        metric: u32,
    ) -> Result<(), Error> {
        let message = default_route(self.index(name).await?, to, metric);
        self.delete_route(message, format!("remove the default route by {name}")).await
    }

    /// Adds a route, or replaces it. `what` says in an error what that was for.
    async fn put_route(&self, message: RouteMessage, what: String) -> Result<(), Error> {
        let done = self.handle.route().add(message).replace().execute().await;
        done.map_err(failed(what))
    }

    /// Removes a route, if it exists.
    async fn delete_route(&self, message: RouteMessage, what: String) -> Result<(), Error> {
        let done = self.handle.route().del(message).execute().await;
        unless(done, Errno::ESRCH).map_err(failed(what))
    }

    /// Returns the prefixes to which a table has routes.
    ///
    /// # Errors
    /// Fails if the kernel does not answer.
    pub async fn routes_of_table(&self, table: u32) -> Result<Vec<IpNet>, Error> {
        let mut prefixes = Vec::new();
        let families = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        for all in families {
            let mut found = self.handle.route().get(all).execute();
            while let Some(message) =
                found.try_next().await.map_err(failed("read the routes".into()))?
            {
                if message.attributes.contains(&RouteAttribute::Table(table)) {
                    prefixes.extend(destination(&message));
                }
            }
        }
        Ok(prefixes)
    }

    /// Adds an `unreachable` route (ip-route(8)) of the lowest priority to a prefix, so that its
    /// packets do not leave by a default route.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub async fn add_unreachable_route(&self, to: IpNet) -> Result<(), Error> {
        let done = self.handle.route().add(unreachable_route(to)).replace().execute().await;
        unless(done, Errno::EEXIST).map_err(failed(format!("add an unreachable route to {to}")))
    }

    /// Adds a route to a table that makes all addresses of a prefix the namespace's own.
    pub(crate) async fn add_local_route(&self, to: IpNet, table: u32) -> Result<(), Error> {
        let mut message = route(self.index("lo").await?, to, None, Some(table));
        message.header.kind = RouteType::Local;
        message.header.scope = RouteScope::Host;
        self.put_route(message, format!("add a local route to {to}")).await
    }

    /// Removes the route of [`Self::add_unreachable_route`], if it exists.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub async fn remove_unreachable_route(&self, to: IpNet) -> Result<(), Error> {
        let what = format!("remove the unreachable route to {to}");
        self.delete_route(unreachable_route(to), what).await
    }

    /// Returns `true` if the main table has a route to a prefix, or to a larger one, that is
    /// neither a default route nor `unreachable`.
    ///
    /// # Errors
    /// Fails if the kernel does not answer.
    pub async fn has_route(&self, to: IpNet) -> Result<bool, Error> {
        let all = match to {
            IpNet::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpNet::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let mut found = self.handle.route().get(all).execute();
        while let Some(message) =
            found.try_next().await.map_err(failed("read the routes".into()))?
        {
            let is_route =
                message.header.table == MAIN && message.header.kind == RouteType::Unicast;
            if is_route
                && destination(&message)
                    .is_some_and(|own| own.prefix_len() > 0 && own.contains(&to))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the IPv4 gateway of the default route.
    ///
    /// # Errors
    /// Fails if the kernel does not answer.
    pub async fn default_gateway(&self) -> Result<Option<Ipv4Addr>, Error> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut found = self.handle.route().get(all).execute();
        while let Some(message) =
            found.try_next().await.map_err(failed("read the routes".into()))?
        {
            let gateway = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(*gateway),
                _ => None,
            });
            if message.header.destination_prefix_length == 0 && gateway.is_some() {
                return Ok(gateway);
            }
        }
        Ok(None)
    }

    /// Returns `true` if the main table has routes to these prefixes by an interface.
    pub(crate) async fn has_routes(&self, index: u32, prefixes: &[IpNet]) -> bool {
        let mut missing: Vec<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
        let families = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        for all in families {
            let mut found = self.handle.route().get(all).execute();
            while let Ok(Some(message)) = found.try_next().await {
                let by = |attribute: &RouteAttribute| *attribute == RouteAttribute::Oif(index);
                if let (Some(to), true) = (destination(&message), message.attributes.iter().any(by))
                {
                    missing.retain(|prefix| *prefix != to);
                }
            }
        }
        missing.is_empty()
    }
}

/// Returns the destination of a route; `None` for a default route.
fn destination(message: &RouteMessage) -> Option<IpNet> {
    let length = message.header.destination_prefix_length;
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(to)) => {
            IpNet::new((*to).into(), length).ok()
        }
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => {
            IpNet::new((*to).into(), length).ok()
        }
        _ => None,
    })
}

fn default_route(index: u32, to: IpNet, metric: u32) -> RouteMessage {
    let mut message = route(index, to, None, None);
    message.attributes.push(RouteAttribute::Priority(metric));
    message
}

fn route(index: u32, to: IpNet, gateway: Option<IpAddr>, table: Option<u32>) -> RouteMessage {
    match to {
        IpNet::V4(to) => {
            let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to.addr(), to.prefix_len())
                .output_interface(index);
            if let Some(IpAddr::V4(gateway)) = gateway {
                message = message.gateway(gateway);
            }
            table.map_or(message.clone(), |table| message.table_id(table)).build()
        }
        IpNet::V6(to) => {
            let mut message = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to.addr(), to.prefix_len())
                .output_interface(index);
            if let Some(IpAddr::V6(gateway)) = gateway {
                message = message.gateway(gateway);
            }
            table.map_or(message.clone(), |table| message.table_id(table)).build()
        }
    }
}

fn unreachable_route(to: IpNet) -> RouteMessage {
    let to = to.trunc();
    match to {
        IpNet::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .kind(RouteType::Unreachable)
            .priority(LAST_METRIC)
            .build(),
        IpNet::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .kind(RouteType::Unreachable)
            .priority(LAST_METRIC)
            .build(),
    }
}
