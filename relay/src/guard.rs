//! Admission of connections under load: members and operators come before strangers, and no
//! stranger before another.

use crate::limits::{
    CONNECTIONS_OF_A_MEMBER, JOINS, KNOWN_SOURCES, RETRY_FROM, Strangers, TRUSTED_CONNECTIONS,
};
use meshward_runtime::{
    connection_permits::ConnectionPermits,
    sources::{KnownSources, OpenBySource, OpenLimit, RateBySource, Seldom, SourcePermit},
};
use parking_lot::Mutex;
use std::{
    cmp::Reverse,
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use tracing::warn;

/// The sources of failed authentications that are counted one by one for the audit log, and those
/// that a line of it names.
const FAILED_SOURCES: usize = 256;
const NAMED_SOURCES: usize = 4;

/// What guards a process's listeners.
#[derive(Debug)]
pub struct Guard {
    /// Permits for TCP connections.
    pub permits: Arc<ConnectionPermits>,
    /// Where members and operators have come from.
    known: Arc<KnownSources>,
    /// QUIC handshakes of addresses that have not shown that they are theirs.
    unproven: Arc<OpenBySource>,
    /// QUIC handshakes of strangers, and of those who were there before.
    strangers: Arc<OpenBySource>,
    members: Arc<OpenBySource>,
    joins: Arc<OpenBySource>,
    join_rate: RateBySource,
    failures: RateBySource,
    counts: Counts,
    /// Authentications that failed and are not in the audit log yet.
    unaudited: Mutex<Failed>,
    /// Told when there is one.
    pub failed: Notify,
}

/// Failed authentications together: however many there are, what is kept of them is little.
#[derive(Debug, Default, Clone)]
pub struct Failed {
    /// By what was shown and where it came from.
    by_source: HashMap<(&'static str, IpAddr), u64>,
    /// Those of further sources.
    others: u64,
}

impl Failed {
    fn note(&mut self, source: IpAddr, what: &'static str, count: u64) {
        let has_room = self.by_source.len() < FAILED_SOURCES;
        match self.by_source.entry((what, source)) {
            Entry::Occupied(mut known) => *known.get_mut() += count,
            Entry::Vacant(new) if has_room => drop(new.insert(count)),
            Entry::Vacant(_) => self.others += count,
        }
    }

    /// A line for the audit log, which names where most came from; nothing if there were none.
    pub fn line(&self) -> Option<String> {
        let count = self.by_source.values().sum::<u64>() + self.others;
        let mut sources: Vec<_> = self.by_source.iter().collect();
        sources.sort_unstable_by_key(|((what, source), count)| (Reverse(**count), *what, *source));
        let named: Vec<String> = sources
            .iter()
            .take(NAMED_SOURCES)
            .map(|((what, source), count)| format!("{count} by {what} from {source}"))
            .collect();
        let mut line = match count {
            0 => return None,
            1 => "an authentication failed: ".to_owned(),
            _ => format!("{count} authentications failed: "),
        } + &named.join(", ");
        if sources.len() > NAMED_SOURCES || self.others > 0 {
            line += ", and others";
        }
        Some(line)
    }
}

/// What was turned away since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// QUIC handshakes that had to prove their address first.
    pub retried: AtomicU64,
    /// QUIC handshakes that were refused.
    pub refused: AtomicU64,
    /// Requests to join that were refused for their number.
    pub joins: AtomicU64,
    /// Authentications that failed, and those that were refused unseen after too many of these.
    pub failures: AtomicU64,
    pub barred: AtomicU64,
}

/// What becomes of a QUIC handshake.
#[derive(Debug)]
pub enum Verdict {
    /// It is gone on with, and holds this until it is done.
    Accept(SourcePermit),
    /// Its address has to be proven first.
    Retry,
    /// There is no room: it is to come again later.
    Refuse,
}

impl Guard {
    /// With room for `descriptors` connections.
    pub fn new(limits: &Strangers, descriptors: usize) -> Arc<Self> {
        let known = Arc::new(KnownSources::new(KNOWN_SOURCES));
        let tcp = limits.tcp(descriptors);
        let trusted = descriptors.saturating_sub(tcp.total * 3 / 2).clamp(1, TRUSTED_CONNECTIONS);
        let quic = limits.quic();
        // As many from each source as there are: a whole site may come back behind one address.
        let members =
            OpenLimit { per_address: quic.total, per_prefix: quic.total, total: quic.total };
        Arc::new(Self {
            permits: ConnectionPermits::new(tcp, trusted, known.clone()),
            known,
            unproven: OpenBySource::new(OpenLimit {
                per_address: RETRY_FROM,
                per_prefix: RETRY_FROM,
                total: RETRY_FROM,
            }),
            strangers: OpenBySource::new(quic),
            members: OpenBySource::new(members),
            joins: OpenBySource::new(JOINS),
            join_rate: RateBySource::new(limits.joins()),
            failures: RateBySource::new(limits.failures()),
            counts: Counts::default(),
            unaudited: Mutex::default(),
            failed: Notify::new(),
        })
    }

    /// Judges a QUIC handshake. `proven`: whether it is shown that the sender receives what is sent
    /// to its address.
    pub fn judge(&self, source: IpAddr, proven: bool) -> Verdict {
        let proven = proven || source.is_loopback();
        let room = match (proven, source.is_loopback() || self.known.contains(source)) {
            (false, _) => &self.unproven,
            (true, true) => &self.members,
            (true, false) => &self.strangers,
        };
        match room.open(source) {
            Some(permit) => Verdict::Accept(permit),
            None if proven => {
                self.counts.refused.fetch_add(1, Relaxed);
                Verdict::Refuse
            }
            None => {
                self.counts.retried.fetch_add(1, Relaxed);
                Verdict::Retry
            }
        }
    }

    /// Notes that a member or an operator has authenticated from there.
    pub fn note_known(&self, source: IpAddr) {
        self.known.note(source);
    }

    /// Whether a request to join may be worked on; it holds this meanwhile.
    pub fn join(&self, source: IpAddr, now: Instant) -> Option<SourcePermit> {
        let permit = self
            .joins
            .open(source)
            .filter(|_| source.is_loopback() || self.join_rate.take(source, now));
        if permit.is_none() {
            self.counts.joins.fetch_add(1, Relaxed);
        }
        permit
    }

    /// Whether somebody may try to authenticate: not after too many failures from the same source.
    /// Who was known there before may, so that nobody locks an operator out by failing beside them.
    pub fn may_authenticate(&self, source: IpAddr, now: Instant) -> bool {
        let may = source.is_loopback()
            || self.known.contains(source)
            || self.failures.allows(source, now);
        if !may {
            self.counts.barred.fetch_add(1, Relaxed);
        }
        may
    }

    /// Counts a failed authentication, and logs it, once in a while. `what` was shown, such as "an
    /// API token".
    pub fn note_failure(&self, source: IpAddr, what: &'static str, now: Instant) {
        static LINES: Seldom = Seldom::every(Duration::from_secs(5));
        self.counts.failures.fetch_add(1, Relaxed);
        self.failures.take(source, now);
        self.unaudited.lock().note(source.to_canonical(), what, 1);
        self.failed.notify_one();
        if let Some(more) = LINES.due(now) {
            warn!(from = %source, unlogged_before = more, "failed authentication by {what}");
        }
    }

    /// The failures that are not in the audit log yet. They are taken: who cannot write them down
    /// gives them back.
    pub fn take_failed(&self) -> Failed {
        std::mem::take(&mut self.unaudited.lock())
    }

    /// Takes back what could not be written down.
    pub fn give_back(&self, failed: Failed) {
        let mut unaudited = self.unaudited.lock();
        unaudited.others += failed.others;
        for ((what, source), count) in failed.by_source {
            unaudited.note(source, what, count);
        }
        drop(unaudited);
        self.failed.notify_one();
    }

    /// What was turned away since the start.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// The connections of members, counted by who has them and by protocol.
#[derive(Debug, Default)]
pub struct MemberConnections(Arc<Mutex<HashMap<String, usize>>>);

/// One of these. It is closed when this is dropped.
#[derive(Debug)]
pub struct MemberConnection(Arc<Mutex<HashMap<String, usize>>>, String);

impl MemberConnections {
    /// One more of a member; `None` if it has too many.
    pub fn open(&self, who: &str, alpn: &[u8]) -> Option<MemberConnection> {
        let key = format!("{who} {}", alpn.escape_ascii());
        let mut counts = self.0.lock();
        let count = counts.entry(key.clone()).or_default();
        if *count >= CONNECTIONS_OF_A_MEMBER {
            return None;
        }
        *count += 1;
        Some(MemberConnection(self.0.clone(), key))
    }
}

impl Drop for MemberConnection {
    fn drop(&mut self) {
        let mut counts = self.0.lock();
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn forged_addresses_leave_room_for_proven_ones_and_strangers_for_members() {
        let guard = Guard::new(&Strangers::default(), 10_000);
        let forged: Vec<Verdict> = (0..10_000u32)
            .map(|at| guard.judge(IpAddr::from((0x0a00_0000 + at * 256).to_be_bytes()), false))
            .collect();
        let accepted =
            forged.iter().filter(|verdict| matches!(verdict, Verdict::Accept(_))).count();
        assert_eq!(accepted, RETRY_FROM);
        assert!(matches!(forged[9_999], Verdict::Retry));
        assert!(matches!(guard.judge(ip("192.0.2.1"), true), Verdict::Accept(_)));

        guard.note_known(ip("192.0.2.1"));
        let real: Vec<Verdict> = (0..10_000u32)
            .map(|at| guard.judge(IpAddr::from((0x0a00_0000 + at * 256).to_be_bytes()), true))
            .collect();
        assert!(matches!(real[9_999], Verdict::Refuse));
        assert!(
            matches!(guard.judge(ip("192.0.2.1"), true), Verdict::Accept(_)),
            "a member's source"
        );
        assert!(matches!(guard.judge(ip("192.0.2.1"), false), Verdict::Retry), "if it is its own");
        assert!(
            matches!(guard.judge(ip("127.0.0.1"), false), Verdict::Accept(_)),
            "the operator's machine"
        );
    }

    #[test]
    fn failures_are_joined_together_in_a_line_that_stays_short() {
        let (guard, now) = (Guard::new(&Strangers::default(), 1000), Instant::now());
        assert_eq!(guard.take_failed().line(), None);
        guard.note_failure(ip("192.0.2.1"), "an API token", now);
        let line = guard.take_failed().line().unwrap();
        assert_eq!(line, "an authentication failed: 1 by an API token from 192.0.2.1");
        for at in 0..10_000u32 {
            guard.note_failure(IpAddr::from((0x0a00_0000 + at).to_be_bytes()), "a join token", now);
            guard.note_failure(ip("::ffff:192.0.2.1"), "an API token", now);
        }
        let failed = guard.take_failed();
        assert!(failed.by_source.len() <= FAILED_SOURCES);
        let line = failed.line().unwrap();
        let begins =
            "20000 authentications failed: 10000 by an API token from 192.0.2.1, 1 by a join token";
        assert!(
            line.starts_with(begins) && line.ends_with(", and others") && line.len() < 300,
            "{line}"
        );
        guard.give_back(failed);
        assert_eq!(guard.take_failed().line().unwrap(), line, "nothing is lost");
    }

    #[test]
    fn who_fails_too_often_is_refused_unseen_and_others_are_not() {
        let guard = Guard::new(&Strangers { failures_per_minute: 3.0, ..Default::default() }, 1000);
        let now = Instant::now();
        guard.note_known(ip("198.51.100.1"));
        for _ in 0..3 {
            assert!(guard.may_authenticate(ip("192.0.2.1"), now));
            guard.note_failure(ip("192.0.2.1"), "an API token", now);
            guard.note_failure(ip("198.51.100.1"), "an API token", now);
        }
        assert!(!guard.may_authenticate(ip("192.0.2.1"), now));
        assert!(guard.may_authenticate(ip("198.51.100.1"), now));
        assert!(guard.may_authenticate(ip("192.0.2.2"), now));
        assert!(
            guard.may_authenticate(ip("192.0.2.1"), now + Duration::from_secs(20)),
            "it comes back"
        );
    }
}
