//! The routes of a workload, and the rules by which packets from behind this host use them.

use super::record::{Attachment, Origin};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use meshward_control_proto::view::NetworkSpec;
use meshward_netns::{Error, Links, RuleSelector};
use std::{collections::BTreeSet, net::IpAddr};

/// The first of the routing tables that are used for prefixes behind this host.
const FIRST_TABLE: u32 = 0x4d57_0000;
/// The priority of the rule for a host address behind this host (ip-rule(8)); shorter prefixes come
/// after it, up to the default route at + 128.
const RULES: u32 = 10_000;
/// The priority of the rules for ICMP errors.
const RULES_FOR_ERRORS: u32 = RULES + 129;
/// The number of rules of an egress gateway that come right before the one for its default route.
const BEFORE_DEFAULT: u32 = 2;
/// The metric of the default route by a workload's first interface, which its number is added to.
/// Every default route that the workload has of its own comes before it (those of the kernel and
/// of DHCP clients have at most 1,024 and some), and the `unreachable` routes after it.
const DEFAULT_METRIC: u32 = 0x4d57_0000;
/// The first of two priorities of rules that keep packets off the default route.
const RULES_OFF_DEFAULT: u32 = RULES_FOR_ERRORS + 1;

/// A routing rule of the workload's table.
struct Rule {
    selector: RuleSelector,
    /// The table that it leads to; `None` for the main one.
    table: Option<u32>,
    /// Rules with lower values come first.
    priority: u32,
}

impl Attachment {
    /// Adds routes by its interface to its namespace, and removes others.
    ///
    /// # Errors
    /// Fails if the namespace is gone, or the kernel refuses.
    pub(crate) fn change_routes(&self, new: &[IpNet], gone: &[IpNet]) -> Result<(), Error> {
        let Some(netns) = self.open_netns() else { return Ok(()) };
        let (name, table) = (self.interface.as_str(), self.table());
        netns.links(async |links| {
            for prefix in gone.iter().filter(|prefix| !self.report.prefixes.contains(prefix)) {
                links.remove_route(name, *prefix, table).await?;
            }
            let is_wanted = |prefix: &&IpNet| {
                self.has_family_of(prefix) && !self.report.prefixes.contains(prefix)
            };
            for prefix in new.iter().filter(is_wanted) {
                links.add_route(name, *prefix, None, table).await?;
            }
            Ok(())
        })
    }

    /// Gives its namespace the default routes that it is to have, and no others by its interface. A
    /// default route that the workload has of its own is preferred to them.
    ///
    /// # Errors
    /// Fails if the namespace is gone, or the kernel refuses.
    pub(crate) fn set_default_routes(&self, wanted: &BTreeSet<IpNet>) -> Result<(), Error> {
        let Some(netns) = self.open_netns() else { return Ok(()) };
        let (name, metric) = (self.interface.as_str(), DEFAULT_METRIC + self.interface_number());
        netns.links(async |links| {
            for default in [IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())] {
                if wanted.contains(&default) && self.has_family_of(&default) {
                    links.add_default_route(name, default, metric).await?;
                } else {
                    links.remove_default_route(name, default, metric).await?;
                }
            }
            Ok(())
        })
    }

    /// Returns `true` if it is an egress gateway: a route to everything outside of the network.
    pub(crate) fn is_egress_gateway(&self) -> bool {
        self.origin == Origin::Route
            && self.report.prefixes.iter().any(meshward_types::outside::is_default)
    }

    /// Returns the routing table of its routes; `None` for the main one. The routes for prefixes
    /// behind this host are in a table of their own, which rules by source lead to.
    pub(super) fn table(&self) -> Option<u32> {
        (self.origin == Origin::Route).then(|| FIRST_TABLE + self.interface_number())
    }

    fn interface_number(&self) -> u32 {
        self.interface.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0)
    }

    /// Returns the rules by which packets from behind this host use its table; longer prefixes come
    /// first.
    fn rules(&self) -> Vec<Rule> {
        let own = self.report.addresses.iter().map(|address| IpNet::from(*address));
        let behind = self.report.prefixes.iter().copied();
        own.chain(behind)
            .map(|from| Rule {
                selector: RuleSelector::From(from),
                table: self.table(),
                priority: RULES + u32::from(from.max_prefix_len() - from.prefix_len()),
            })
            .collect()
    }

    /// Returns the rules for ICMP errors that this host and routers behind it send to the mesh:
    /// their source addresses are in no prefix of the route. Other packets that these rules select
    /// are dropped by the filter.
    fn rules_for_errors(&self, network: &NetworkSpec) -> Vec<Rule> {
        let reached = network.prefixes.iter().filter(|prefix| self.has_family_of(prefix));
        let rule = |prefix: &IpNet| Rule {
            selector: RuleSelector::IcmpTo(*prefix),
            table: self.table(),
            priority: RULES_FOR_ERRORS,
        };
        reached.map(rule).collect()
    }

    /// Returns the rules of an egress gateway that come before the one for its default route, which
    /// selects packets from anywhere to the network: what this host itself sends there goes by the
    /// main table, as without a gateway, but for its ICMP errors.
    fn rules_before_default(&self, network: &[IpNet]) -> Vec<Rule> {
        let is_reached = |prefix: &&IpNet| self.is_egress_gateway() && self.has_family_of(prefix);
        let rules = |prefix: &IpNet| {
            let first = RULES + u32::from(prefix.max_prefix_len()) - BEFORE_DEFAULT;
            let errors = Rule {
                selector: RuleSelector::IcmpTo(*prefix),
                table: self.table(),
                priority: first,
            };
            let own =
                Rule { selector: RuleSelector::LocalTo(*prefix), table: None, priority: first + 1 };
            [errors, own]
        };
        network.iter().filter(is_reached).flat_map(rules).collect()
    }

    /// Adds the rules of the table, if it is that of a route.
    pub(super) async fn add_rules(
        &self,
        links: &Links,
        network: &NetworkSpec,
    ) -> Result<(), Error> {
        if self.table().is_none() {
            return Ok(());
        }
        let before_default = self.rules_before_default(&network.prefixes);
        for Rule { selector, table, priority } in before_default.into_iter().chain(self.rules()) {
            links.add_rule(selector, table, priority).await?;
        }
        for prefix in &self.report.prefixes {
            // When the link to a prefix behind this host goes, its route goes along: packets to it
            // must not leave by the uplink then. Where the default route is what leads there, they
            // may.
            if prefix.prefix_len() > 0 && links.has_route(*prefix).await? {
                links.keep_off_default(&self.interface, *prefix, RULES_OFF_DEFAULT).await?;
            }
        }
        for Rule { selector, table, priority } in self.rules_for_errors(network) {
            // Kernels before 4.17 have no such rule, and do without these errors.
            if let Err(error) = links.add_rule(selector, table, priority).await {
                tracing::warn!(
                    "ICMP errors of this host's routers do not reach the mesh: {error}; this needs \
                    Linux 4.17 or later"
                );
            }
        }
        Ok(())
    }

    /// Removes the rules by which packets from behind this host use its table.
    pub(crate) fn remove_rules(&self) {
        let (Some(netns), Some(table)) = (self.open_netns(), self.table()) else { return };
        // Whatever the network's prefixes were: without a length, any.
        let any =
            [IpAddr::from([0; 4]), IpAddr::from([0; 16])].map(|any| IpNet::new_assert(any, 0));
        let for_errors = any.map(|any| Rule {
            selector: RuleSelector::IcmpTo(any),
            table: Some(table),
            priority: RULES_FOR_ERRORS,
        });
        let _ = netns.links(async |links| {
            let network = links.routes_of_table(table).await.unwrap_or_default();
            let before_default = self.rules_before_default(&network);
            let all = self.rules().into_iter().chain(for_errors).chain(before_default);
            for Rule { selector, table, priority } in all {
                let _ = links.remove_rule(selector, table, priority).await;
            }
            for prefix in &self.report.prefixes {
                let _ = links.allow_default(&self.interface, *prefix, RULES_OFF_DEFAULT).await;
            }
            Ok(())
        });
    }

    /// Returns `true` if the workload has an address of a prefix's family.
    pub(super) fn has_family_of(&self, prefix: &IpNet) -> bool {
        self.report.addresses.iter().any(|address| address.is_ipv4() == prefix.addr().is_ipv4())
    }
}
