//! Policies, and why a flow passes or not.

use crate::{
    Mistake,
    arguments::{Common, Explain, OfNetwork, Policy as Verb, Sources},
    client::Client,
    editing, networks, note, out,
    output::{bad, good, print, show, whole},
    sources, submission, text_diff,
};
use anyhow::Result;
use meshward_api_types::{
    ExplainQuery, Finding, Policy, PolicyRevision, Rollback, SubmitPolicy, SubmitResult, operations,
};
use meshward_policy::{Budget, ParsedPolicy, review, run_tests};
use meshward_types::{NetworkName, OnDeny, PolicyFile, Revision};
use std::process::ExitCode;

pub(crate) async fn policy(common: &Common, verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Apply { sources, prune, if_revision, message, reset } => {
            let (files, count_cuts) = (sources::read(&sources)?, common.dry_run);
            let wanted = SubmitPolicy { files, prune, scope: None, message, count_cuts, reset };
            return apply(common, &wanted, if_revision).await;
        }
        Verb::Check { sources, offline, strict } => {
            return check(common, &sources, offline, strict).await;
        }
        Verb::Diff { revisions, of, text: true, .. } => {
            differing_texts(common, &revisions, of).await?;
        }
        Verb::Diff { revisions, more, of, .. } if revisions.is_empty() => {
            reject_network(&of)?;
            preview(common, &Sources { paths: vec![], more }).await?;
        }
        Verb::Diff { revisions, of, .. } => difference(common, &revisions, of).await?,
        Verb::Get { network } => {
            let network =
                networks::named_or_only(&Client::coordinator(common)?, OfNetwork { network })
                    .await?;
            print_policy(common, network, None).await?;
        }
        Verb::Show { revision, of } => {
            let network = networks::named_or_only(&Client::coordinator(common)?, of).await?;
            print_policy(common, network, Some(revision)).await?;
        }
        Verb::Edit { network, message, reset } => {
            return editing::edit(common, OfNetwork { network }, message, reset).await;
        }
        Verb::Log { of, limit } => log(common, of, limit).await?,
        Verb::Rollback { revision, if_revision, of, message, reset } => {
            let client = Client::coordinator(common)?;
            let network = networks::named_or_only(&client, of).await?;
            let client = only_if(client, if_revision, &network).await?;
            let wanted = Rollback { revision, reset, message };
            let result = client.write(&operations::ROLL_POLICY_BACK, &[&network], &wanted).await?;
            return submission::print(common, &result);
        }
        Verb::Suggest { of, since, with_denied } => {
            let client = Client::coordinator(common)?;
            let network = networks::named_or_only(&client, of).await?;
            let seconds = since.as_secs();
            let query =
                [("seconds", seconds.to_string()), ("with_denied", with_denied.to_string())];
            let policy = client.read(&operations::POLICY_SUGGESTION, &[&network], &query).await?;
            if !whole(common, &policy)? {
                policy.files.iter().for_each(|file| print(format_args!("{}", file.text)));
            }
        }
        Verb::Schema => print(format_args!("{}", meshward_policy::SCHEMA)),
    }
    Ok(ExitCode::SUCCESS)
}

fn reject_network(of: &OfNetwork) -> Result<()> {
    match of.network {
        Some(_) => {
            Err(Mistake("the files say which networks they are about; leave out --network".into())
                .into())
        }
        None => Ok(()),
    }
}

async fn apply(
    common: &Common,
    wanted: &SubmitPolicy,
    if_revision: Option<Revision>,
) -> Result<ExitCode> {
    // Said here, before anything is sent.
    let parsed = read(&wanted.files)?;
    let networks: Vec<&NetworkName> = parsed.iter().map(|parsed| &parsed.policy.network).collect();
    let mut client = Client::coordinator(common)?;
    match (if_revision, networks.as_slice()) {
        (None, _) => {}
        (_, [network]) => client = only_if(client, if_revision, network).await?,
        _ => {
            let text = "--if-revision is about one network's policy, and the files name several; \
                apply them one by one";
            return Err(Mistake(text.into()).into());
        }
    }
    let result = client.write(&operations::SUBMIT_POLICY, &[], wanted).await?;
    submission::print(common, &result)
}

/// The client, which overwrites the policy of a network only as long as it is the one that a
/// revision made.
async fn only_if(
    client: Client,
    wanted: Option<Revision>,
    network: &NetworkName,
) -> Result<Client> {
    let Some(wanted) = wanted else { return Ok(client) };
    let (policy, state) = client.read_with_state(&operations::POLICY, &[network]).await?;
    let is = policy.revision.unwrap_or(Revision(0));
    if is != wanted {
        return Err(Mistake(format!(
            "the policy of network {network} is not the one of revision {wanted} any more, but of \
             {is}; `meshctl policy diff {wanted} --text --network {network}` shows what has \
             changed, `meshctl policy log` by whom"
        ))
        .into());
    }
    Ok(match state {
        Some(state) => client.if_match(state),
        None => client,
    })
}

/// Prints the changes that applying the policy would make.
async fn preview(common: &Common, sources: &Sources) -> Result<()> {
    let files = sources::read(sources)?;
    read(&files)?;
    let result = ask(common, files, true).await?;
    if !whole(common, &result)? {
        submission::report(common, &result, true);
    }
    Ok(())
}

async fn ask(common: &Common, files: Vec<PolicyFile>, count_cuts: bool) -> Result<SubmitResult> {
    let wanted =
        SubmitPolicy { files, prune: false, scope: None, message: None, count_cuts, reset: false };
    Client::coordinator(common)?.dry().write(&operations::SUBMIT_POLICY, &[], &wanted).await
}

async fn check(
    common: &Common,
    sources: &Sources,
    offline: bool,
    strict: bool,
) -> Result<ExitCode> {
    let files = sources::read(sources)?;
    let all = read(&files)?;
    let failed = all.iter().map(report_failures).sum::<Result<usize>>()?;
    if failed > 0 {
        return Err(Mistake(format!("{failed} tests failed")).into());
    }
    let alone = offline || !Client::has_context(common);
    let reviewed = || {
        let problems = all.iter().flat_map(review);
        problems
            .map(|problem| Finding { location: problem.span.to_string(), text: problem.text })
            .collect()
    };
    let findings: Vec<Finding> =
        if alone { reviewed() } else { ask(common, files, false).await?.findings };
    if !whole(common, &findings)? {
        submission::report_findings(&findings);
        for ParsedPolicy { policy, .. } in &all {
            let rules = policy.rules.len() + policy.guardrails.len();
            let tests = policy.tests.len();
            let verdict = if findings.is_empty() { good("good") } else { bad("suspicious") };
            out!("{verdict}: network {}: {rules} rules, {tests} tests passed", policy.network);
        }
        if alone {
            note!("checked without a coordinator: whether selectors match workloads is not known");
        }
    }
    Ok(if strict && !findings.is_empty() { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

fn report_failures(parsed: &ParsedPolicy) -> Result<usize> {
    let failures = run_tests(&parsed.policy, &Budget::of(Budget::PLAN))
        .map_err(|error| Mistake(format!("{}: the policy's tests: {error}", parsed.begin)))?;
    for failure in &failures {
        let location = parsed
            .tests
            .get(failure.number - 1)
            .map(|span| format!("{span}: "))
            .unwrap_or_default();
        note!("{location}{} {failure}", bad("fails:"));
    }
    Ok(failures.len())
}

fn read(files: &[PolicyFile]) -> Result<Vec<ParsedPolicy>> {
    meshward_policy::read(files).map_err(|error| Mistake(error.to_string()).into())
}

async fn print_policy(
    common: &Common,
    network: NetworkName,
    revision: Option<Revision>,
) -> Result<()> {
    let policy = policy_at(&Client::coordinator(common)?, &network, revision).await?;
    if whole(common, &policy)? {
        return Ok(());
    }
    for (number, file) in policy.files.iter().enumerate() {
        if policy.files.len() > 1 {
            out!("{}# {}", if number > 0 { "---\n" } else { "" }, file.name);
        }
        print(format_args!("{}", file.text));
    }
    if policy.files.is_empty() {
        let then = if revision.is_some() { "had" } else { "has" };
        note!("network {network} {then} no policy: everything is denied");
    }
    Ok(())
}

async fn policy_at(
    client: &Client,
    network: &NetworkName,
    revision: Option<Revision>,
) -> Result<Policy> {
    let at: Vec<_> = revision.iter().map(|revision| ("revision", revision.to_string())).collect();
    client.read(&operations::POLICY, &[network], &at).await
}

async fn log(common: &Common, of: OfNetwork, limit: u32) -> Result<()> {
    let client = Client::coordinator(common)?;
    let network = networks::named_or_only(&client, of).await?;
    let query = [("limit", limit.to_string())];
    let all = client.page(&operations::POLICY_LOG, &[&network], &query).await?.items;
    let row = |state: &PolicyRevision| {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let files = if state.files == 0 { bad("removed") } else { state.files.to_string() };
        [
            state.revision.to_string(),
            state.at.clone(),
            state.actor.clone(),
            or_dash(&state.origin),
            files,
            or_dash(&state.why),
        ]
    };
    let columns = ["REVISION", "AT", "WHO", "FROM", "FILES", "WHY"];
    show(common, &all, columns, row, "this network has never had a policy")
}

async fn difference(common: &Common, revisions: &[Revision], of: OfNetwork) -> Result<()> {
    let client = Client::coordinator(common)?;
    let network = networks::named_or_only(&client, of).await?;
    let bounds = ["from", "to"].into_iter().zip(revisions);
    let query: Vec<_> = bounds.map(|(name, revision)| (name, revision.to_string())).collect();
    let difference = client.read(&operations::POLICY_DIFFERENCE, &[&network], &query).await?;
    if !whole(common, &difference)? {
        submission::report_changes(common, &difference.opened, &difference.closed);
    }
    Ok(())
}

/// Prints the difference of a policy's text between two revisions, or from one until now.
async fn differing_texts(common: &Common, revisions: &[Revision], of: OfNetwork) -> Result<()> {
    let client = Client::coordinator(common)?;
    let network = networks::named_or_only(&client, of).await?;
    let read =
        async |revision: Option<&Revision>| policy_at(&client, &network, revision.copied()).await;
    let from = revisions
        .first()
        .ok_or_else(|| Mistake("name a revision; `meshctl policy log` shows them".into()))?;
    let (before, after) = (read(Some(from)).await?, read(revisions.get(1)).await?);
    let named = |revision: Option<&Revision>| {
        revision.map_or("now".to_owned(), |own| format!("revision {own}"))
    };
    let (old, new) = (named(Some(from)), named(revisions.get(1)));
    let text = text_diff::unified(&before.files, &after.files, &old, &new);
    if whole(
        common,
        &serde_json::json!({ "network": network, "from": old, "to": new, "diff": text }),
    )? {
        return Ok(());
    }
    if text.is_empty() {
        note!("the text of the policy is the same");
    } else {
        text_diff::show(&text);
    }
    Ok(())
}

pub(crate) async fn explain(common: &Common, query: Explain) -> Result<ExitCode> {
    let Explain { from, to, service, outside, port, network, revision } = query;
    let to = to.unwrap_or_default();
    let query = ExplainQuery { network, from, to, service, outside, port, revision };
    let all = Client::coordinator(common)?.ask(&operations::EXPLAIN, &query).await?;
    if whole(common, &all)? {
        return Ok(ExitCode::SUCCESS);
    }
    for one in &all {
        let verdict = match (one.allowed, one.observed) {
            (true, false) => good("allowed"),
            (true, true) => bad("observed (it passes, and would be denied)"),
            (false, _) if one.on_deny == Some(OnDeny::Reject) => {
                bad("rejected (its sender is told)")
            }
            (false, _) => bad("denied "),
        };
        out!("{verdict} {} -> {} {}", one.from, one.to, one.port);
        out!("        by {}", one.because);
        if !one.live {
            out!("        (no workload has one of these label sets now; they were taken as given)");
        }
    }
    Ok(ExitCode::SUCCESS)
}
