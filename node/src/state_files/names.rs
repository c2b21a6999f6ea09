//! The names outside of the mesh that workloads of a network have learnt.

use meshward_datapath::LearntName;
use meshward_runtime::state_files::StateFile;
use meshward_types::dns::DomainName;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// The names by the address of the workload that has asked.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamesFile {
    askers: BTreeMap<IpAddr, BTreeMap<DomainName, Vec<NameEntry>>>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct NameEntry {
    address: IpAddr,
    /// Seconds since 1970 until which flows may begin.
    fresh_until: u64,
}

impl StateFile for NamesFile {}

impl NamesFile {
    /// The file with these names, written at `now`, the time since 1970.
    pub(crate) fn new(names: Vec<LearntName>, now: Duration) -> Self {
        let mut askers: BTreeMap<_, BTreeMap<_, Vec<_>>> = BTreeMap::new();
        for LearntName { asker, name, address, fresh_for } in names {
            let entry = NameEntry { address, fresh_until: (now + fresh_for).as_secs() };
            askers.entry(asker).or_default().entry(name).or_default().push(entry);
        }
        askers.values_mut().flat_map(BTreeMap::values_mut).for_each(|entries| entries.sort());
        Self { askers }
    }

    /// Returns the names, read at `now`, the time since 1970.
    pub(crate) fn names(self, now: Duration) -> Vec<LearntName> {
        let mut names = Vec::new();
        for (asker, of_asker) in self.askers {
            for (name, entries) in of_asker {
                names.extend(entries.into_iter().map(|NameEntry { address, fresh_until }| {
                    let fresh_for = Duration::from_secs(fresh_until).saturating_sub(now);
                    LearntName { asker, name: name.clone(), address, fresh_for }
                }));
            }
        }
        names
    }
}
