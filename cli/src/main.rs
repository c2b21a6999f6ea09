//! `meshctl`: what people and CI use to run a mesh.
#![forbid(unsafe_code)]

mod arguments;
mod attach;
mod audit;
mod backup;
mod client;
mod completion;
mod contexts;
mod credentials;
mod debug;
mod devices;
mod editing;
mod egress;
mod enforcement;
mod listing;
mod netcheck;
mod networks;
mod nodes;
mod output;
mod ping;
mod policy;
mod prefix;
mod quarantines;
mod resolver;
mod routes;
mod runner;
mod services;
mod sources;
mod status;
mod submission;
mod table;
mod text_diff;
mod tokens;
mod workloads;

use anyhow::Result;
use arguments::{Arguments, Command, Common};
use clap::CommandFactory;
use output::{Change, Effect, tell};
use std::{path::Path, process::ExitCode};

/// A mistake of the user's: the process ends with exit code 2 instead of 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Mistake(String);

/// A mistake of the user's that no waiting mends: the credential is not known any more, or does not
/// reach that far.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Barred(String);

fn main() -> ExitCode {
    completion::answer(Arguments::command);
    let arguments = Arguments::read();
    warn_of_variables();
    let done = act(arguments).and_then(|code| output::finish().map(|()| code));
    match done {
        Ok(code) => code,
        Err(error) => {
            note!("meshctl: {error:#}");
            if error.is::<Mistake>() || error.is::<Barred>() { 2.into() } else { 1.into() }
        }
    }
}

/// The variables that there are.
const VARIABLES: [&str; 3] = [arguments::CONTEXT, arguments::SOCKET, completion::VARIABLE];

fn warn_of_variables() {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for unknown in meshward_types::environment::unknown("MESHCTL_", &VARIABLES, names) {
        note!("meshctl: {unknown}");
    }
}

fn act(arguments: Arguments) -> Result<ExitCode> {
    // A process gets its namespace before there is any other thread.
    if let Command::Run(run) = arguments.command {
        return attach::run(&arguments.common, run);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(dispatch(arguments));
    // A name that is still being resolved is waited for by nobody.
    runtime.shutdown_background();
    done
}

async fn dispatch(Arguments { common, command }: Arguments) -> Result<ExitCode> {
    match command {
        Command::Run(_) => unreachable!("taken care of before"),
        Command::Status { watching } => return status::status(&common, watching).await,
        Command::Ping(wanted) => return ping::ping(&common, wanted).await,
        Command::Netcheck => return netcheck::netcheck(&common).await,
        Command::Debug { verb } => debug::debug(&common, verb).await?,
        Command::Context { verb } => contexts::context(&common, verb)?,
        Command::Token { verb, which } => tokens::token(&common, verb, which).await?,
        Command::Network { verb, which } => networks::network(&common, verb, which).await?,
        Command::Node { verb, which } => nodes::node(&common, verb, which).await?,
        Command::Device { verb, which } => devices::device(&common, verb, which).await?,
        Command::Key { verb } => nodes::key(&common, verb).await?,
        Command::Route { verb, which } => routes::route(&common, verb, which).await?,
        Command::Egress { verb, which } => egress::egress(&common, verb, which).await?,
        Command::Relay { verb, which } => nodes::relay(&common, verb, which).await?,
        Command::Workload { verb, which } => workloads::workload(&common, verb, which).await?,
        Command::Service { verb, which } => return services::service(&common, verb, which).await,
        Command::Drain(wanted) => return services::drain(&common, wanted).await,
        Command::Undrain(wanted) => return services::undrain(&common, wanted).await,
        Command::Link { verb, which } => workloads::link(&common, verb, which).await?,
        Command::Credential { verb, which } => {
            credentials::credential(&common, verb, which).await?;
        }
        Command::Quarantine { verb, wanted } => {
            return quarantines::quarantine(&common, verb, wanted).await;
        }
        Command::Release(target) => return quarantines::release(&common, target).await,
        Command::Audit(wanted) => audit::audit(&common, wanted).await?,
        Command::Backup { file, without_ca } => backup::backup(&common, &file, !without_ca).await?,
        Command::Policy { verb } => return policy::policy(&common, verb).await,
        Command::Explain(query) => return policy::explain(&common, query).await,
        Command::Attach(wanted) => attach::attach(&common, wanted).await?,
        Command::Detach { workload } => attach::detach(&common, &workload).await?,
        Command::Label { workload, changes } => attach::label(&common, &workload, changes).await?,
        Command::Attached(which) => attach::list(&common, which).await?,
        Command::Completions { shell } => {
            only_text(&common, "a script")?;
            output::print(format_args!("{}", completion::script(shell)?));
        }
        Command::Man { folder } => man(&common, &folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses another form of output than the one that there is.
fn only_text(common: &Common, what: &str) -> Result<()> {
    if common.is_table() {
        Ok(())
    } else {
        Err(Mistake(format!(
            "this prints {what}, which has no form in JSON or YAML; leave out --output"
        ))
        .into())
    }
}

/// Writes the man pages, one for each command.
fn man(common: &Common, folder: &Path) -> Result<()> {
    if !common.dry_run {
        std::fs::create_dir_all(folder)
            .and_then(|()| clap_mangen::generate_to(Arguments::command(), folder))
            .map_err(|error| {
                Mistake(format!("cannot write man pages into {}: {error}", folder.display()))
            })?;
    }
    let pages = pages(&Arguments::command(), "meshctl");
    let effect =
        |name: String| Effect { action: "write", kind: "page", name, detail: String::new() };
    let would = format!("write {} man pages into {}", pages.len(), folder.display());
    let done = format!("{} man pages are in {}", pages.len(), folder.display());
    tell(
        common,
        &Change { would, done, effects: pages.into_iter().map(effect).collect(), result: None },
    )
}

fn pages(command: &clap::Command, name: &str) -> Vec<String> {
    let own = command.get_subcommands().filter(|own| !own.is_hide_set());
    let below = own.flat_map(|own| pages(own, &format!("{name}-{}", own.get_name())));
    std::iter::once(format!("{name}.1")).chain(below).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Arguments::command().debug_assert();
    }

    /// A word that means something as a verb never means something else as an argument.
    #[test]
    fn every_noun_lists_with_list_and_by_its_plural() {
        let mut command = Arguments::command();
        command.build();
        let nouns = [
            "token",
            "network",
            "node",
            "relay",
            "route",
            "device",
            "workload",
            "service",
            "link",
            "credential",
            "quarantine",
            "context",
        ];
        for noun in nouns {
            let found =
                command.find_subcommand(noun).unwrap_or_else(|| panic!("there is no {noun}"));
            assert!(found.find_subcommand("list").is_some(), "{noun} list");
            let plural = format!("{noun}s");
            assert!(found.get_all_aliases().any(|alias| alias == plural), "{plural}");
            let matches =
                Arguments::command().try_get_matches_from(["meshctl", noun, "list"]).unwrap();
            let (_, own) = matches.subcommand().unwrap();
            assert_eq!(own.subcommand_name(), Some("list"), "{noun}");
        }
    }

    #[test]
    fn help_fits_eighty_columns_or_the_terminal() {
        // clap wraps by itself; what it cannot break is ours.
        fn walk(command: &mut clap::Command) {
            let text = command.clone().term_width(80).render_long_help().to_string();
            // clap does not wrap the line of usage.
            for line in text.lines().filter(|line| {
                !line.trim_start().starts_with("Usage:")
                    && !line.trim_start().starts_with("meshctl ")
            }) {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
            command.get_subcommands_mut().for_each(walk);
        }
        let mut command = Arguments::command();
        command.build();
        walk(&mut command);
    }
}
