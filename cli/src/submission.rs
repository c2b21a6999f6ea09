//! The coordinator's answer to a submitted policy: links that open and close, and connections that
//! are cut.

use crate::{
    arguments::Common,
    enforcement, note, out,
    output::{bad, count, few, good, note_dry_run, whole},
};
use anyhow::Result;
use meshward_api_types::{Finding, LinkChange, PolicyResult, SubmitResult};
use std::process::ExitCode;

/// Prints what was applied, or would be, and how far it is enforced.
pub(crate) fn print(common: &Common, result: &SubmitResult) -> Result<ExitCode> {
    if !whole(common, result)? {
        note_dry_run(common);
        report(common, result, common.dry_run);
        if let Some(enforced) = &result.enforcement {
            note!("{}", enforcement::in_short(enforced));
            enforcement::name_silent(common, enforced);
        }
    }
    Ok(enforcement::exit_code(result.enforcement.as_ref()))
}

/// Prints what a submission does, or, if `would`, what it would do.
pub(crate) fn report(common: &Common, result: &SubmitResult, would: bool) {
    for network in &result.networks {
        report_network(common, network, would);
    }
    report_findings(&result.findings);
    if !result.nodes_silent.is_empty() {
        let names: Vec<&str> =
            result.nodes_silent.iter().map(meshward_types::NodeName::as_str).collect();
        note!("without the live flows of: {}", names.join(", "));
    }
}

fn report_network(common: &Common, result: &PolicyResult, would: bool) {
    let tests = match result.tests_passed {
        0 => "no tests".to_owned(),
        passed => format!("{} passed", count(passed, "test")),
    };
    let verb = if would { "would get" } else { "has" };
    out!("network {} {verb} {} ({tests})", result.network, count(result.rules, "rule"));
    report_changes(common, &result.opened, &result.closed);
    few(common, &result.admitted, |admitted| out!("{} {admitted}", good("lets in")));
    few(common, &result.refused, |refused| out!("{} {refused}", bad("refuses")));
    few(common, &result.cuts, |cut| {
        let flows =
            if cut.flows == 1 { "live flow".into() } else { format!("{} live flows", cut.flows) };
        let name = if cut.name.is_empty() { String::new() } else { format!("{} ", cut.name) };
        out!("{} {flows} of {name}({})", bad("cuts  "), cut.workload);
    });
}

pub(crate) fn report_changes(common: &Common, opened: &[LinkChange], closed: &[LinkChange]) {
    let print = |verb: &str, changes: &[LinkChange], colour: fn(String) -> String| {
        few(common, changes, |change| {
            let or_nothing =
                |text: &str| if text.is_empty() { "nothing".to_owned() } else { text.to_owned() };
            let (before, after) = (or_nothing(&change.before), or_nothing(&change.after));
            let verb = colour(verb.into());
            out!("{verb} {} -> {}: {before} becomes {after}", change.from, change.to);
        });
    };
    print("opens ", opened, good);
    print("closes", closed, bad);
    if opened.is_empty() && closed.is_empty() {
        out!("no link between running workloads changes");
    }
}

pub(crate) fn report_findings(findings: &[Finding]) {
    for finding in findings {
        note!("{}: {} {}", finding.location, bad("suspicious:"), finding.text);
    }
}
