//! Addresses and names outside of the mesh, as rules and tests name them.

use super::{
    reader::{Parts, Reader},
    tree::{At, Kind, Node},
};
use crate::{
    egress_label::of_egress_gateway,
    target::{Destination, OUTSIDE},
};
use ipnet::IpNet;
use meshward_types::{NamePattern, OutsideTarget};
use std::net::IpAddr;

/// Addresses and names outside of the mesh, and the map in which they stand.
pub(super) struct Outside<'a> {
    pub(super) parts: Parts<'a>,
    pub(super) targets: Vec<OutsideTarget>,
}

impl Reader {
    /// Reads the addresses and names outside of the mesh that stand under `to`, if any do.
    pub(super) fn outside<'a>(&mut self, parts: &Parts<'a>) -> Option<Outside<'a>> {
        let node = parts.get("to")?;
        let Kind::Map(entries) = &node.kind else { return None };
        let is_named = |(key, value): &(Node, Node)| {
            OUTSIDE.contains(&key.text().unwrap_or_default()) && !matches!(value.kind, Kind::Map(_))
        };
        // A label of such a key is written long: `{ dns: { in: [VALUE] } }`.
        if !entries.iter().any(is_named) {
            return None;
        }
        let what = "a target outside of the mesh";
        let own = self.parts(parts.file, what, node, &["cidr", "dns", "via"])?;
        let mut targets = Vec::new();
        for (text, at) in self.one_or_more(&own, "cidr") {
            match text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
                Ok(prefix) => targets.push((OutsideTarget::Cidr(prefix.trunc()), at)),
                Err(_) => {
                    let text = format!("`{text}` is no prefix; write one such as 203.0.113.0/24");
                    self.problem(own.file, at, text);
                }
            }
        }
        for (text, at) in self.one_or_more(&own, "dns") {
            match text.parse::<NamePattern>() {
                Ok(pattern) => targets.push((OutsideTarget::Dns(pattern), at)),
                Err(text) => self.problem(own.file, at, text),
            }
        }
        let is_counted = |(target, at)| self.count(own.file, at, 1).then_some(target);
        let targets: Vec<OutsideTarget> = targets.into_iter().filter_map(is_counted).collect();
        if targets.is_empty() {
            let text = "`to` names nothing outside of the mesh: write at least one prefix under \
                `cidr`, or one domain name under `dns`";
            self.problem(own.file, own.at, text);
        }
        Some(Outside { parts: own, targets })
    }

    /// Returns a text, or the items of a list of texts.
    fn one_or_more<'a>(&mut self, parts: &Parts<'a>, key: &str) -> Vec<(&'a str, At)> {
        match parts.get(key).map(|node| (node, node.text())) {
            Some((node, Some(text))) => vec![(text, node.at)],
            _ => self.texts(parts, key),
        }
    }

    /// Reads the destination of a test: one address or name.
    pub(super) fn outside_destination(&mut self, outside: Outside<'_>) -> Option<Destination> {
        let Outside { parts, targets } = outside;
        let labels = of_egress_gateway(&self.optional(&parts, "via").unwrap_or_default());
        if labels.is_none() {
            self.problem(parts.file, parts.at, "`via` has too many labels");
        }
        let [target] = <[_; 1]>::try_from(targets)
            .map_err(|targets| {
                if targets.len() > 1 {
                    let text = "a test is about one address or name; write a test for each";
                    self.problem(parts.file, parts.at, text);
                }
            })
            .ok()?;
        Some(Destination::Outside { target, labels: labels? })
    }
}
