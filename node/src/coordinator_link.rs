//! The link to the coordinator: the sending half of the session, while there is one.

use meshward_control_proto::{Fired, FromNode};
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

/// The most fired triggers that wait for a session.
const MAX_UNREPORTED: usize = 1024;

/// The way to the coordinator, for every part of the node that reports something. Its lock is a
/// leaf: nothing else is locked while it is held.
#[derive(Default)]
pub struct CoordinatorLink(Mutex<State>);

#[derive(Default)]
struct State {
    session: Option<UnboundedSender<FromNode>>,
    /// The coordinator has answered: another machine does not have this node's session.
    is_accepted: bool,
    /// The sessions that have been accepted.
    accepted: u64,
    /// Triggers that fired while there was no session.
    unreported: Vec<Fired>,
}

impl CoordinatorLink {
    /// Begins a session: what is sent from now on goes into `session`, triggers that have fired
    /// meanwhile first.
    pub fn begin(&self, session: UnboundedSender<FromNode>) {
        let mut state = self.0.lock();
        for fired in std::mem::take(&mut state.unreported) {
            let _ = session.send(FromNode::Fired(fired));
        }
        state.session = Some(session);
    }

    /// Notes that the coordinator has accepted the session.
    pub fn note_accepted(&self) {
        let mut state = self.0.lock();
        if state.session.is_some() && !state.is_accepted {
            state.is_accepted = true;
            state.accepted += 1;
        }
    }

    /// Ends the session.
    pub fn end(&self) {
        let mut state = self.0.lock();
        (state.session, state.is_accepted) = (None, false);
    }

    /// Returns `true` if there is a session, accepted or not.
    pub fn has_session(&self) -> bool {
        self.0.lock().session.is_some()
    }

    /// Returns `true` if there is a session that the coordinator has accepted.
    pub fn is_connected(&self) -> bool {
        self.0.lock().is_accepted
    }

    /// Returns the number of the session, if there is one that the coordinator has accepted.
    pub fn session_number(&self) -> Option<u64> {
        let state = self.0.lock();
        state.is_accepted.then_some(state.accepted)
    }

    /// Sends a message, if there is a session; returns whether there is.
    pub fn send(&self, message: FromNode) -> bool {
        let state = self.0.lock();
        state.session.as_ref().is_some_and(|session| session.send(message).is_ok())
    }

    /// Reports a trigger that has fired, now or at the begin of the next session; returns whether
    /// there is a session now.
    pub fn report_fired(&self, fired: Fired) -> bool {
        let mut state = self.0.lock();
        if let Some(session) = &state.session {
            let _ = session.send(FromNode::Fired(fired));
            return true;
        }
        if state.unreported.len() < MAX_UNREPORTED {
            state.unreported.push(fired);
        }
        false
    }
}
