//! The part of a network's policy that one resource manages: some of its files.

use super::state::text;
use crate::mesh::{Mesh, Overwrite, gone_is_well, told};
use meshward_api_types::{Policy, PolicyScope, SubmitPolicy, SubmitResult, operations};
use meshward_terraform::{Diagnostic, Diagnostics, Value};
use meshward_types::{NetworkName, PolicyFile};

/// The files of the part.
pub(super) enum Part {
    /// The file with this name.
    Only(&'static str),
    /// All files but the one with this name.
    AllBut(&'static str),
}

impl Part {
    fn scope(&self, state: &Value, only_new: bool) -> Result<PolicyScope, Diagnostics> {
        let network: NetworkName = text(state, "network")?
            .parse()
            .map_err(|error| Diagnostic::error("Invalid network", format!("{error}")))?;
        let (only, except) = match self {
            Self::Only(name) => (vec![(*name).to_owned()], vec![]),
            Self::AllBut(name) => (vec![], vec![(*name).to_owned()]),
        };
        Ok(PolicyScope { network, only, except, only_new })
    }

    /// Submits the part's files for the first time. The coordinator refuses if the part exists: it
    /// would be overwritten without a plan.
    pub(super) async fn begin(
        &self,
        mesh: &Mesh,
        state: &Value,
        files: Vec<PolicyFile>,
    ) -> Result<SubmitResult, Diagnostics> {
        let wanted = self.wanted(state, files, true)?;
        mesh.write(&operations::SUBMIT_POLICY, &[], &wanted).await.map_err(told)
    }

    /// Replaces the part's files if the policy is still as it was planned.
    pub(super) async fn replace(
        &self,
        mesh: &Mesh,
        state: &Value,
        files: Vec<PolicyFile>,
        as_seen: impl Fn(&Policy) -> Result<bool, Diagnostics>,
    ) -> Result<SubmitResult, Diagnostics> {
        let wanted = self.wanted(state, files, false)?;
        let network = text(state, "network")?;
        let (read, write) = (&operations::POLICY, &operations::SUBMIT_POLICY);
        mesh.overwrite(Overwrite { read, write, key: &network }, &wanted, as_seen).await
    }

    fn wanted(
        &self,
        state: &Value,
        files: Vec<PolicyFile>,
        only_new: bool,
    ) -> Result<SubmitPolicy, Diagnostics> {
        let message = state.get("message").text().map(ToOwned::to_owned);
        let scope = Some(self.scope(state, only_new)?);
        Ok(SubmitPolicy { files, prune: false, scope, message, count_cuts: false, reset: false })
    }

    /// Deletes the part's files. Succeeds if they, or their network, no longer exist.
    pub(super) async fn remove(&self, mesh: &Mesh, state: &Value) -> Result<(), Diagnostics> {
        let (scope, message) =
            (Some(self.scope(state, false)?), Some("removed by Terraform".into()));
        let wanted = SubmitPolicy {
            files: vec![],
            prune: false,
            scope,
            message,
            count_cuts: false,
            reset: false,
        };
        let done = mesh.write(&operations::SUBMIT_POLICY, &[], &wanted).await;
        gone_is_well(done.map(drop)).map_err(told)
    }
}

/// Returns whether attributes are equal in two values; an empty collection equals null.
pub(super) fn same(was: &Value, is: &Value, attributes: &[&str]) -> bool {
    attributes.iter().all(|name| {
        let (was, is) = (was.get(name), is.get(name));
        was == is || (is_empty(was) && is_empty(is))
    })
}

/// Returns whether a value is null or an empty collection.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::List(all) => all.is_empty(),
        Value::Map(all) => all.is_empty(),
        _ => false,
    }
}

/// Keeps the state's blocks where the proposed ones generate the same policy file, so that no
/// change is planned.
pub(super) fn keep_meaning(
    prior: &Value,
    proposed: &mut Value,
    blocks: &[&str],
    written: impl Fn(&str, &Value) -> Option<String>,
) {
    let Some(network) = proposed.get("network").text().map(ToOwned::to_owned) else { return };
    let known = |value: &Value| blocks.iter().all(|name| value.get(name).is_known());
    if !known(prior) || !known(proposed) {
        return;
    }
    if written(&network, prior).is_some_and(|was| Some(was) == written(&network, proposed)) {
        for name in blocks {
            proposed.set(name, prior.get(name).clone());
        }
    }
}
