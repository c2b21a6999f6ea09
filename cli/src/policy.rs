//! Policies, and why a flow passes or not.

use crate::{
    Mistake,
    arguments::{Common, Explain, Policy as Verb},
    client::Client,
    output::{bad, good, note_dry_run, whole},
};
use anyhow::{Context, Result};
use meshward_model::api::{ExplainQuery, Explanation, LinkChange, Policy, PolicyResult, SubmitPolicy};
use std::{fs, io::Read, path::Path, process::ExitCode};

pub async fn policy(common: &Common, verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Apply { file } => apply(common, &file).await?,
        Verb::Check { file } => check(&file)?,
        Verb::Get { network } => {
            let policy: Policy =
                Client::coordinator(common)?.get(&format!("/v1/networks/{network}/policy")).await?;
            if !whole(common, &policy)? {
                print!("{}", policy.source);
                if policy.source.is_empty() {
                    eprintln!("network {network} has no policy: everything is denied");
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn apply(common: &Common, file: &Path) -> Result<()> {
    let source = read(file)?;
    // Said here with the file's name, before anything is sent.
    parse(file, &source)?;
    let client = Client::coordinator(common)?;
    let result: PolicyResult = client.post("/v1/policies", &SubmitPolicy { source }).await?;
    if whole(common, &result)? {
        return Ok(());
    }
    note_dry_run(common);
    let tests = match result.tests_passed {
        0 => "no tests".to_owned(),
        passed => format!("{passed} tests passed"),
    };
    let verb = if common.dry_run { "would get" } else { "has" };
    anstream::println!("network {} {verb} {} rules ({tests})", result.network, result.rules);
    print_changes("opens ", &result.opened, good);
    print_changes("closes", &result.closed, bad);
    if result.opened.is_empty() && result.closed.is_empty() {
        anstream::println!("no link between running workloads changes");
    }
    Ok(())
}

fn print_changes(verb: &str, changes: &[LinkChange], colour: fn(String) -> String) {
    for change in changes {
        let or_nothing = |text: &str| if text.is_empty() { "nothing".to_owned() } else { text.to_owned() };
        let (before, after) = (or_nothing(&change.before), or_nothing(&change.after));
        anstream::println!(
            "{} {} -> {}: {before} becomes {after}",
            colour(verb.into()),
            change.from,
            change.to
        );
    }
}

fn check(file: &Path) -> Result<()> {
    let policy = parse(file, &read(file)?)?;
    let failures = meshward_policy::run_tests(&policy);
    for failure in &failures {
        anstream::eprintln!("{} {failure}", bad("fails:"));
    }
    if !failures.is_empty() {
        let count = failures.len();
        return Err(
            Mistake(format!("{}: {count} of {} tests failed", file.display(), policy.tests.len())).into()
        );
    }
    let rules = policy.rules.len() + policy.guardrails.len();
    anstream::println!(
        "{}: {} rules for network {}, {} tests passed",
        good("good"),
        rules,
        policy.network,
        policy.tests.len()
    );
    Ok(())
}

fn read(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        return Ok(text);
    }
    fs::read_to_string(file)
        .map_err(|error| Mistake(format!("cannot read {}: {error}", file.display())).into())
}

fn parse(file: &Path, source: &str) -> Result<meshward_policy::Policy> {
    meshward_policy::Policy::parse(source)
        .map_err(|error| Mistake(format!("{}: {error}", file.display())).into())
}

pub async fn explain(common: &Common, query: Explain) -> Result<ExitCode> {
    let Explain { from, to, port, network } = query;
    let query = ExplainQuery { network, from, to, port };
    let all: Vec<Explanation> = Client::coordinator(common)?.post("/v1/explain", &query).await?;
    if whole(common, &all)? {
        return Ok(ExitCode::SUCCESS);
    }
    for one in &all {
        let verdict = if one.allowed { good("allowed") } else { bad("denied ") };
        anstream::println!("{verdict} {} -> {} {}", one.from, one.to, one.port);
        anstream::println!("        by {}", one.because);
        if !one.live {
            anstream::println!(
                "        (no workload has one of these label sets now; they were taken as given)"
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
