//! Submissions of policies: worked out beside the world, in the caller's share of the pool's time,
//! then written at once.

use crate::mesh::{ChangeContext, Done, Mesh};
use meshward_api_types::PolicyResult;
use meshward_control_state::{
    Plan, Refusal,
    change_log::ListKind,
    plans::policies::{
        self, AdmissionPreview, Applied, Basis, PrecomputedVerdicts, Prepared, Submission,
    },
    world::{NodeSet, World},
};
use meshward_types::NetworkName;
use std::{collections::BTreeMap, sync::Arc};

/// The number of times that a submission is worked out because the mesh has changed meanwhile; then
/// it is worked out while nothing else can change the mesh.
const ATTEMPTS: usize = 8;

/// A submission that was worked out without the world's lock.
struct Prejudged {
    prepared: Prepared,
    /// The state of the world that it rests on.
    basis: Basis,
    /// The effects of its admission on workloads, by network.
    judged: BTreeMap<NetworkName, AdmissionPreview>,
}

impl Mesh {
    /// Applies policies, or returns what they would change.
    ///
    /// # Errors
    /// The mistakes in the policies, or [`Busy`](crate::pool::Busy)'s refusal.
    pub async fn submit(
        self: &Arc<Self>,
        context: &ChangeContext,
        submission: Submission,
    ) -> Result<Done<Applied>, Refusal> {
        self.submit_if(context, submission, |_, _| Ok(())).await
    }

    /// Applies policies if a condition holds of the mesh before and of the outcome.
    ///
    /// # Errors
    /// Fails as [`Self::submit`] does, and with the condition's refusal.
    pub async fn submit_if(
        self: &Arc<Self>,
        context: &ChangeContext,
        submission: Submission,
        condition: impl Fn(&World, &[PolicyResult]) -> Result<(), Refusal>,
    ) -> Result<Done<Applied>, Refusal> {
        let checked = |world: &World, plan: Plan<Applied>| {
            condition(world, &plan.outcome.results)?;
            Ok(plan)
        };
        let submission = Arc::new(submission);
        let mut before = None;
        for _ in 0..ATTEMPTS {
            let basis = self.look(Basis::of);
            let Prejudged { prepared, basis, mut judged } =
                self.prepare(context, &submission, basis, before).await?;
            if context.dry_run {
                self.look(|world| prepared.check_addresses(world))?;
                let foresee = move || (basis.revision, prepared.foresee(&basis, &mut judged));
                let (revision, outcome) = self.pool.run(&context.actor, foresee).await?;
                self.look(|world| condition(world, &outcome.results))?;
                return Ok(Done { revision, touched: NodeSet::default(), outcome });
            }
            let precomputed: BTreeMap<NetworkName, PrecomputedVerdicts> =
                judged.into_iter().map(|(name, judging)| (name, judging.precomputed)).collect();
            let since = precomputed.values().map(|precomputed| precomputed.since).min();
            let since = since.unwrap_or(basis.revision);
            let plan = |world: &World| {
                // The journal is written under the world's lock: it has all that is read here.
                let since = self.journal.since(ListKind::Workloads, since);
                let touched = since.as_ref().map(|since| &since.keys);
                checked(
                    world,
                    policies::plan(world, &prepared, &submission, &precomputed, touched)?,
                )
            };
            match self.change(context, plan).await {
                Err(Refusal::Stale) => before = Some(prepared),
                other => return other,
            }
        }
        self.change(context, |world| checked(world, policies::apply(world, &submission)?)).await
    }

    async fn prepare(
        self: &Arc<Self>,
        context: &ChangeContext,
        submission: &Arc<Submission>,
        basis: Basis,
        before: Option<Prepared>,
    ) -> Result<Prejudged, Refusal> {
        let (mesh, submission) = (self.clone(), submission.clone());
        let work = move || {
            let prepared = policies::prepare(&basis, &submission, before.as_ref())?;
            let look = |look: &mut dyn FnMut(&_)| mesh.look(look);
            let judge = |(name, policy): (NetworkName, _)| {
                let judging = policies::preview_admission(&look, &name, &policy);
                (name, judging)
            };
            let judged = prepared.judges(&basis).into_iter().map(judge).collect();
            Ok(Prejudged { prepared, basis, judged })
        };
        self.pool.run(&context.actor, work).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ca::Ca, mesh::Settings, store::Sqlite};
    use meshward_api_types::{CreateNetwork, Impose, QuarantineTarget};
    use meshward_control_state::{plans::networks, plans::quarantines, plans::quarantines::Hand};
    use meshward_types::PolicyFile;
    use std::{fmt::Write, time::Duration};
    use time::OffsetDateTime;

    async fn mesh(folder: &std::path::Path) -> Arc<Mesh> {
        let (ca, store) =
            (Ca::open(folder).unwrap(), Sqlite::open(&folder.join("mesh.db")).unwrap());
        let mesh = Mesh::open(ca, Box::new(store), Settings::default()).unwrap();
        let wanted: CreateNetwork =
            serde_json::from_str(r#"{ "name": "shop", "prefixes": ["10.42.0.0/16"] }"#).unwrap();
        mesh.change(&admin(), |world| networks::create(world, &wanted)).await.unwrap();
        mesh
    }

    fn admin() -> ChangeContext {
        ChangeContext::named("user:admin")
    }

    fn submission(rules: usize, tests: usize) -> Submission {
        let mut text = "network: shop\nrules:\n".to_owned();
        for at in 1..=rules {
            let _ =
                writeln!(text, "  - {{ name: r{at}, from: {{}}, to: {{}}, allow: [tcp/{at}] }}");
        }
        text += "tests:\n";
        for at in 1..=tests {
            let _ = writeln!(text, "  - {{ from: {{}}, to: {{}}, port: tcp/{at}, expect: allow }}");
        }
        let files = vec![PolicyFile { name: "shop.yaml".into(), text }];
        Submission { files: Arc::new(files), ..Submission::default() }
    }

    async fn quarantine(mesh: &Mesh, label: &str) {
        let target = QuarantineTarget {
            selector: Some(label.parse().unwrap()),
            workload: None,
            network: Some("shop".parse().unwrap()),
        };
        let wanted = serde_json::json!({ "seconds": 600, "even_if_none": true });
        let wanted = Impose { target, ..serde_json::from_value(wanted).unwrap() };
        let hand =
            Hand { by: "user:admin", networks: &[], admin: true, now: OffsetDateTime::now_utc() };
        mesh.change_first(&admin(), |world| quarantines::impose(world, label, &wanted, &hand))
            .await
            .unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn quarantines_are_made_while_viewers_run_the_largest_dry_runs() {
        let folder = tempfile::tempdir().unwrap();
        let mesh = mesh(folder.path()).await;
        let viewers: Vec<_> = (0..4)
            .map(|at| {
                let mesh = mesh.clone();
                let context = ChangeContext {
                    dry_run: true,
                    ..ChangeContext::named(format!("user:viewer-{at}"))
                };
                tokio::spawn(async move { mesh.submit(&context, submission(1500, 1500)).await })
            })
            .collect();
        // The pool begins with them.
        tokio::time::sleep(Duration::from_millis(50)).await;
        for label in ["app=a", "app=b", "app=c"] {
            quarantine(&mesh, label).await;
        }
        assert!(viewers.iter().all(|viewer| !viewer.is_finished()), "the quarantines came first");
        assert_eq!(mesh.look(|world| world.quarantines.len()), 3);
        for viewer in viewers {
            let done = viewer.await.unwrap().unwrap();
            assert_eq!(done.outcome.results[0].tests_passed, 1500);
        }
        assert!(
            mesh.look(|world| world.networks[&"shop".parse().unwrap()].policy_files.is_empty())
        );
    }

    #[tokio::test]
    async fn more_rules_and_tests_than_can_be_run_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mesh = mesh(folder.path()).await;
        let context = ChangeContext { dry_run: true, ..ChangeContext::named("user:viewer") };
        let refused =
            mesh.submit(&context, submission(8000, 8000)).await.err().unwrap().to_string();
        assert!(refused.contains("tests are too many for its rules"), "{refused}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn parts_that_are_submitted_at_once_are_all_there_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let mesh = mesh(folder.path()).await;
        let network = "shop".parse().unwrap();
        let part = |at: usize| {
            let name = format!("part-{at}.yaml");
            let text = format!(
                "network: shop\nrules: [{{ name: r{at}, from: {{}}, to: {{}}, allow: [tcp/{}] }}]",
                at + 1
            );
            let scope = serde_json::json!({ "network": "shop", "only": [name] });
            Submission {
                files: Arc::new(vec![PolicyFile { name, text }]),
                scope: Some(serde_json::from_value(scope).unwrap()),
                ..Submission::default()
            }
        };
        let submitted: Vec<_> = (0..12)
            .map(|at| {
                let (mesh, part) = (mesh.clone(), part(at));
                let context = ChangeContext::named(format!("user:{}", at % 3));
                tokio::spawn(
                    async move { mesh.submit(&context, part).await.map(|done| done.revision) },
                )
            })
            .collect();
        for one in submitted {
            one.await.unwrap().unwrap();
        }
        let (files, rules) = mesh.look(|world| {
            let network: &meshward_control_state::world::NetworkState = &world.networks[&network];
            (network.policy_files.len(), network.links.policy().rules.len())
        });
        assert_eq!((files, rules), (12, 12));
    }
}
