//! Addresses behind gateways: machines that run no daemon of ours, reached by prefixes that nodes
//! vouch for and the coordinator has approved. The longest prefix counts, as in any router. Several
//! gateways may have one prefix: then the first of them that answers is used.

use crate::index::PeerIndex;
use ipnet::IpNet;
use std::{collections::HashSet, net::IpAddr};

/// Prefixes, each with the gateways behind which it lies.
#[derive(Debug)]
pub(crate) struct Prefixes<T>(Vec<(IpNet, Vec<T>)>);

/// The longest prefix that contains an address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LongestPrefix<'a, T> {
    /// The length of the prefix, in bits.
    pub(crate) length: u8,
    pub(crate) gateways: &'a [T],
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy> Prefixes<T> {
    /// Adds a gateway of a prefix; those of a prefix are in the order of `rank`.
    pub(crate) fn add<R: Ord>(&mut self, prefix: IpNet, gateway: T, rank: impl Fn(&T) -> R) {
        let at = self.0.partition_point(|(known, _)| {
            (known.prefix_len(), *known) > (prefix.prefix_len(), prefix)
        });
        match self.0.get_mut(at).filter(|(known, _)| *known == prefix) {
            Some((_, gateways)) => {
                gateways.push(gateway);
                gateways.sort_by_key(rank);
            }
            None => self.0.insert(at, (prefix, vec![gateway])),
        }
    }

    /// Removes the gateways for which `gone` holds.
    pub(crate) fn remove(&mut self, prefix: IpNet, gone: impl Fn(&T) -> bool) {
        if let Some((_, gateways)) = self.0.iter_mut().find(|(known, _)| *known == prefix) {
            gateways.retain(|gateway| !gone(gateway));
        }
        self.0.retain(|(_, gateways)| !gateways.is_empty());
    }

    /// Returns the longest prefix that contains an address.
    pub(crate) fn find(&self, address: IpAddr) -> Option<LongestPrefix<'_, T>> {
        let (prefix, gateways) = self.0.iter().find(|(prefix, _)| prefix.contains(&address))?;
        Some(LongestPrefix { length: prefix.prefix_len(), gateways })
    }

    /// Returns the gateways of exactly this prefix.
    pub(crate) fn of(&self, prefix: IpNet) -> &[T] {
        let found = self.0.iter().find(|(known, _)| *known == prefix);
        found.map_or(&[], |(_, gateways)| gateways)
    }

    /// All who share a prefix with others.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &T> {
        self.0.iter().filter(|(_, gateways)| gateways.len() > 1).flat_map(|(_, gateways)| gateways)
    }
}

/// Returns the first of several that is not down; the first of all if all are.
pub(crate) fn first_up<T: Copy>(
    gateways: &[T],
    down: &HashSet<PeerIndex>,
    peer: impl Fn(&T) -> PeerIndex,
) -> Option<T> {
    let up = gateways.iter().find(|gateway| !down.contains(&peer(gateway)));
    up.or(gateways.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_counts_and_the_first_that_is_up() {
        let mut prefixes = Prefixes::default();
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        for (prefix, gateway) in
            [("10.8.0.0/16", 3), ("10.8.0.0/24", 2), ("10.8.0.0/24", 1), ("fd08::/64", 7)]
        {
            prefixes.add(net(prefix), gateway, |gateway| *gateway);
        }
        let find = |prefixes: &Prefixes<u32>, address: &str| -> Option<Vec<u32>> {
            prefixes.find(address.parse().unwrap()).map(|found| found.gateways.to_vec())
        };
        assert_eq!(find(&prefixes, "10.8.0.9"), Some(vec![1, 2]));
        assert_eq!(find(&prefixes, "10.8.1.9"), Some(vec![3]));
        assert_eq!(find(&prefixes, "fd08::1"), Some(vec![7]));
        assert_eq!(find(&prefixes, "10.9.0.1"), None);
        assert_eq!(prefixes.shared().copied().collect::<Vec<_>>(), [1, 2]);
        let up = |down: &[u32]| {
            let down = down.iter().copied().map(PeerIndex).collect();
            first_up(&[1, 2], &down, |at| PeerIndex(*at))
        };
        assert_eq!([up(&[]), up(&[1]), up(&[1, 2])], [Some(1), Some(2), Some(1)]);
        prefixes.remove(net("10.8.0.0/24"), |_| true);
        assert_eq!(find(&prefixes, "10.8.0.9"), Some(vec![3]));
    }
}
