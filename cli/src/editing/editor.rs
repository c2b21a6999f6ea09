//! The user's editor.

use crate::Mistake;
use anyhow::{Context, Result, bail};
use std::{env, io, io::IsTerminal, path::Path};
use tokio::{
    process::Command,
    signal::unix::{Signal, SignalKind, signal},
};

/// The editor where neither variable names one.
const USUAL: &str = "vi";
/// The exit code of a shell for a command that is not there.
const NOT_FOUND: i32 = 127;

/// An editor: a command for a shell, which gets the file's path behind it.
pub(super) struct Editor(String);

impl Editor {
    /// The one that `VISUAL` or `EDITOR` names, or vi.
    ///
    /// # Errors
    /// [`Mistake`] if none is named and nobody sits in front of vi.
    pub(super) fn of_environment() -> Result<Self> {
        let named = |name: &str| env::var(name).ok().filter(|text| !text.trim().is_empty());
        if let Some(command) = named("VISUAL").or_else(|| named("EDITOR")) {
            return Ok(Self(command));
        }
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            let text = "there is no terminal for an editor here; `meshctl policy get` and `meshctl \
                policy apply --if-revision` do without, and VISUAL or EDITOR may name one that \
                needs none";
            return Err(Mistake(text.into()).into());
        }
        Ok(Self(USUAL.into()))
    }

    /// Opens a file, and waits until the editor is left. ^C is the editor's meanwhile.
    ///
    /// # Errors
    /// Fails if it cannot be begun, or says that it failed, as vi does after `:cq`.
    pub(super) async fn edit(&self, path: &Path) -> Result<()> {
        let _theirs = interrupts()?;
        let Self(editor) = self;
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{editor} \"$@\"")).arg(editor).arg(path);
        let status = command.status().await.context("cannot run sh, which begins the editor")?;
        match status.code() {
            Some(0) => Ok(()),
            Some(NOT_FOUND) => Err(Mistake(format!(
                "there is no editor `{editor}`; let VISUAL or EDITOR name another"
            ))
            .into()),
            Some(code) => {
                bail!("the editor `{editor}` ended with exit code {code}, so nothing was applied")
            }
            None => bail!("the editor `{editor}` was killed ({status}), so nothing was applied"),
        }
    }
}

/// ^C from now on. It does not end this process any more.
///
/// # Errors
/// Fails if the handler cannot be set.
pub(super) fn interrupts() -> Result<Signal> {
    signal(SignalKind::interrupt()).context("cannot take signals")
}
