//! Links, addresses and routes of the namespace that the calling thread is in, by rtnetlink(7).

use crate::{Error, Netns};
use futures::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        AddressFamily, IpProtocol,
        address::{AddressAttribute, AddressFlags},
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
};

/// The selector of a routing rule (ip-rule(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selects {
    /// Packets from a prefix.
    From(IpNet),
    /// ICMP and `ICMPv6` messages to a prefix, whatever their source address.
    IcmpTo(IpNet),
}

impl Selects {
    fn message(self, table: u32, priority: u32) -> RuleMessage {
        let mut message = RuleMessage::default();
        let (Self::From(prefix) | Self::IcmpTo(prefix)) = self;
        message.header.family =
            if prefix.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.action = RuleAction::ToTable;
        message.attributes.extend([RuleAttribute::Table(table), RuleAttribute::Priority(priority)]);
        match self {
            Self::From(_) => {
                message.header.src_len = prefix.prefix_len();
                message.attributes.push(RuleAttribute::Source(prefix.addr()));
            }
            Self::IcmpTo(_) => {
                let protocol =
                    if prefix.addr().is_ipv4() { IpProtocol::Icmp } else { IpProtocol::from(58u8) };
                message.header.dst_len = prefix.prefix_len();
                message.attributes.push(RuleAttribute::Destination(prefix.addr()));
                message.attributes.push(RuleAttribute::IpProtocol(protocol));
            }
        }
        message
    }
}

impl fmt::Display for Selects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(prefix) => write!(f, "comes from {prefix}"),
            Self::IcmpTo(prefix) => write!(f, "ICMP says to {prefix}"),
        }
    }
}

/// A netlink connection to one namespace.
pub struct Links(Handle);

impl Links {
    pub(crate) fn connect() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Thread)?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    async fn index(&self, name: &str) -> Result<u32, Error> {
        let mut found = self.0.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await {
            Ok(Some(link)) => Ok(link.header.index),
            _ => Err(Error::NoLink(name.to_owned())),
        }
    }

    /// Returns `true` if there is an interface of this name.
    pub async fn exists(&self, name: &str) -> bool {
        self.index(name).await.is_ok()
    }

    /// Returns `true` if an interface exists, is up, has these addresses, and has routes to these
    /// prefixes in the main table.
    pub async fn is_set_up(&self, name: &str, addresses: &[IpAddr], prefixes: &[IpNet]) -> bool {
        let mut found = self.0.link().get().match_name(name.to_owned()).execute();
        let Ok(Some(link)) = found.try_next().await else { return false };
        let index = link.header.index;
        link.header.flags.contains(LinkFlags::Up)
            && self.has_addresses(index, addresses).await
            && self.leads_to(index, prefixes).await
    }

    async fn has_addresses(&self, index: u32, addresses: &[IpAddr]) -> bool {
        let mut own = self.0.address().get().set_link_index_filter(index).execute();
        let mut missing = addresses.to_vec();
        while let Ok(Some(message)) = own.try_next().await {
            for attribute in message.attributes {
                if let AddressAttribute::Address(there) | AddressAttribute::Local(there) = attribute
                {
                    missing.retain(|address| *address != there);
                }
            }
        }
        missing.is_empty()
    }

    async fn leads_to(&self, index: u32, prefixes: &[IpNet]) -> bool {
        let mut missing: Vec<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
        let families = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        for all in families {
            let mut found = self.0.route().get(all).execute();
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

    /// Deletes an interface.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let index = self.index(name).await?;
        self.0.link().del(index).execute().await.map_err(failed(format!("delete {name}")))
    }

    /// Creates a pair of virtual Ethernet interfaces.
    pub async fn add_veth(&self, name: &str, peer: &str) -> Result<(), Error> {
        let request = self.0.link().add(LinkVeth::new(name, peer).build());
        request.execute().await.map_err(failed(format!("make the pair {name}, {peer}")))
    }

    /// Moves an interface into another namespace and renames it to `as_name`.
    pub async fn give(&self, name: &str, to: &Netns, as_name: &str) -> Result<(), Error> {
        let index = self.index(name).await?;
        let message = LinkUnspec::new_with_index(index)
            .setns_by_fd(to.as_fd().as_raw_fd())
            .name(as_name)
            .build();
        self.0.link().set(message).execute().await.map_err(failed(format!("move {name}")))
    }

    /// Sets an interface up.
    pub async fn set_up(&self, name: &str) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(self.index(name).await?).up().build();
        self.0.link().set(message).execute().await.map_err(failed(format!("set {name} up")))
    }

    /// Sets an interface down.
    pub async fn set_down(&self, name: &str) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(self.index(name).await?).down().build();
        self.0.link().set(message).execute().await.map_err(failed(format!("set {name} down")))
    }

    /// Sets the MTU of an interface, in bytes.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(self.index(name).await?).mtu(mtu).build();
        self.0.link().set(message).execute().await.map_err(failed(format!("set the MTU of {name}")))
    }

    /// Returns the MTU of an interface, in bytes.
    pub async fn mtu(&self, name: &str) -> Result<u32, Error> {
        let mut found = self.0.link().get().match_name(name.to_owned()).execute();
        let link = found.try_next().await.ok().flatten();
        let mtu = link.and_then(|link| {
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            })
        });
        mtu.ok_or_else(|| Error::NoLink(name.to_owned()))
    }

    /// Keeps the kernel from giving an interface a link-local IPv6 address, and from sending
    /// packets from it.
    pub async fn no_link_local(&self, name: &str) -> Result<(), Error> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let message = LinkUnspec::new_with_index(self.index(name).await?)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
                mode,
            ])]))
            .build();
        let done = self.0.link().set(message).execute().await;
        done.map_err(failed(format!("turn off link-local addresses on {name}")))
    }

    /// Adds an address to an interface; one that exists stays. IPv6 addresses are usable at once,
    /// without duplicate address detection (RFC 4862 §5.4), since nobody else on the link can have
    /// them.
    pub async fn add_address(&self, name: &str, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let mut request = self.0.address().add(self.index(name).await?, address, prefix).replace();
        if address.is_ipv6() {
            let message = request.message_mut();
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.map_err(failed(format!("add address {address} to {name}")))
    }

    /// Removes an address from an interface.
    pub async fn remove_address(&self, name: &str, address: IpAddr) -> Result<(), Error> {
        let index = self.index(name).await?;
        let mut own = self
            .0
            .address()
            .get()
            .set_link_index_filter(index)
            .set_address_filter(address)
            .execute();
        while let Some(message) = own.try_next().await.map_err(failed(format!("read {name}")))? {
            let request = self.0.address().del(message);
            request.execute().await.map_err(failed(format!("remove {address} from {name}")))?;
        }
        Ok(())
    }

    /// Adds a route through an interface, with or without a gateway, to a table or else to the main
    /// one. It replaces an existing route.
    pub async fn add_route(
        &self,
        name: &str,
        to: IpNet,
        gateway: Option<IpAddr>,
        table: Option<u32>,
    ) -> Result<(), Error> {
        let message = route(self.index(name).await?, to, gateway, table);
        let done = self.0.route().add(message).replace().execute().await;
        done.map_err(failed(format!("add a route to {to} by {name}")))
    }

    /// Removes such a route, if it exists.
    pub async fn remove_route(
        &self,
        name: &str,
        to: IpNet,
        table: Option<u32>,
    ) -> Result<(), Error> {
        let message = route(self.index(name).await?, to, None, table);
        let done = self.0.route().del(message).execute().await;
        unless(done, Errno::ESRCH).map_err(failed(format!("remove the route to {to} by {name}")))
    }

    /// Adds an `unreachable` route (ip-route(8)) of the lowest priority to a prefix, so that its
    /// packets do not leave by a default route.
    pub async fn refuse(&self, to: IpNet) -> Result<(), Error> {
        let done = self.0.route().add(refusal(to)).replace().execute().await;
        unless(done, Errno::EEXIST).map_err(failed(format!("have packets to {to} refused")))
    }

    /// Removes the route of [`Self::refuse`], if it exists.
    pub async fn refuse_no_more(&self, to: IpNet) -> Result<(), Error> {
        let done = self.0.route().del(refusal(to)).execute().await;
        unless(done, Errno::ESRCH).map_err(failed(format!("have packets to {to} refused no more")))
    }

    /// Adds a rule that makes the packets that it selects use a table first. Among such rules, the
    /// lowest priority value comes first.
    pub async fn add_rule(&self, which: Selects, table: u32, priority: u32) -> Result<(), Error> {
        let mut request = self.0.rule().add();
        *request.message_mut() = which.message(table, priority);
        unless(request.execute().await, Errno::EEXIST)
            .map_err(failed(format!("add a rule for what {which}")))
    }

    /// Removes such a rule, if it exists.
    pub async fn remove_rule(
        &self,
        which: Selects,
        table: u32,
        priority: u32,
    ) -> Result<(), Error> {
        let done = self.0.rule().del(which.message(table, priority)).execute().await;
        unless(done, Errno::ENOENT).map_err(failed(format!("remove the rule for what {which}")))
    }

    /// Returns `true` if the main table has a route to a prefix, or to a larger one, that is
    /// neither a default route nor `unreachable`.
    pub async fn has_way(&self, to: IpNet) -> Result<bool, Error> {
        let all = match to {
            IpNet::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpNet::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let mut found = self.0.route().get(all).execute();
        while let Some(message) =
            found.try_next().await.map_err(failed("read the routes".into()))?
        {
            let is_way = message.header.table == MAIN && message.header.kind == RouteType::Unicast;
            if is_way
                && destination(&message)
                    .is_some_and(|way| way.prefix_len() > 0 && way.contains(&to))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Keeps packets to a prefix that come in by an interface from using a default route: they are
    /// refused unless the main table has another route. Adds two rules, of this priority and the
    /// next.
    pub async fn keep_off_default(
        &self,
        name: &str,
        to: IpNet,
        priority: u32,
    ) -> Result<(), Error> {
        for message in off_default(name, to, priority) {
            let mut request = self.0.rule().add();
            *request.message_mut() = message;
            let done = unless(request.execute().await, Errno::EEXIST);
            done.map_err(failed(format!("keep packets to {to} off the default route")))?;
        }
        Ok(())
    }

    /// Removes the rules of [`Self::keep_off_default`], if they exist.
    pub async fn keep_off_default_no_more(
        &self,
        name: &str,
        to: IpNet,
        priority: u32,
    ) -> Result<(), Error> {
        for message in off_default(name, to, priority) {
            let done = unless(self.0.rule().del(message).execute().await, Errno::ENOENT);
            done.map_err(failed(format!("let packets to {to} take the default route")))?;
        }
        Ok(())
    }

    /// Returns the IPv4 gateway of the default route.
    pub async fn default_gateway(&self) -> Result<Option<Ipv4Addr>, Error> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut found = self.0.route().get(all).execute();
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

    /// Returns the global addresses of all interfaces but loopback.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let mut found = Vec::new();
        let mut all = self.0.address().get().execute();
        while let Some(message) = all.try_next().await.map_err(failed("read addresses".into()))? {
            let family = message.header.family;
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            let Some(address) = address else { continue };
            let usable = match address {
                IpAddr::V4(a) => {
                    family == AddressFamily::Inet && !a.is_loopback() && !a.is_link_local()
                }
                IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
            };
            if usable {
                found.push(address);
            }
        }
        Ok(found)
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

/// The number of the main routing table (linux/rtnetlink.h: `RT_TABLE_MAIN`).
const MAIN: u8 = 254;

/// Returns two rules: look into the main table without its default routes, then refuse.
fn off_default(name: &str, to: IpNet, priority: u32) -> [RuleMessage; 2] {
    let rule = |action: RuleAction, priority: u32| {
        let mut message = RuleMessage::default();
        message.header.family =
            if to.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.action = action;
        message.header.dst_len = to.prefix_len();
        let from = RuleAttribute::Iifname(name.to_owned());
        message.attributes.extend([
            RuleAttribute::Destination(to.addr()),
            from,
            RuleAttribute::Priority(priority),
        ]);
        message
    };
    let mut way = rule(RuleAction::ToTable, priority);
    way.attributes.extend([RuleAttribute::Table(MAIN.into()), RuleAttribute::SuppressPrefixLen(0)]);
    [way, rule(RuleAction::Unreachable, priority + 1)]
}

/// The metric of an `unreachable` route: every other route comes first.
const LAST: u32 = u32::MAX - 1;

fn refusal(to: IpNet) -> RouteMessage {
    let to = to.trunc();
    match to {
        IpNet::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .kind(RouteType::Unreachable)
            .priority(LAST)
            .build(),
        IpNet::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .kind(RouteType::Unreachable)
            .priority(LAST)
            .build(),
    }
}

/// Treats one error of the kernel as success.
fn unless(done: Result<(), rtnetlink::Error>, harmless: Errno) -> Result<(), rtnetlink::Error> {
    match done {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -(harmless as i32) => {
            Ok(())
        }
        other => other,
    }
}

fn failed(what: String) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |source| Error::Netlink { what, source }
}
