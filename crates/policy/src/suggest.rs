//! A suggested policy: the least one that allows the observed flows.

use crate::document::{Policy, Rule};
use meshward_types::{
    IdentityId, LabelKey, Labels, NetworkName, PortSpec, Selector, selector::Requirement,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The largest number of labels that a selector uses to distinguish an identity before it uses all
/// of them.
const MOST_KEYS: usize = 3;

/// Suggests a policy that allows the observed flows and nothing else, between identities with
/// different labels.
///
/// Each identity is selected by as few labels as distinguish it from all others; the users of the
/// same ports of an identity share a rule.
pub fn suggest(
    network: NetworkName,
    identities: &BTreeMap<IdentityId, Labels>,
    seen: &BTreeSet<(IdentityId, IdentityId, PortSpec)>,
) -> Policy {
    let mut selectors: HashMap<IdentityId, Selector> = HashMap::new();
    for id in seen.iter().flat_map(|(from, to, _)| [*from, *to]) {
        if let Some(labels) = identities.get(&id) {
            selectors.entry(id).or_insert_with(|| distinguish(labels, identities));
        }
    }
    let mut ports: BTreeMap<(IdentityId, IdentityId), Vec<PortSpec>> = BTreeMap::new();
    for (from, to, port) in seen {
        ports.entry((*from, *to)).or_default().push(*port);
    }
    // The users, by destination and ports.
    let mut users: BTreeMap<(IdentityId, Vec<PortSpec>), Vec<&Selector>> = BTreeMap::new();
    for ((from, to), ports) in ports {
        if let Some(selector) = selectors.get(&from) {
            users.entry((to, ports)).or_default().push(selector);
        }
    }
    let mut policy = Policy::deny_all(network);
    let mut names = BTreeSet::new();
    for ((to, allow), from) in users {
        let Some(to) = selectors.get(&to) else { continue };
        for from in together(from) {
            let plain = format!("{}-to-{}", word(&from), word(to));
            let mut numbered = (2..).map(|number| format!("{plain}-{number}"));
            let name = match names.contains(&plain) {
                false => plain,
                true => numbered.find(|name| !names.contains(name)).unwrap_or_default(),
            };
            names.insert(name.clone());
            policy.rules.push(Rule::allowing(name, from, to.clone(), allow.clone()));
        }
    }
    policy
}

/// Returns the fewest labels that distinguish an identity from all others; among as many, the first
/// by key. Verified facts come last.
fn distinguish(labels: &Labels, identities: &BTreeMap<IdentityId, Labels>) -> Selector {
    let mut own: Vec<(&LabelKey, &str)> = labels.iter().collect();
    own.sort_by_key(|(key, _)| key.is_reserved());
    for count in 1..=MOST_KEYS.min(own.len()) {
        for chosen in subsets(own.len(), count) {
            let selector: Selector = chosen.iter().map(|at| exactly(own[*at])).collect();
            if identities
                .values()
                .filter(|other| selector.matches(other))
                .all(|other| other == labels)
            {
                return selector;
            }
        }
    }
    own.into_iter().map(exactly).collect()
}

fn exactly((key, value): (&LabelKey, &str)) -> (LabelKey, Requirement) {
    (key.clone(), Requirement::In(vec![value.to_owned()]))
}

/// Returns every choice of `count` of the first `total` numbers, in lexical order.
fn subsets(total: usize, count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![vec![]];
    }
    let with_first = |first: usize| {
        subsets(total - first - 1, count - 1).into_iter().map(move |rest| {
            std::iter::once(first).chain(rest.into_iter().map(move |at| at + first + 1)).collect()
        })
    };
    (0..total).flat_map(with_first).collect()
}

/// Joins selectors of a single label into one for each key.
fn together(selectors: Vec<&Selector>) -> Vec<Selector> {
    let mut by_key: BTreeMap<&LabelKey, Vec<String>> = BTreeMap::new();
    let mut others = Vec::new();
    for selector in selectors {
        let mut requirements = selector.requirements();
        match (requirements.next(), requirements.next()) {
            (Some((key, Requirement::In(values))), None) => {
                by_key.entry(key).or_default().extend(values.clone());
            }
            _ => others.push(selector.clone()),
        }
    }
    let joined = by_key
        .into_iter()
        .map(|(key, values)| Selector::from_iter([(key.clone(), Requirement::In(values))]));
    joined.chain(others).collect()
}

/// Formats a selector as a part of a name.
fn word(selector: &Selector) -> String {
    let values = selector.requirements().filter_map(|(_, requirement)| match requirement {
        Requirement::In(values) => Some(values.join("-")),
        _ => None,
    });
    let text = values.collect::<Vec<_>>().join("-");
    if text.is_empty() { "all".into() } else { text.chars().take(48).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile;
    use meshward_types::Protocol;
    use proptest::prelude::*;

    fn labels() -> impl Strategy<Value = Labels> {
        (0..4u8, 0..3u8, 0..2u8).prop_map(|(app, env, tier)| {
            let labels: Labels = format!("app=a{app},env=e{env}").parse().unwrap();
            labels.with_fact("site", &format!("s{tier}")).unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_suggestion_allows_what_was_seen_and_nothing_else(
            all in prop::collection::btree_set(labels(), 1..8),
            flows in prop::collection::vec((0..8u32, 0..8u32, 1..4u16), 0..20),
        ) {
            let identities: BTreeMap<IdentityId, Labels> = all
                .into_iter()
                .enumerate()
                .map(|(at, labels)| (IdentityId(at as u32), labels))
                .collect();
            let seen: BTreeSet<_> = flows
                .into_iter()
                .filter(|(a, b, _)| {
                    [a, b].iter().all(|id| identities.contains_key(&IdentityId(**id)))
                })
                .map(|(a, b, port)| {
                    (IdentityId(a), IdentityId(b), format!("tcp/{port}").parse().unwrap())
                })
                .collect();
            let policy = suggest("shop".parse().unwrap(), &identities, &seen);
            let text = serde_saphyr::to_string(&policy).unwrap();
            prop_assert_eq!(&Policy::parse(&text).unwrap(), &policy, "it can be applied");
            for (a, from) in &identities {
                for (b, to) in &identities {
                    let acl = compile(&policy, from, to, &[]);
                    for port in 1..4u16 {
                        let spec: PortSpec = format!("tcp/{port}").parse().unwrap();
                        prop_assert_eq!(
                            acl.allows(Protocol::Tcp, port),
                            seen.contains(&(*a, *b, spec))
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_suggestion_reads_as_a_person_would_write_it() {
        let identities: BTreeMap<IdentityId, Labels> =
            ["app=web,env=prod", "app=shop,env=prod", "app=api,env=prod"]
                .into_iter()
                .enumerate()
                .map(|(at, labels)| (IdentityId(at as u32), labels.parse().unwrap()))
                .collect();
        let seen = [(0, 2), (1, 2)]
            .map(|(a, b)| (IdentityId(a), IdentityId(b), "tcp/80".parse().unwrap()))
            .into();
        let policy = suggest("shop".parse().unwrap(), &identities, &seen);
        assert_eq!(policy.rules.len(), 1);
        assert_eq!(policy.rules[0].name, "web-shop-to-api");
        assert_eq!(policy.rules[0].from.to_string(), "app in (web,shop)");
        assert_eq!(policy.rules[0].to.to_string(), "app=api");
    }
}
