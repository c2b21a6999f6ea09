//! Routing rules of a namespace (ip-rule(8)).

use crate::{
    Error, Links,
    link::{failed, unless},
    route::MAIN,
};
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::{
    AddressFamily, IpProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use std::fmt;

/// The selector of a routing rule (ip-rule(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleSelector {
    /// Packets from a prefix.
    From(IpNet),
    /// ICMP and `ICMPv6` messages to a prefix, whatever their source address.
    IcmpTo(IpNet),
    /// Packets of this host itself to a prefix.
    LocalTo(IpNet),
}

impl RuleSelector {
    fn message(self, table: Option<u32>, priority: u32) -> RuleMessage {
        let table = table.unwrap_or(MAIN.into());
        let mut message = RuleMessage::default();
        let (Self::From(prefix) | Self::IcmpTo(prefix) | Self::LocalTo(prefix)) = self;
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
            Self::LocalTo(_) => {
                message.header.dst_len = prefix.prefix_len();
                message.attributes.push(RuleAttribute::Destination(prefix.addr()));
                message.attributes.push(RuleAttribute::Iifname("lo".into()));
            }
        }
        message
    }
}

impl fmt::Display for RuleSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(prefix) => write!(f, "come from {prefix}"),
            Self::IcmpTo(prefix) => write!(f, "are ICMP messages to {prefix}"),
            Self::LocalTo(prefix) => write!(f, "this host sends to {prefix}"),
        }
    }
}

impl Links {
    /// Adds a rule that makes the packets that it selects use a table first, or else the main one.
    /// Among such rules, the lowest priority value comes first.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub async fn add_rule(
        &self,
        selector: RuleSelector,
        table: Option<u32>,
        priority: u32,
    ) -> Result<(), Error> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = selector.message(table, priority);
        unless(request.execute().await, Errno::EEXIST)
            .map_err(failed(format!("add a rule for packets that {selector}")))
    }

    /// Removes such a rule, if it exists.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub async fn remove_rule(
        &self,
        selector: RuleSelector,
        table: Option<u32>,
        priority: u32,
    ) -> Result<(), Error> {
        let done = self.handle.rule().del(selector.message(table, priority)).execute().await;
        unless(done, Errno::ENOENT)
            .map_err(failed(format!("remove the rule for packets that {selector}")))
    }

    /// Accepts packets to a prefix that come in by an interface, as if the namespace had all of its
    /// addresses: a rule leads them to a local route in `table` (ip-route(8)).
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub async fn accept_all(&self, name: &str, prefix: IpNet, table: u32) -> Result<(), Error> {
        self.add_local_route(prefix, table).await?;
        let mut request = self.handle.rule().add();
        let message = request.message_mut();
        message.header.family =
            if prefix.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.action = RuleAction::ToTable;
        message.attributes.extend([
            RuleAttribute::Iifname(name.to_owned()),
            RuleAttribute::Table(table),
            RuleAttribute::Priority(table),
        ]);
        unless(request.execute().await, Errno::EEXIST)
            .map_err(failed(format!("accept packets to {prefix} that come in by {name}")))
    }

    /// Keeps packets to a prefix that come in by an interface from using a default route: they are
    /// refused unless the main table has another route. Adds two rules, of this priority and the
    /// next.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub async fn keep_off_default(
        &self,
        name: &str,
        to: IpNet,
        priority: u32,
    ) -> Result<(), Error> {
        for message in off_default(name, to, priority) {
            let mut request = self.handle.rule().add();
            *request.message_mut() = message;
            let done = unless(request.execute().await, Errno::EEXIST);
            done.map_err(failed(format!("keep packets to {to} off the default route")))?;
        }
        Ok(())
    }

    /// Removes the rules of [`Self::keep_off_default`], if they exist.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub async fn allow_default(&self, name: &str, to: IpNet, priority: u32) -> Result<(), Error> {
        for message in off_default(name, to, priority) {
            let done = unless(self.handle.rule().del(message).execute().await, Errno::ENOENT);
            done.map_err(failed(format!("let packets to {to} take the default route")))?;
        }
        Ok(())
    }
}

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
    let mut lookup = rule(RuleAction::ToTable, priority);
    lookup
        .attributes
        .extend([RuleAttribute::Table(MAIN.into()), RuleAttribute::SuppressPrefixLen(0)]);
    [lookup, rule(RuleAction::Unreachable, priority + 1)]
}
