//! A part of a network's policy: the files of a resource, beside those of others.

use super::state::text;
use crate::mesh::{Mesh, Overwrite, gone_is_well, told};
use meshward_api_types::{Policy, PolicyScope, SubmitPolicy, SubmitResult, operations};
use meshward_terraform::{Diagnostic, Diagnostics, Value};
use meshward_types::{NetworkName, PolicyFile};

/// Which files they are.
pub(super) enum Part {
    /// The one with this name.
    Only(&'static str),
    /// All but the one with this name.
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

    /// Puts files where nobody has written the part: it is not overwritten unseen.
    pub(super) async fn begin(
        &self,
        mesh: &Mesh,
        state: &Value,
        files: Vec<PolicyFile>,
    ) -> Result<SubmitResult, Diagnostics> {
        let wanted = self.wanted(state, files, true)?;
        mesh.write(&operations::SUBMIT_POLICY, &[], &wanted).await.map_err(told)
    }

    /// Puts files into the place of the part, if that is as a plan has seen it.
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

    /// Takes the part away. It is well if it, or its network, is gone.
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

/// Whether attributes are the same in two values; what is empty is not set.
pub(super) fn same(was: &Value, is: &Value, attributes: &[&str]) -> bool {
    attributes.iter().all(|name| {
        let (was, is) = (was.get(name), is.get(name));
        was == is || (is_empty(was) && is_empty(is))
    })
}

/// Whether nothing is in it.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::List(all) => all.is_empty(),
        Value::Map(all) => all.is_empty(),
        _ => false,
    }
}

/// Where blocks say the same text in other words, those of the state stay.
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
