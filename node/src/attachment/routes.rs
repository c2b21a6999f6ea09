//! The routes of a workload, and the rules by which packets from behind this host use them.

use super::record::{Attachment, Origin};
use ipnet::IpNet;
use meshward_control_proto::view::NetworkSpec;
use meshward_netns::{Error, Links, RuleSelector};
use std::net::IpAddr;

/// The first of the routing tables that are used for prefixes behind this host.
const FIRST_TABLE: u32 = 0x4d57_0000;
/// The priority of the rule for a host address behind this host (ip-rule(8)); shorter prefixes come
/// after it, up to the default route at + 128.
const RULES: u32 = 10_000;
/// The priority of the rules for ICMP errors.
const RULES_FOR_ERRORS: u32 = RULES + 129;
/// The first of two priorities of rules that keep packets off the default route.
const RULES_OFF_DEFAULT: u32 = RULES_FOR_ERRORS + 1;

/// A routing rule of the workload's table.
struct Rule {
    selector: RuleSelector,
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

    /// Returns the routing table of its routes; `None` for the main one. The routes for prefixes
    /// behind this host are in a table of their own, which rules by source lead to.
    pub(super) fn table(&self) -> Option<u32> {
        let number: u32 =
            self.interface.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0);
        (self.origin == Origin::Route).then_some(FIRST_TABLE + number)
    }

    /// Returns the rules by which packets from behind this host use its table; longer prefixes come
    /// first.
    fn rules(&self) -> Vec<Rule> {
        let own = self.report.addresses.iter().map(|address| IpNet::from(*address));
        let behind = self.report.prefixes.iter().copied();
        own.chain(behind)
            .map(|from| Rule {
                selector: RuleSelector::From(from),
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
            priority: RULES_FOR_ERRORS,
        };
        reached.map(rule).collect()
    }

    /// Adds the rules of the table, if it is that of a route.
    pub(super) async fn add_rules(
        &self,
        links: &Links,
        network: &NetworkSpec,
    ) -> Result<(), Error> {
        let Some(table) = self.table() else { return Ok(()) };
        for Rule { selector, priority } in self.rules() {
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
        for Rule { selector, priority } in self.rules_for_errors(network) {
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
        let for_errors =
            any.map(|any| Rule { selector: RuleSelector::IcmpTo(any), priority: RULES_FOR_ERRORS });
        let _ = netns.links(async |links| {
            for Rule { selector, priority } in self.rules().into_iter().chain(for_errors) {
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
