//! Quarantines.

use crate::{
    Mistake,
    arguments::{Common, Quarantine, QuarantineVerb, Target, Watching},
    client::Client,
    enforcement, listing,
    output::{Change, Effect, count, or_dash, show, tell},
};
use anyhow::Result;
use meshward_api_types as api;
use meshward_api_types::{Impose, QuarantineResult, QuarantineTarget, operations};
use meshward_types::{Selector, selector::Requirement};
use std::{collections::HashMap, process::ExitCode};

pub(crate) async fn quarantine(
    common: &Common,
    verb: Option<QuarantineVerb>,
    wanted: Quarantine,
) -> Result<ExitCode> {
    let Quarantine { target, allow_from, lasts, message, even_if_none, reset } = wanted;
    let nothing_named = target.what.is_none() && target.label_exists.is_empty();
    if let Some(QuarantineVerb::List(watching)) = verb {
        if !nothing_named {
            return Err(
                Mistake("either list the quarantines, or name what to isolate".into()).into()
            );
        }
        return list(common, watching).await.map(|()| ExitCode::SUCCESS);
    }
    // As every noun does without a verb.
    let only_noun = nothing_named
        && allow_from.is_none()
        && lasts.is_none()
        && message.is_none()
        && !even_if_none
        && !reset;
    if only_noun {
        return list(common, Watching::default()).await.map(|()| ExitCode::SUCCESS);
    }
    let client = Client::coordinator(common)?;
    let seconds = lasts.map(|time| time.as_secs());
    let wanted =
        Impose { target: parse(target)?, allow_from, seconds, message, even_if_none, reset };
    let result = client.write(&operations::IMPOSE_QUARANTINE, &[], &wanted).await?;
    report(common, &client, &result, "quarantine", "quarantined").await
}

pub(crate) async fn release(common: &Common, target: Target) -> Result<ExitCode> {
    let client = Client::coordinator(common)?;
    let result = client.write(&operations::RELEASE_QUARANTINE, &[], &parse(target)?).await?;
    report(common, &client, &result, "release", "released").await
}

async fn report(
    common: &Common,
    client: &Client,
    result: &QuarantineResult,
    verb: &'static str,
    past: &str,
) -> Result<ExitCode> {
    let effects = if common.dry_run { named(client, result, verb).await } else { vec![] };
    let workloads = count(result.workloads.len(), "workload");
    let is = if result.workloads.len() == 1 { "is" } else { "are" };
    let would = format!("{verb} {workloads}");
    let done = format!("{workloads} {is} {past}; {}", enforcement::in_short(&result.enforcement));
    tell(common, &Change { would, done, effects, result: Some(result) })?;
    if common.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if common.is_table() {
        enforcement::name_silent(common, &result.enforcement);
    }
    Ok(enforcement::exit_code(Some(&result.enforcement)))
}

/// The workloads that it is about, by name.
async fn named(client: &Client, result: &QuarantineResult, verb: &'static str) -> Vec<Effect> {
    let all = client.all(&operations::WORKLOADS, &[]).await.unwrap_or_default();
    let by_id: HashMap<_, _> = all.iter().map(|workload| (&workload.id, workload)).collect();
    let effect = |id: &meshward_types::WorkloadId| {
        let known = by_id.get(id);
        let detail = known.map(|workload| {
            let api::Workload { name, labels, node, network, .. } = workload;
            format!("{name}, {labels}, node {node}, network {network}")
        });
        Effect {
            action: verb,
            kind: "workload",
            name: id.to_string(),
            detail: detail.unwrap_or_default(),
        }
    };
    result.workloads.iter().map(effect).collect()
}

async fn list(common: &Common, watching: Watching) -> Result<()> {
    let client = Client::coordinator(common)?;
    let read = async || client.all(&operations::QUARANTINES, &[]).await;
    listing::list(watching, read, |all| print(common, all)).await
}

fn print(common: &Common, all: &[api::Quarantine]) -> Result<()> {
    let row = |quarantine: &api::Quarantine| {
        let target = &quarantine.target;
        let what = match (&target.selector, &target.workload) {
            (Some(selector), _) => selector.to_string(),
            (None, Some(workload)) => workload.to_string(),
            (None, None) => "-".into(),
        };
        [
            quarantine.id.clone(),
            what,
            target.network.as_ref().map_or("all".into(), ToString::to_string),
            quarantine.since.clone(),
            or_dash(quarantine.until.as_ref()),
            or_dash(quarantine.allow_from.as_ref()),
            quarantine.by.clone(),
            or_dash(quarantine.why.as_ref()),
        ]
    };
    let columns = ["ID+", "HOLDS", "NETWORK", "SINCE", "UNTIL", "BUT FOR", "BY", "WHY"];
    show(common, all, columns, row, "no quarantine stands")
}

/// A word without any of the signs of a selector is the id of a workload, or a mistake: `list` is
/// more likely a verb than a label.
fn parse(target: Target) -> Result<QuarantineTarget> {
    let Target { what, label_exists, network } = target;
    let what = what.unwrap_or_default();
    if what.starts_with("w-") && !what.contains(['=', ',', '!', '(']) && label_exists.is_empty() {
        let workload = what.parse().map_err(|error| Mistake(format!("{error}")))?;
        return Ok(QuarantineTarget { network, selector: None, workload: Some(workload) });
    }
    let selector: Selector = what.parse().map_err(|error| Mistake(format!("{error}")))?;
    let bare =
        selector.requirements().find(|(_, requirement)| **requirement == Requirement::Exists);
    if let Some((key, _)) = bare {
        return Err(Mistake(format!(
            "`{key}` says neither which value the label has nor that any will do: write \
             {key}=VALUE, or --label-exists {key} for every workload with that label"
        ))
        .into());
    }
    let mut all: Vec<_> = selector
        .requirements()
        .map(|(key, requirement)| (key.clone(), requirement.clone()))
        .collect();
    for key in label_exists {
        if all.iter().any(|(known, _)| *known == key) {
            return Err(Mistake(format!("label `{key}` is required twice")).into());
        }
        all.push((key, Requirement::Exists));
    }
    let selector: Selector = all.into_iter().collect();
    if selector.is_empty() {
        return Err(Mistake(
            "name labels, or a workload's id: nothing would mean every workload; `meshctl \
             quarantine list` shows what is held"
                .into(),
        )
        .into());
    }
    Ok(QuarantineTarget { network, selector: Some(selector), workload: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(what: &str, exists: &[&str]) -> Result<QuarantineTarget> {
        let label_exists = exists.iter().map(|key| key.parse().unwrap()).collect();
        parse(Target { what: Some(what.into()), label_exists, network: None })
    }

    #[test]
    fn a_bare_word_is_no_selector() {
        for word in ["list", "lst", "app", "app=web,tier", "release"] {
            let said = parsed(word, &[]).unwrap_err().to_string();
            assert!(said.contains("--label-exists"), "{word}: {said}");
        }
        assert_eq!(parsed("", &["app"]).unwrap().selector, Some("app".parse().unwrap()));
        assert_eq!(
            parsed("env=prod", &["app"]).unwrap().selector,
            Some("app,env=prod".parse().unwrap())
        );
        assert!(parsed("app=web", &["app"]).is_err() && parsed("", &[]).is_err());
        assert!(parsed("w-0123456789ab", &[]).unwrap().workload.is_some());
    }
}
