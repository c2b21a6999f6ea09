//! `meshctl policy edit`: a network's policy in an editor, checked and applied when that is left.

mod buffer;
mod editor;

use crate::{
    Mistake,
    arguments::{Common, OfNetwork},
    client::{Client, told},
    networks, note,
    output::{self, Change},
    submission,
};
use anyhow::{Context, Result};
use buffer::{Buffer, Remark};
use editor::Editor;
use meshward_api_client::Error;
use meshward_api_types::{PolicyScope, SubmitPolicy, SubmitResult, operations};
use meshward_policy::{Budget, own_documents, read_own, run_tests};
use meshward_types::{NetworkName, PolicyFile};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tempfile::NamedTempFile;

/// The exit code of an interrupted command, as shells have it (128 and the signal's number).
const INTERRUPTED: u8 = 130;

pub(crate) async fn edit(
    common: &Common,
    of: OfNetwork,
    message: Option<String>,
    reset: bool,
) -> Result<ExitCode> {
    let editor = Editor::of_environment()?;
    let client = Client::coordinator(common)?;
    let network = networks::named_or_only(&client, of).await?;
    let (standing, state) = client.read_with_state(&operations::POLICY, &[&network]).await?;
    let state = state.context(
        "the coordinator does not say in which state the policy is; is it of this version?",
    )?;
    let own = standing.files.iter().map(|file| own_documents(file, &network));
    let about = match standing.revision {
        Some(revision) => {
            format!("The policy of network {network}, as revision {revision} made it")
        }
        None => format!("Network {network} has no policy yet"),
    };
    let edit = Edit {
        common,
        client: client.if_match(state),
        buffer: Buffer::of(own.filter(|file| !file.text.trim().is_empty()).collect()),
        file: empty_file(&network)?,
        network,
        about,
        message,
        reset,
    };
    edit.work(&editor).await
}

fn empty_file(network: &NetworkName) -> Result<NamedTempFile> {
    let folder = std::env::temp_dir();
    tempfile::Builder::new()
        .prefix(&format!("meshctl-{network}-"))
        .suffix(".yaml")
        .tempfile_in(&folder)
        .with_context(|| {
            format!("cannot make a file in {}; TMPDIR may name another folder", folder.display())
        })
}

/// The editing of one policy.
struct Edit<'a> {
    common: &'a Common,
    /// Overwrites the policy only as it was read.
    client: Client,
    network: NetworkName,
    /// The name of the policy, for the first line.
    about: String,
    buffer: Buffer,
    file: NamedTempFile,
    message: Option<String>,
    reset: bool,
}

/// The result of submitting a text.
enum Outcome {
    Applied(SubmitResult),
    /// The mistakes in it, line by line: they can be mended.
    Mistaken(Vec<String>),
    Failed(anyhow::Error),
}

impl Edit<'_> {
    async fn work(self, editor: &Editor) -> Result<ExitCode> {
        let mut files = self.start();
        let mut mistakes: Vec<String> = Vec::new();
        loop {
            let text = self.buffer.write(&files, &self.remarks(&files, &mistakes));
            fs::write(self.file.path(), text)
                .context("cannot write the text down for the editor")?;
            let left = editor.edit(self.file.path()).await;
            let edited = match self.text() {
                Ok(text) => self.buffer.read(&text),
                Err(error) => return self.leave(error),
            };
            let as_before =
                edited.is_empty() || edited == self.buffer.before() || edited == self.start();
            if let Err(error) = left {
                return if as_before { Err(error) } else { self.keep(&edited, &error) };
            }
            if as_before {
                return self.tell_of_nothing();
            }
            if edited == files {
                let lines = mistakes.join("\n");
                let text = format!("nothing was applied, the mistakes are still there:\n{lines}");
                return self.keep(&edited, &Mistake(text).into());
            }
            files = edited;
            mistakes = match self.submit_or_interrupt(&files).await? {
                None => return self.interrupted(&files),
                Some(Outcome::Applied(result)) => return self.applied(&files, &result),
                Some(Outcome::Failed(error)) => return self.keep(&files, &error),
                Some(Outcome::Mistaken(lines)) => lines,
            };
        }
    }

    /// Returns the files that the editor opens first.
    fn start(&self) -> Vec<PolicyFile> {
        if !self.buffer.before().is_empty() {
            return self.buffer.before().to_vec();
        }
        let text = format!("network: {}\n", self.network);
        vec![PolicyFile { name: format!("{}.yaml", self.network), text }]
    }

    /// Reads the text that was saved.
    fn text(&self) -> Result<String> {
        let bytes = fs::read(self.file.path()).context("the editor has taken its file away")?;
        String::from_utf8(bytes).map_err(|_| {
            Mistake("what was saved is not UTF-8, so nothing was applied".into()).into()
        })
    }

    fn remarks(&self, files: &[PolicyFile], mistakes: &[String]) -> Vec<Remark> {
        let (about, mark) = (&self.about, self.buffer.mark());
        let what = if self.common.dry_run { "checked" } else { "checked and applied" };
        let mut head = format!(
            "{about}.\nIt is {what} when you save it and leave the editor; left as it is, or\n\
             empty, nothing happens. Lines that begin with {mark} are left out, but for\n\
             \"{mark} file: NAME\", below which stands what is in that file."
        );
        if !mistakes.is_empty() {
            head += "\n\nNot applied: there are mistakes, each below the line that it is about.\n\
                Leave it as it is to give up.";
        }
        let head = Remark { location: None, text: head };
        [head].into_iter().chain(mistakes.iter().map(|line| Remark::parse(line, files))).collect()
    }

    /// Checks and applies; nothing, if the user presses ^C meanwhile.
    async fn submit_or_interrupt(&self, files: &[PolicyFile]) -> Result<Option<Outcome>> {
        let mut interrupts = editor::interrupts()?;
        Ok(tokio::select! {
            outcome = self.submit(files) => Some(outcome),
            _ = interrupts.recv() => None,
        })
    }

    async fn submit(&self, files: &[PolicyFile]) -> Outcome {
        let mistakes = self.check(files);
        if !mistakes.is_empty() {
            return Outcome::Mistaken(mistakes);
        }
        let network = self.network.clone();
        let scope = PolicyScope { network, only: vec![], except: vec![], only_new: false };
        let wanted = SubmitPolicy {
            files: files.to_vec(),
            prune: false,
            scope: Some(scope),
            message: self.message.clone(),
            count_cuts: self.common.dry_run,
            reset: self.reset,
        };
        match self.client.try_write(&operations::SUBMIT_POLICY, &wanted).await {
            Ok(result) => Outcome::Applied(result),
            Err(Error::Refused { status: Some(400 | 403 | 413 | 422), text, .. }) => {
                Outcome::Mistaken(text.lines().map(ToOwned::to_owned).collect())
            }
            Err(Error::Refused { status: Some(412), .. }) => {
                let network = &self.network;
                let text = format!(
                    "somebody else has changed the policy of network {network} meanwhile, so it \
                     was not overwritten; `meshctl policy log --network {network}` shows who, \
                     `meshctl policy edit {network}` opens theirs"
                );
                Outcome::Failed(Mistake(text).into())
            }
            Err(error) => Outcome::Failed(told(error)),
        }
    }

    /// Returns the mistakes that this machine can find.
    fn check(&self, files: &[PolicyFile]) -> Vec<String> {
        let own = match read_own(files, &self.network) {
            Ok(own) => own,
            Err(bad) => return bad.0.iter().map(ToString::to_string).collect(),
        };
        let network = &self.network;
        let foreign = own.others.iter().map(|(span, name)| {
            format!(
                "{span}: this is about network {name}, and what is edited is the policy of \
                 network {network}"
            )
        });
        let foreign: Vec<String> = foreign.collect();
        let Some(written) = own.parsed.filter(|_| foreign.is_empty()) else { return foreign };
        let failures = match run_tests(&written.policy, &Budget::of(Budget::PLAN)) {
            Ok(failures) => failures,
            Err(error) => return vec![format!("{}: the policy's tests: {error}", written.begin)],
        };
        let location = |number: usize| {
            written.tests.get(number - 1).map_or(String::new(), |span| format!("{span}: "))
        };
        failures.iter().map(|failure| format!("{}{failure}", location(failure.number))).collect()
    }

    fn tell_of_nothing(self) -> Result<ExitCode> {
        let network = &self.network;
        let (would, done) =
            ("change nothing".into(), format!("the policy of network {network} stays as it is"));
        output::tell(self.common, &Change { would, done, effects: vec![], result: None })?;
        Ok(ExitCode::SUCCESS)
    }

    fn applied(self, files: &[PolicyFile], result: &SubmitResult) -> Result<ExitCode> {
        let common = self.common;
        if common.dry_run {
            let path = self.put_away(files)?;
            note!("what you wrote is in {}", path.display());
        }
        submission::print(common, result)
    }

    fn interrupted(self, files: &[PolicyFile]) -> Result<ExitCode> {
        let network = self.network.clone();
        let path = self.put_away(files)?;
        note!(
            "interrupted; whether it was applied, `meshctl policy log --network {network}` says. \
             What you wrote is in {}",
            path.display()
        );
        Ok(INTERRUPTED.into())
    }

    /// Fails, and says where the text is.
    fn keep(self, files: &[PolicyFile], error: &anyhow::Error) -> Result<ExitCode> {
        let path = self.put_away(files)?;
        Err(and_where(error, &path))
    }

    /// Fails, and leaves the file as it is.
    fn leave(self, error: anyhow::Error) -> Result<ExitCode> {
        match self.file.keep() {
            Ok((_, path)) if path.exists() => Err(and_where(&error, &path)),
            _ => Err(error),
        }
    }

    /// Leaves the text behind as `meshctl policy apply` takes it.
    fn put_away(self, files: &[PolicyFile]) -> Result<PathBuf> {
        let text = match files {
            [only] => only.text.clone(),
            several => self.buffer.write(several, &[]),
        };
        let (_, path) = self.file.keep().context("cannot keep what you wrote")?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// An error, and where the text is that it kept from being applied.
fn and_where(error: &anyhow::Error, path: &Path) -> anyhow::Error {
    let text = format!("{error:#}\nwhat you wrote is in {}", path.display());
    if error.is::<Mistake>() { Mistake(text).into() } else { anyhow::anyhow!(text) }
}
