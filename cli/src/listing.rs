//! Lists: read once, or again and again for as long as somebody looks.

use crate::{
    arguments::Watching,
    note,
    output::{is_closed, print},
};
use anyhow::Result;
use meshward_model::Selector;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use serde::Serialize;
use std::{
    io::{self, IsTerminal},
    time::Duration,
};

/// How often it is looked whether something has changed.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads and prints; with `--watch` again whenever something has changed, until nobody reads what is printed.
///
/// # Errors
/// If it cannot be read, at the first time.
pub async fn list<T: Serialize>(
    watching: Watching,
    read: impl AsyncFn() -> Result<T>,
    show: impl Fn(&T) -> Result<()>,
) -> Result<()> {
    if !watching.watch {
        return show(&read().await?);
    }
    let reader = Reader::of_stdout();
    let (mut known, mut told) = (None, None);
    while !is_closed() && !reader.is_gone() {
        match read().await {
            Ok(now) => {
                told = None;
                let value = serde_json::to_value(&now)?;
                if known.as_ref() != Some(&value) {
                    clear(known.is_some());
                    show(&now)?;
                    known = Some(value);
                }
            }
            Err(error) if known.is_none() => return Err(error),
            // It may come back; said once.
            Err(error) => {
                let text = format!("{error:#}");
                if told.as_ref() != Some(&text) {
                    note!("meshctl: {text}; still watching");
                }
                told = Some(text);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Does something again and again until nobody reads what is printed.
///
/// # Errors
/// If it cannot be done, at the first time.
pub async fn follow(mut step: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    let reader = Reader::of_stdout();
    step().await?;
    let mut told = None;
    while !is_closed() && !reader.is_gone() {
        tokio::time::sleep(PAUSE).await;
        told = match step().await {
            Ok(()) => None,
            Err(error) => {
                let text = format!("{error:#}");
                if told.as_ref() != Some(&text) {
                    note!("meshctl: {text}; still following");
                }
                Some(text)
            }
        };
    }
    Ok(())
}

/// The parameter by which the API gives only what has such labels.
pub fn by_selector(selector: Option<&Selector>) -> Option<(&'static str, String)> {
    selector.map(|selector| ("selector", selector.to_string()))
}

/// On a terminal, what is new takes the place of what was.
fn clear(again: bool) {
    if again && io::stdout().is_terminal() {
        print(format_args!("\x1b[2J\x1b[H"));
    }
}

/// Whoever reads standard output.
struct Reader(Option<Epoll>);

impl Reader {
    fn of_stdout() -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).ok();
        // A file is always read: it cannot be added. Errors and hang-ups are told unasked.
        let added =
            epoll.as_ref().map(|epoll| epoll.add(io::stdout(), EpollEvent::new(EpollFlags::empty(), 0)));
        Self(epoll.filter(|_| added.is_some_and(|added| added.is_ok())))
    }

    fn is_gone(&self) -> bool {
        let mut events = [EpollEvent::empty()];
        self.0.as_ref().is_some_and(|epoll| epoll.wait(&mut events, 0u8).is_ok_and(|count| count > 0))
    }
}
