//! Policies: read, checked by their own tests, compared with what is there, applied.

use super::{
    credentials::covers,
    networks::find,
    workloads::{Rejudged, rejudge},
};
use crate::{
    mesh::{Plan, Refusal},
    records::{Mutation, PolicyRecord, Read, Record, RecordKey},
    world::{NetworkState, World},
};
use meshward_model::{
    AcceptFrom, Acl, IdentityId, Labels, NetworkName, PortSpec, Selector, Verdict,
    api::{
        ExplainQuery, Explanation, Finding, Link, LinkChange, PolicyDifference, PolicyFile, PolicyResult,
        PolicyScope, Quarantine,
    },
    selector::Requirement,
};
use meshward_policy::{
    BadPolicy, Links, Own, Policy, PolicyStep, Written, compile, read, read_own, review, review_live,
    run_tests,
};
use std::{borrow::Cow, sync::Arc};

/// The most pairs that one explanation covers.
const MAX_PAIRS: usize = 400;

/// What is to become the policy of networks.
pub struct Submission<'a> {
    pub files: &'a [PolicyFile],
    /// Whether networks that no file names lose theirs.
    pub prune: bool,
    /// What part of the policy of one network the files take the place of; none: all of the networks that they name.
    pub scope: Option<&'a PolicyScope>,
    /// In which networks the author may say this; empty: in all.
    pub networks: &'a [NetworkName],
    /// Whether the author may change guardrails.
    pub guardrails: bool,
}

/// What a submission would change.
#[derive(Default)]
pub struct Applied {
    pub results: Vec<PolicyResult>,
    /// The links that close wholly or in part, as they would be: whose flows these are would be cut.
    pub closing: Vec<(NetworkName, Closing)>,
    /// What was read.
    pub written: Vec<Written>,
}

/// Links of a network, each with what it would let pass.
pub type Closing = Vec<(IdentityId, IdentityId, Acl)>;

/// Checks policies and works out what they change: all of them are applied, or none.
pub fn apply(world: &World, wanted: &Submission) -> Result<Plan<Applied>, Refusal> {
    let invalid = |error: BadPolicy| Refusal::Invalid(error.to_string());
    let mut plan = Plan::nothing(Applied::default());
    let (files, all) = match wanted.scope {
        None => (Cow::Borrowed(wanted.files), read(wanted.files).map_err(invalid)?),
        Some(scope) => {
            let files = beside_the_rest(world, wanted, scope)?;
            let own = read_own(&files, &scope.network).map_err(invalid)?;
            check_scope(&own, wanted.files, scope)?;
            (Cow::Owned(files), own.written.into_iter().collect())
        }
    };
    if let (Some(scope), []) = (wanted.scope, &all[..]) {
        let network = find(world, &scope.network)?;
        check_rights(wanted, network, None)?;
        remove(&mut plan, world, network);
    }
    let mut failures = Vec::new();
    for written in &all {
        let name = &written.policy.network;
        let network = find(world, name).map_err(|refusal| at(&written.begin.to_string(), refusal))?;
        check_rights(wanted, network, Some(&written.policy))?;
        failures.extend(test_failures(written));
        let mut files: Vec<PolicyFile> = files.to_vec();
        files.retain(|file| written.files.contains(&file.name));
        put(&mut plan, world, network, Arc::new(written.policy.clone()), files);
    }
    if !failures.is_empty() {
        let text = format!("the policy's own tests fail; nothing was applied\n{}", failures.join("\n"));
        return Err(Refusal::Invalid(text));
    }
    if wanted.prune {
        let kept = |name: &NetworkName| all.iter().any(|written| written.policy.network == *name);
        let others = world.networks.iter().filter(|(name, network)| {
            !kept(name) && !network.policy_files.is_empty() && covers(wanted.networks, name)
        });
        for (_, network) in others {
            check_rights(wanted, network, None)?;
            remove(&mut plan, world, network);
        }
    }
    let names: Vec<&str> = plan.mutations.iter().filter_map(network_of).collect();
    if !names.is_empty() {
        plan.action = format!("applied the policy of {}", names.join(", "));
    }
    plan.outcome.written = all;
    Ok(plan)
}

/// What would be the policy of a network if the files took the place of a part of it.
fn beside_the_rest(
    world: &World,
    wanted: &Submission,
    scope: &PolicyScope,
) -> Result<Vec<PolicyFile>, Refusal> {
    let invalid = |text: &str| Err(Refusal::Invalid(text.into()).about("scope"));
    if wanted.prune {
        return invalid("`prune` is about all networks, and `scope` about one; leave one of them out");
    }
    if !scope.only.is_empty() && !scope.except.is_empty() {
        return invalid("a scope has either `only` or `except`");
    }
    if let Some(file) = wanted.files.iter().find(|file| !scope.has(&file.name)) {
        return invalid(&format!("the file {} is not in the scope", file.name));
    }
    let network = find(world, &scope.network).map_err(|refusal| refusal.about("scope"))?;
    if let Some(file) = network.policy_files.iter().find(|file| scope.only_new && scope.has(&file.name)) {
        let (name, file) = (&scope.network, &file.name);
        let text = format!("network {name} has such a policy already, in {file}");
        return Err(Refusal::Conflict(text).about("scope"));
    }
    let others = network.policy_files.iter().filter(|file| !scope.has(&file.name));
    let mut files: Vec<PolicyFile> = wanted.files.iter().chain(others).cloned().collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Refuses files that speak of other networks than that of the scope. Those that stay may: they are the policy of these, too.
fn check_scope(own: &Own, files: &[PolicyFile], scope: &PolicyScope) -> Result<(), Refusal> {
    match own.others.iter().find(|(place, _)| files.iter().any(|file| file.name == place.file)) {
        None => Ok(()),
        Some((place, name)) => {
            let scope = &scope.network;
            let text = format!("{place}: this is about network {name}, and the scope is network {scope}");
            Err(Refusal::Invalid(text))
        }
    }
}

/// Goes back to a policy that a network had.
pub fn roll_back(
    world: &World,
    name: &NetworkName,
    past: Option<&PolicyRecord>,
    wanted: &Submission,
) -> Result<Plan<Applied>, Refusal> {
    let network = find(world, name)?;
    let mut plan = Plan::nothing(Applied::default());
    match past {
        Some(record) => {
            let policy = record.policy().map_err(Refusal::Conflict)?;
            check_rights(wanted, network, Some(&policy))?;
            put(&mut plan, world, network, policy, record.files.clone());
        }
        None => {
            check_rights(wanted, network, None)?;
            remove(&mut plan, world, network);
        }
    }
    if !plan.mutations.is_empty() {
        plan.action = format!("rolled the policy of {name} back");
    }
    Ok(plan)
}

fn at(place: &str, refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Missing(text) => Refusal::Missing(format!("{place}: {text}")),
        other => other,
    }
}

/// Which network a mutation of a policy is about.
fn network_of(mutation: &Mutation) -> Option<&str> {
    match mutation {
        Mutation::Put(Record::Policy(record)) => Some(record.network.as_str()),
        Mutation::Delete(RecordKey::Policy(name)) => Some(name.as_str()),
        _ => None,
    }
}

fn check_rights(wanted: &Submission, network: &NetworkState, policy: Option<&Policy>) -> Result<(), Refusal> {
    let name = &network.record.name;
    if !covers(wanted.networks, name) {
        return Err(Refusal::Forbidden(format!("this credential has no say in network `{name}`")));
    }
    let standing = &network.links.policy().guardrails;
    let same = policy.map_or(standing.is_empty(), |policy| {
        policy.guardrails.len() == standing.len()
            && policy.guardrails.iter().all(|rule| standing.contains(rule))
    });
    if !same && !wanted.guardrails {
        return Err(Refusal::Forbidden(format!(
            "the guardrails of network `{name}` belong to admins: leave them as they are, or ask an admin"
        )));
    }
    Ok(())
}

fn test_failures(written: &Written) -> Vec<String> {
    let failures = run_tests(&written.policy).into_iter();
    failures
        .map(|failure| match written.tests.get(failure.number - 1) {
            Some(place) => format!("{place}: {failure}"),
            None => failure.to_string(),
        })
        .collect()
}

fn put(
    plan: &mut Plan<Applied>,
    world: &World,
    network: &NetworkState,
    policy: Arc<Policy>,
    files: Vec<PolicyFile>,
) {
    let judged = note_changes(plan, world, network, &policy);
    if network.policy_files != files {
        let record = PolicyRecord { network: policy.network.clone(), files, read: Read(Some(policy)) };
        plan.mutations.push(Mutation::Put(Record::Policy(record)));
    }
    plan.mutations.extend(judged);
}

fn remove(plan: &mut Plan<Applied>, world: &World, network: &NetworkState) {
    let name = &network.record.name;
    let judged = note_changes(plan, world, network, &Arc::new(Policy::deny_all(name.clone())));
    if !network.policy_files.is_empty() {
        plan.mutations.push(Mutation::Delete(RecordKey::Policy(name.clone())));
    }
    plan.mutations.extend(judged);
}

/// Notes what a policy changes, and gives what becomes of the workloads.
fn note_changes(
    plan: &mut Plan<Applied>,
    world: &World,
    network: &NetworkState,
    policy: &Arc<Policy>,
) -> Vec<Mutation> {
    let name = &network.record.name;
    let step = network.links.step(world.with_forensics(name, policy.clone()));
    let (opened, closed) = changes(&network.links, &step);
    let closing = step
        .changes
        .iter()
        .filter(|change| change.before.is_some())
        .map(|change| (change.from, change.to, change.after.as_deref().cloned().unwrap_or_default()));
    plan.outcome.closing.push((name.clone(), closing.collect()));
    let Rejudged { mutations, admitted, refused } = rejudge(world, network, policy);
    plan.outcome.results.push(PolicyResult {
        network: name.clone(),
        rules: policy.rules.len() + policy.guardrails.len(),
        tests_passed: policy.tests.len(),
        opened,
        closed,
        admitted,
        refused,
        cuts: vec![],
    });
    mutations
}

/// The links that open and those that close; one that does both stands in both.
fn changes(links: &Links, step: &PolicyStep) -> (Vec<LinkChange>, Vec<LinkChange>) {
    let nothing = Acl::default();
    let (mut opened, mut closed) = (Vec::new(), Vec::new());
    for change in &step.changes {
        let old = change.before.as_deref().unwrap_or(&nothing);
        let new = change.after.as_deref().unwrap_or(&nothing);
        let (Some(from), Some(to)) = (links.labels(change.from), links.labels(change.to)) else { continue };
        let change = LinkChange {
            from: from.clone(),
            to: to.clone(),
            before: old.to_string(),
            after: new.to_string(),
        };
        if !covers_all(old, new) {
            opened.push(change.clone());
        }
        if !covers_all(new, old) {
            closed.push(change);
        }
    }
    for list in [&mut opened, &mut closed] {
        list.sort_unstable_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
    }
    (opened, closed)
}

/// Whether everything that `inner` allows is allowed by `outer`.
fn covers_all(outer: &Acl, inner: &Acl) -> bool {
    inner
        .entries()
        .iter()
        .all(|entry| outer.allows_all(PortSpec { protocol: Some(entry.protocol), ports: entry.ports }))
}

/// What is suspicious in policies, beside the workloads that there are.
pub fn findings(world: &World, all: &[Written]) -> Vec<Finding> {
    let mut problems = Vec::new();
    for written in all {
        problems.extend(review(written));
        if let Some(network) = world.networks.get(&written.policy.network) {
            problems.extend(review_live(written, &network.links));
        }
    }
    problems.sort();
    problems
        .into_iter()
        .map(|problem| Finding { place: problem.place.to_string(), text: problem.text })
        .collect()
}

/// The links between two policies of a network, among the workloads of now.
pub fn difference(
    world: &World,
    name: &NetworkName,
    policies: [Option<&PolicyRecord>; 2],
) -> Result<PolicyDifference, Refusal> {
    let network = find(world, name)?;
    let mut read = Vec::new();
    for record in policies {
        read.push(match record {
            Some(record) => record.policy().map_err(Refusal::Conflict)?,
            None => Arc::new(Policy::deny_all(name.clone())),
        });
    }
    let mut links = network.links.clone();
    let step = links.step(read.swap_remove(0));
    links.take(step);
    let (opened, closed) = changes(&links, &links.step(read.swap_remove(0)));
    Ok(PolicyDifference { network: name.clone(), opened, closed })
}

/// The links of a network, without counters.
pub fn links(network: &NetworkState) -> Vec<((IdentityId, IdentityId), Link)> {
    let link = |(from, to, acl): (IdentityId, IdentityId, &Arc<Acl>)| {
        let link = Link {
            network: network.record.name.clone(),
            from: network.links.labels(from)?.clone(),
            to: network.links.labels(to)?.clone(),
            acl: Acl::clone(acl),
            packets: 0,
            bytes: 0,
            denied: 0,
            observed: 0,
        };
        Some(((from, to), link))
    };
    network.links.all().filter_map(link).collect()
}

/// The policies and quarantines of a revision.
pub struct Past(pub Vec<Record>);

impl Past {
    /// The policy that a network had.
    pub fn policy(&self, name: &NetworkName) -> Option<&PolicyRecord> {
        self.0.iter().find_map(|record| match record {
            Record::Policy(policy) if policy.network == *name => Some(policy),
            _ => None,
        })
    }

    fn quarantine_of(&self, network: &NetworkName, labels: &Labels) -> Option<&Quarantine> {
        self.0.iter().find_map(|record| match record {
            Record::Quarantine(quarantine) => {
                let target = &quarantine.target;
                let selected = target.selector.as_ref().is_some_and(|selector| selector.matches(labels));
                let here = target.network.as_ref().is_none_or(|own| own == network);
                (selected && here).then_some(quarantine)
            }
            _ => None,
        })
    }
}

/// What an explanation rests on.
struct Explaining<'a> {
    world: &'a World,
    network: &'a NetworkState,
    policy: Arc<Policy>,
    past: Option<&'a Past>,
}

/// Says which rule decides between two selectors; by the policies and quarantines of `past`, if there is one.
pub fn explain(
    world: &World,
    query: &ExplainQuery,
    past: Option<&Past>,
) -> Result<Vec<Explanation>, Refusal> {
    let network = match &query.network {
        Some(name) => find(world, name)?,
        None if world.networks.len() == 1 => world.networks.values().next().ok_or_else(no_network)?,
        None if world.networks.is_empty() => return Err(no_network()),
        None => return Err(Refusal::Invalid("there are several networks; add `--network NAME`".into())),
    };
    let name = &network.record.name;
    let policy = match past.map(|past| past.policy(name)) {
        None => network.links.policy().clone(),
        Some(Some(record)) => record.policy().map_err(Refusal::Conflict)?,
        Some(None) => Arc::new(Policy::deny_all(name.clone())),
    };
    let explaining = Explaining { world, network, policy, past };
    let (from, to) = (parties(network, &query.from)?, parties(network, &query.to)?);
    let pairs = from.iter().flat_map(|a| to.iter().map(move |b| (a, b)));
    Ok(pairs.take(MAX_PAIRS).map(|(a, b)| explaining.verdict(a, b, query.port)).collect())
}

fn no_network() -> Refusal {
    Refusal::Missing("there is no network yet; make one with `meshctl network create NAME --cidr ...`".into())
}

struct Party {
    labels: Labels,
    accepts: Vec<AcceptFrom>,
    live: bool,
}

/// The live identities that a selector selects; where there is none, the labels that it spells out.
fn parties(network: &NetworkState, selector: &Selector) -> Result<Vec<Party>, Refusal> {
    let selected = network.links.select(selector).into_iter();
    let live: Vec<Party> = selected
        .filter_map(|id| {
            let (labels, accepts) = (network.links.labels(id)?.clone(), network.links.accepts(id).to_vec());
            Some(Party { labels, accepts, live: true })
        })
        .collect();
    if !live.is_empty() {
        return Ok(live);
    }
    let spelled = selector.requirements().map(|(key, requirement)| match requirement {
        Requirement::In(values) if values.len() == 1 => Ok(format!("{key}={}", values[0])),
        _ => Err(Refusal::Missing(format!(
            "no workload of network `{}` is selected by `{selector}`; give exact labels, such as app=web, to ask about one that is not there yet",
            network.record.name
        ))),
    });
    let spelled = spelled.collect::<Result<Vec<String>, _>>()?;
    let labels = Labels::parse_each(spelled.iter().map(String::as_str))
        .map_err(|error| Refusal::Invalid(error.to_string()))?;
    Ok(vec![Party { labels, accepts: vec![], live: false }])
}

impl Explaining<'_> {
    fn held(&self, labels: &Labels) -> Option<&Quarantine> {
        let name = &self.network.record.name;
        match self.past {
            Some(past) => past.quarantine_of(name, labels),
            None => self.world.quarantine_of(name, labels, None),
        }
    }

    fn verdict(&self, from: &Party, to: &Party, port: PortSpec) -> Explanation {
        let policy = &self.policy;
        let held = [from, to].into_iter().find_map(|end| Some((self.held(&end.labels)?, end)));
        let (verdict, because) = match (held, port.protocol) {
            (Some((quarantine, end)), _) => {
                let forensic = self.held(&from.labels).is_none()
                    && quarantine.allow_from.as_ref().is_some_and(|selector| selector.matches(&from.labels));
                let text = format!("quarantine {} holds {}", quarantine.id, end.labels);
                match forensic {
                    true => (Verdict::Allowed, format!("{text}, and lets {} in", from.labels)),
                    false => (Verdict::Denied, text),
                }
            }
            (None, Some(protocol)) if port.ports.first == port.ports.last || !protocol.has_ports() => {
                let decision =
                    policy.decide(&from.labels, &to.labels, &to.accepts, protocol, port.ports.first);
                (decision.verdict, decision.reason.to_string())
            }
            _ => {
                let acl = compile(policy, &from.labels, &to.labels, &to.accepts);
                let verdict = if acl.allows_all(port) { Verdict::Allowed } else { Verdict::Denied };
                let because = if acl.allows_all(port) {
                    "all of it is allowed".to_owned()
                } else if acl.allows_some(port) || !acl.observed().is_empty() {
                    format!("only a part passes: {acl}; ask for a single port to see its rule")
                } else {
                    "none of it is allowed; ask for a single port to see its rule".to_owned()
                };
                (verdict, because)
            }
        };
        Explanation {
            from: from.labels.clone(),
            to: to.labels.clone(),
            port,
            allowed: verdict != Verdict::Denied,
            observed: verdict == Verdict::Observed,
            because,
            live: from.live && to.live,
        }
    }
}
