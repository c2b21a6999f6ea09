//! Lists: read once, or again and again for as long as somebody looks.

use crate::{
    Barred,
    arguments::Watching,
    note,
    output::{is_closed, print},
};
use anyhow::Result;
use meshward_types::Selector;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use serde::Serialize;
use std::{
    borrow::Cow,
    io::{self, IsTerminal},
    time::Duration,
};

/// The interval between two polls for changes.
const PAUSE: Duration = Duration::from_secs(1);
/// The limit of the wait for an answer, after which the lack of one is reported.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads and prints; with `--watch` again whenever something has changed, until nobody reads what
/// is printed.
///
/// # Errors
/// Fails if it cannot be read, at the first time; later only if that does not pass by itself.
pub(crate) async fn list<T: Serialize>(
    watching: Watching,
    read: impl AsyncFn() -> Result<T>,
    show: impl Fn(&T) -> Result<()>,
) -> Result<()> {
    if !watching.watch {
        return show(&read().await?);
    }
    let mut known = None;
    again_and_again("watching", async |is_back| {
        let now = read().await?;
        let value = serde_json::to_value(&now)?;
        // Below what a terminal shows stands that nobody answered.
        if known.as_ref() != Some(&value) || is_back && io::stdout().is_terminal() {
            clear(known.is_some());
            show(&now)?;
            known = Some(value);
        }
        Ok(())
    })
    .await
}

/// Repeats a step until nobody reads what is printed.
///
/// # Errors
/// Fails if it cannot be done, at the first time; later only if that does not pass by itself.
pub(crate) async fn follow(mut step: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    again_and_again("following", async |_| step().await).await
}

/// Repeats a step until nobody reads what is printed; each learns if the one before it has failed.
async fn again_and_again(doing: &str, mut step: impl AsyncFnMut(bool) -> Result<()>) -> Result<()> {
    let reader = Reader::of_stdout();
    step(false).await?;
    let mut told: Option<String> = None;
    while !is_closed() && !reader.is_gone() {
        tokio::time::sleep(PAUSE).await;
        let done = tokio::time::timeout(PATIENCE, step(told.is_some())).await;
        let error = match done {
            Ok(Ok(())) => {
                if told.take().is_some() && !io::stdout().is_terminal() {
                    note!("meshctl: there is an answer again");
                }
                continue;
            }
            // Another credential would be needed, and this process has none.
            Ok(Err(error)) if error.is::<Barred>() => return Err(error),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("no answer for {} s", PATIENCE.as_secs()),
        };
        // It may come back; said once.
        if told.as_ref() != Some(&error) {
            note!("meshctl: {error}; still {doing}");
            told = Some(error);
        }
    }
    Ok(())
}

/// The parameter by which the API gives only what has such labels.
pub(crate) fn by_selector(selector: Option<&Selector>) -> Option<(&'static str, String)> {
    selector.map(|selector| ("selector", selector.to_string()))
}

/// Returns the text for an empty list: with a filter, other items may exist.
pub(crate) fn none<'a>(narrowed: bool, what: &str, otherwise: &'a str) -> Cow<'a, str> {
    if narrowed { format!("no {what} like that").into() } else { otherwise.into() }
}

/// On a terminal, what is new takes the place of what was.
fn clear(again: bool) {
    if again && io::stdout().is_terminal() {
        print(format_args!("\x1b[2J\x1b[H"));
    }
}

/// The reader of standard output.
struct Reader(Option<Epoll>);

impl Reader {
    fn of_stdout() -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).ok();
        // A file is always read: it cannot be added. Errors and hang-ups are told unasked.
        let added = epoll
            .as_ref()
            .map(|epoll| epoll.add(io::stdout(), EpollEvent::new(EpollFlags::empty(), 0)));
        Self(epoll.filter(|_| added.is_some_and(|added| added.is_ok())))
    }

    fn is_gone(&self) -> bool {
        let mut events = [EpollEvent::empty()];
        self.0
            .as_ref()
            .is_some_and(|epoll| epoll.wait(&mut events, 0u8).is_ok_and(|count| count > 0))
    }
}
