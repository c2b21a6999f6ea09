//! Policies: parsed, checked by their own tests, compared with those in force, applied.
//!
//! The long computations use a [`Basis`], an immutable snapshot that is cheap to take, without the
//! world's lock. [`plan`] makes a plan of their results if the world still has the same basis.

mod basis;
mod checks;
mod difference;
mod explain;

pub use super::{
    admission_preview::AdmissionPreview, admission_preview::PrecomputedVerdicts,
    admission_preview::preview_admission,
};
pub use basis::Basis;
pub use difference::{Snapshot, difference};
pub use explain::{Past, explain};

use basis::NetworkBasis;
use checks::{check_scope, findings, test_failures};
use difference::{Changes, changes};

use super::{
    credentials::covers,
    networks::find,
    reclassify::{Reclassified, reclassify_under},
    services::{AddressChanges, plan_addresses},
};
use crate::{
    Plan, Refusal,
    plan::PolicyUpdate,
    records::{Mutation, PolicyRecord, Record, RecordKey},
    world::{NetworkState, World},
};
use meshward_api_types::{Finding, PolicyResult, PolicyScope};
use meshward_control_proto::LinkAcl;
use meshward_policy::{
    BadPolicy, Bounds, Budget, LetIn, ParsedPolicy, Policy, PolicyStep, TooMuch, read, read_own,
};
use meshward_types::{NetworkName, PolicyFile};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The largest number of closing links whose live flows nodes are asked to count.
const MAX_CLOSING: usize = 100_000;
/// The largest number of failed tests that are listed.
const MAX_FAILURES: usize = 100;

/// A submission of policies.
#[derive(Debug, Clone, Default)]
pub struct Submission {
    /// The files.
    pub files: Arc<Vec<PolicyFile>>,
    /// `true` if networks that no file names lose their policies.
    pub prune: bool,
    /// The part of one network's policy that the files replace; `None` for the whole policies of
    /// the networks that they name.
    pub scope: Option<PolicyScope>,
    /// A rollback instead of files: a network and its former policy.
    pub back: Option<(NetworkName, Option<PolicyRecord>)>,
    /// The networks whose policy the author may change; empty for all.
    pub networks: Vec<NetworkName>,
    /// `true` if the author may change guardrails.
    pub guardrails: bool,
    /// `true` if both ends of every TCP connection that is no longer allowed get a reset.
    pub reset: bool,
}

/// The effects of a submission.
#[derive(Default)]
pub struct Applied {
    /// The effect on each network.
    pub results: Vec<PolicyResult>,
    /// The links that close, wholly or in part, with their new ACLs: some of their flows are cut.
    pub closing: Vec<ClosingLinks>,
    /// Suspicious rules, in dry runs.
    pub findings: Vec<Finding>,
}

/// Links of a network that close, wholly or in part, with their new ACLs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosingLinks {
    /// The network.
    pub network: NetworkName,
    /// The links.
    pub links: Vec<LinkAcl>,
}

/// A submission that was parsed, and its effects on a basis.
pub struct Prepared {
    read: Reading,
    networks: Vec<PreparedNetwork>,
}

/// A submission that was parsed, and whose own tests have passed.
#[derive(Clone)]
struct Reading {
    /// All files that policies were read from.
    files: Arc<Vec<PolicyFile>>,
    parsed: Arc<Vec<ParsedPolicy>>,
    /// With a scope: the other files of the network, which were parsed together with it.
    beside: Option<Arc<Vec<PolicyFile>>>,
}

/// The effects on one network.
struct PreparedNetwork {
    name: NetworkName,
    /// The new policy; default deny if there are no files.
    policy: Arc<Policy>,
    files: Arc<Vec<PolicyFile>>,
    is_new: bool,
    step: Arc<PolicyStep>,
    closing: Vec<LinkAcl>,
    result: PolicyResult,
}

impl PreparedNetwork {
    fn closing_links(&self) -> ClosingLinks {
        ClosingLinks { network: self.name.clone(), links: self.closing.clone() }
    }
}

/// Plans a submission at once.
///
/// # Errors
/// Fails as [`prepare`] does.
pub fn apply(world: &World, wanted: &Submission) -> Result<Plan<Applied>, Refusal> {
    plan(world, &prepare(&Basis::of(world), wanted, None)?, wanted, &BTreeMap::new(), None)
}

/// Parses a submission, runs its tests and computes its effects on a basis. `before` is the result
/// on an earlier basis, which saves parsing.
///
/// # Errors
/// Fails if the policies are invalid or the author may not change one of them; the refusal says
/// which.
pub fn prepare(
    basis: &Basis,
    wanted: &Submission,
    before: Option<&Prepared>,
) -> Result<Prepared, Refusal> {
    if let Some((name, past)) = &wanted.back {
        return prepare_back(basis, wanted, name, past.as_ref());
    }
    let known = before.map(|before| before.read.clone()).filter(|read| read.is_of(basis, wanted));
    let read = match known {
        Some(read) => read,
        None => Reading::of(basis, wanted)?,
    };
    let bounds = Bounds::usual();
    let mut networks = Vec::new();
    if let (Some(scope), true) = (&wanted.scope, read.parsed.is_empty()) {
        networks.push(prepare_network(basis, wanted, &scope.network, None, &bounds)?);
    }
    for parsed in &*read.parsed {
        let name = &parsed.policy.network;
        let location = parsed.begin.to_string();
        check_reach(wanted, name)?;
        basis.find(name).map_err(|refusal| at(&location, refusal))?;
        let files = read.files.iter().filter(|file| parsed.files.contains(&file.name));
        let becomes = (Arc::new(parsed.policy.clone()), Arc::new(files.cloned().collect()));
        networks.push(prepare_network(basis, wanted, name, Some(becomes), &bounds)?);
    }
    if wanted.prune {
        let kept =
            |name: &NetworkName| read.parsed.iter().any(|parsed| parsed.policy.network == *name);
        let others = basis.networks.iter().filter(|(name, network)| {
            !kept(name) && !network.files.is_empty() && covers(&wanted.networks, name)
        });
        for (name, _) in others {
            networks.push(prepare_network(basis, wanted, name, None, &bounds)?);
        }
    }
    Ok(Prepared { read, networks })
}

fn prepare_back(
    basis: &Basis,
    wanted: &Submission,
    name: &NetworkName,
    past: Option<&PolicyRecord>,
) -> Result<Prepared, Refusal> {
    let becomes = match past {
        Some(record) => Some((record.policy().map_err(Refusal::Conflict)?, record.files.clone())),
        None => None,
    };
    let network = prepare_network(basis, wanted, name, becomes, &Bounds::usual())?;
    let read = Reading { files: Arc::default(), parsed: Arc::default(), beside: None };
    Ok(Prepared { read, networks: vec![network] })
}

impl Reading {
    fn of(basis: &Basis, wanted: &Submission) -> Result<Self, Refusal> {
        let invalid = |error: BadPolicy| Refusal::Invalid(error.to_string());
        let read = match &wanted.scope {
            None => Self {
                files: wanted.files.clone(),
                parsed: Arc::new(read(&wanted.files).map_err(invalid)?),
                beside: None,
            },
            Some(scope) => {
                let files = beside_the_rest(basis, wanted, scope)?;
                let own = read_own(&files, &scope.network).map_err(invalid)?;
                check_scope(&own, &wanted.files, scope)?;
                Self {
                    files: Arc::new(files),
                    parsed: Arc::new(own.parsed.into_iter().collect()),
                    beside: Some(basis.find(&scope.network)?.files.clone()),
                }
            }
        };
        let budget = Budget::of(Budget::PLAN);
        let mut failures = Vec::new();
        for parsed in &*read.parsed {
            failures.extend(test_failures(parsed, &budget)?);
        }
        if failures.is_empty() {
            return Ok(read);
        }
        let more = failures.len().saturating_sub(MAX_FAILURES);
        failures.truncate(MAX_FAILURES);
        if more > 0 {
            failures.push(format!("and {more} more"));
        }
        let text =
            format!("the policy's own tests fail; nothing was applied\n{}", failures.join("\n"));
        Err(Refusal::Invalid(text))
    }

    /// Returns `true` if parsing on a basis gives the same result.
    fn is_of(&self, basis: &Basis, wanted: &Submission) -> bool {
        match (&wanted.scope, &self.beside) {
            (Some(scope), Some(beside)) => basis
                .networks
                .get(&scope.network)
                .is_some_and(|network| Arc::ptr_eq(&network.files, beside)),
            _ => wanted.scope.is_none(),
        }
    }
}

/// Computes the effects of a new policy on a network; without one, the network loses its policy.
fn prepare_network(
    basis: &Basis,
    wanted: &Submission,
    name: &NetworkName,
    becomes: Option<(Arc<Policy>, Arc<Vec<PolicyFile>>)>,
    bounds: &Bounds,
) -> Result<PreparedNetwork, Refusal> {
    check_reach(wanted, name)?;
    let NetworkBasis { files: before, inputs } = basis.find(name)?;
    check_rights(wanted, name, inputs.policy(), becomes.as_ref().map(|(policy, _)| &**policy))?;
    let nothing = || (Arc::new(Policy::deny_all(name.clone())), Arc::default());
    let (policy, files) = becomes.unwrap_or_else(nothing);
    let too_much =
        |error: TooMuch| Refusal::Invalid(format!("the policy of network {name}: {error}"));
    let letting_in = with_let_in(&policy, &inputs.policy().let_in);
    let step = inputs.step(letting_in, bounds).map_err(too_much)?;
    let closing = step.changes.iter().filter(|change| change.before.is_some());
    let closing = closing.map(|change| LinkAcl {
        from: change.from,
        to: change.to,
        acl: change.after.as_deref().cloned().unwrap_or_default(),
    });
    let closing = closing.take(MAX_CLOSING).collect();
    let Changes { opened, closed, more_opened, more_closed } = changes(inputs, &step);
    let result = PolicyResult {
        network: name.clone(),
        rules: policy.rules.len() + policy.guardrails.len(),
        tests_passed: policy.tests.len(),
        opened,
        closed,
        more_opened,
        more_closed,
        admitted: vec![],
        refused: vec![],
        cuts: vec![],
    };
    let is_new = **before != *files;
    Ok(PreparedNetwork {
        name: name.clone(),
        policy,
        files,
        is_new,
        step: Arc::new(step),
        closing,
        result,
    })
}

/// Returns a policy with the rules of quarantines that let workloads reach isolated ones.
fn with_let_in(policy: &Arc<Policy>, let_in: &[LetIn]) -> Arc<Policy> {
    match let_in.is_empty() {
        true => policy.clone(),
        false => Arc::new(Policy { let_in: let_in.to_vec(), ..Policy::clone(policy) }),
    }
}

/// Plans a submission: all of its networks, or none. `precomputed` has verdicts of admission, and
/// `touched` the workloads that may have changed since they were computed, if that is known.
///
/// # Errors
/// [`Refusal::Stale`] if the world has another basis now.
pub fn plan(
    world: &World,
    prepared: &Prepared,
    wanted: &Submission,
    precomputed: &BTreeMap<NetworkName, PrecomputedVerdicts>,
    touched: Option<&BTreeSet<String>>,
) -> Result<Plan<Applied>, Refusal> {
    let mut plan = Plan::nothing(Applied::default());
    for part in &prepared.networks {
        let network = find(world, &part.name)?;
        if !network.links.are_inputs_of(&part.step) {
            return Err(Refusal::Stale);
        }
        let AddressChanges { assigned, freed } = plan_addresses(world, network, &part.policy)?;
        plan.mutations.extend(assigned);
        if part.is_new || wanted.reset && !part.files.is_empty() {
            plan.mutations.push(part.mutation(world, network, wanted));
            plan.policies.insert(part.name.clone(), part.update());
        }
        plan.mutations.extend(freed);
        let Reclassified { mutations, admitted, refused } =
            reclassify_under(world, network, &part.policy, precomputed.get(&part.name), touched);
        plan.mutations.extend(mutations);
        plan.outcome.results.push(PolicyResult { admitted, refused, ..part.result.clone() });
        plan.outcome.closing.push(part.closing_links());
    }
    let names: Vec<&str> = plan.mutations.iter().filter_map(network_of).collect();
    plan.action = match (&wanted.back, &names[..]) {
        _ if plan.mutations.is_empty() => String::new(),
        (Some((name, _)), _) => format!("rolled the policy of {name} back"),
        (None, []) => "judged the workloads anew".into(),
        (None, names) => format!("applied the policy of {}", names.join(", ")),
    };
    Ok(plan)
}

impl PreparedNetwork {
    /// Returns the change of the network's policy record.
    fn mutation(&self, world: &World, network: &NetworkState, wanted: &Submission) -> Mutation {
        if self.files.is_empty() {
            return Mutation::Delete(RecordKey::Policy(self.name.clone()));
        }
        // The revision that it becomes part of, or a later one.
        let resets = if wanted.reset { world.revision.0 + 1 } else { network.resets };
        let (network, files) = (self.name.clone(), self.files.clone());
        Mutation::Put(Record::Policy(PolicyRecord { network, files, resets }))
    }

    fn update(&self) -> PolicyUpdate {
        PolicyUpdate { policy: self.policy.clone(), step: Some(self.step.clone()) }
    }
}

impl Prepared {
    /// Refuses services for which no virtual address is left.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] says in which network.
    pub fn check_addresses(&self, world: &World) -> Result<(), Refusal> {
        self.networks.iter().try_for_each(|part| {
            let Some(network) = world.networks.get(&part.name) else { return Ok(()) };
            plan_addresses(world, network, &part.policy).map(drop)
        })
    }

    /// Returns the effects of a dry run, with suspicious rules. `judged` has the previews of
    /// admission.
    pub fn foresee(
        &self,
        basis: &Basis,
        judged: &mut BTreeMap<NetworkName, AdmissionPreview>,
    ) -> Applied {
        let mut applied =
            Applied { findings: findings(basis, &self.read.parsed), ..Applied::default() };
        for part in &self.networks {
            let AdmissionPreview { admitted, refused, .. } =
                judged.remove(&part.name).unwrap_or_default();
            applied.results.push(PolicyResult { admitted, refused, ..part.result.clone() });
            applied.closing.push(part.closing_links());
        }
        applied
    }

    /// Returns the networks whose admission changes, with their new policies.
    pub fn judges(&self, basis: &Basis) -> Vec<(NetworkName, Arc<Policy>)> {
        let judges = |part: &&PreparedNetwork| {
            let before = basis.networks.get(&part.name).map(|network| network.inputs.policy());
            before.is_some_and(|before| !before.admits_like(&part.policy))
        };
        self.networks
            .iter()
            .filter(judges)
            .map(|part| (part.name.clone(), part.policy.clone()))
            .collect()
    }
}

/// Returns the files of a network's policy, with a part of them replaced.
fn beside_the_rest(
    basis: &Basis,
    wanted: &Submission,
    scope: &PolicyScope,
) -> Result<Vec<PolicyFile>, Refusal> {
    let invalid = |text: &str| Err(Refusal::Invalid(text.into()).about("scope"));
    if wanted.prune {
        return invalid(
            "`prune` is about all networks, and `scope` about one; leave one of them out",
        );
    }
    if !scope.only.is_empty() && !scope.except.is_empty() {
        return invalid("a scope has either `only` or `except`");
    }
    if let Some(file) = wanted.files.iter().find(|file| !scope.has(&file.name)) {
        return invalid(&format!("the file {} is not in the scope", file.name));
    }
    check_reach(wanted, &scope.network).map_err(|refusal| refusal.about("scope"))?;
    let network = basis.find(&scope.network).map_err(|refusal| refusal.about("scope"))?;
    if let Some(file) = network.files.iter().find(|file| scope.only_new && scope.has(&file.name)) {
        let (name, file) = (&scope.network, &file.name);
        let text = format!("network {name} has such a policy already, in {file}");
        return Err(Refusal::Conflict(text).about("scope"));
    }
    let others = network.files.iter().filter(|file| !scope.has(&file.name));
    let mut files: Vec<PolicyFile> = wanted.files.iter().chain(others).cloned().collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn at(location: &str, refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Missing(text) => Refusal::Missing(format!("{location}: {text}")),
        other => other,
    }
}

/// Returns the network of a mutation of a policy record.
fn network_of(mutation: &Mutation) -> Option<&str> {
    match mutation {
        Mutation::Put(Record::Policy(record)) => Some(record.network.as_str()),
        Mutation::Delete(RecordKey::Policy(name)) => Some(name.as_str()),
        _ => None,
    }
}

/// Refuses networks that the credential does not cover, whether or not they exist.
fn check_reach(wanted: &Submission, name: &NetworkName) -> Result<(), Refusal> {
    match covers(&wanted.networks, name) {
        true => Ok(()),
        false => Err(Refusal::Forbidden(format!("this credential has no say in network `{name}`"))),
    }
}

fn check_rights(
    wanted: &Submission,
    name: &NetworkName,
    standing: &Policy,
    policy: Option<&Policy>,
) -> Result<(), Refusal> {
    let (standing, named) = (&standing.guardrails, &standing.forensics);
    let same = policy.map_or(standing.is_empty(), |policy| {
        let sorted = |rules: &[meshward_policy::Rule]| {
            let rules = rules.iter().map(|rule| (rule.name.clone(), rule.clone()));
            rules.collect::<BTreeMap<String, meshward_policy::Rule>>()
        };
        policy.guardrails.len() == standing.len() && sorted(&policy.guardrails) == sorted(standing)
    });
    if !same && !wanted.guardrails {
        return Err(Refusal::Forbidden(format!(
            "the guardrails of network `{name}` belong to admins: leave them as they are, or ask \
            an admin"
        )));
    }
    let same = policy.map_or(named.is_empty(), |policy| policy.forensics == *named);
    if !same && !wanted.guardrails {
        return Err(Refusal::Forbidden(format!(
            "who may be let in to what is quarantined in network `{name}` (`forensics:`) is said \
            by admins: leave it as it is, or ask an admin"
        )));
    }
    Ok(())
}
