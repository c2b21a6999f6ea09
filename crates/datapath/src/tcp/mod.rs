//! The state of a TCP connection, as a middlebox sees it (RFC 9293; RFC 7857 §2 and RFC 6146
//! §3.5.2.2).
//!
//! States move only on segments that the receiver would accept: sequence and acknowledgement
//! numbers are compared with what both ends have sent, acknowledged and offered room for (G. van
//! Rooij, "Real stateful TCP packet filtering in IP Filter", 2001; RFC 5961). What is not
//! acceptable passes all the same, for the receiver to check, and moves nothing. Numbers that are
//! not known yet, after a restart or for a connection that began elsewhere, are learnt from the
//! first segment of each end.

use crate::headers::{FIN, Fragment, Headers, RST, SYN};

/// TCP's ACK flag (RFC 9293 §3.1).
pub(crate) const ACK: u8 = 16;
/// The least window that an end is assumed to have offered, in bytes: segments and
/// acknowledgements may be so much older than the newest.
const MIN_WINDOW: u32 = 66_000;
/// Maximum length of the data that a SYN carries (RFC 7413): within one packet.
const MAX_EARLY_DATA: u32 = 2048;
/// The shift of a window whose scale is not known: the largest (RFC 7323 §2.3), so that nothing
/// counts as too far ahead.
const MAX_SCALE: u8 = 14;

/// A segment without data and options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BareSegment {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
}

/// A TCP segment: the fields of its header, and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    /// The sequence number behind it: data, SYN and FIN count.
    end: u32,
    /// The window scale option of a SYN; `None`: windows are not scaled.
    scale: Option<u8>,
}

impl Segment {
    /// Reads it from a packet of TCP that is no later fragment. A super-packet is one long segment.
    pub(crate) fn read(packet: &[u8], headers: &Headers) -> Self {
        let at = headers.payload;
        let header: &[u8; 20] = packet.get(at..).and_then(<[u8]>::first_chunk).unwrap_or(&[0; 20]);
        let number = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (seq, ack, flags) = (number(4), number(8), header[13]);
        let options = usize::from(header[12] >> 4) * 4;
        let data = match headers.fragment {
            Fragment::Whole => headers.length.saturating_sub(at + options) as u32,
            // How long the whole of it is stands in the last fragment.
            _ => u32::from(u16::MAX),
        };
        let marks = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let scale = (flags & SYN != 0).then(|| scale(packet.get(at + 20..at + options)?)).flatten();
        let window = u16::from_be_bytes([header[14], header[15]]);
        Self { seq, ack, flags, window, end: seq.wrapping_add(data + marks), scale }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Returns whether it asks for a connection: a SYN that answers nothing.
    pub(crate) fn begins(&self) -> bool {
        self.flags & (SYN | ACK | RST) == SYN
    }

    /// Returns the reset that its sender accepts. `fragment`: a segment without an acknowledgement
    /// is answered only if all of it is known.
    pub(crate) fn reset(&self, fragment: Fragment) -> Option<BareSegment> {
        match (self.has(ACK), fragment) {
            (true, _) => Some(BareSegment { seq: self.ack, ack: 0, flags: RST }),
            (false, Fragment::Whole) => {
                Some(BareSegment { seq: 0, ack: self.end, flags: RST | ACK })
            }
            (false, _) => None,
        }
    }

    /// Returns whether it belongs to a connection that goes on.
    pub(crate) fn goes_on(&self) -> bool {
        self.flags & (SYN | RST) == 0
    }
}

/// Returns the window scale option among a SYN's (RFC 7323 §2.2).
fn scale(mut options: &[u8]) -> Option<u8> {
    loop {
        match *options {
            [1, ..] => options = &options[1..],
            [3, 3, scale, ..] => return Some(scale.min(MAX_SCALE)),
            [kind, length, ..] if kind != 0 && length >= 2 => {
                options = options.get(usize::from(length)..)?;
            }
            _ => return None,
        }
    }
}

/// The state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum State {
    /// Only the initiator has sent.
    #[default]
    Opening,
    /// The responder has answered; the initiator has not acknowledged that yet.
    Answered,
    /// Both ends have shown that they hear each other. It stays so while one of them has closed its
    /// half.
    Established,
    /// Both ends have closed.
    Closing,
    /// One end has reset the connection.
    Reset,
}

/// The half of a connection that one end sends.
#[derive(Debug, Clone, Copy, Default)]
struct Half {
    /// The sequence number behind the newest byte that it has sent.
    end: u32,
    /// The highest acknowledgement that it has sent.
    acked: u32,
    /// The highest sequence number that it has offered room for.
    edge: u32,
    /// The largest window that it has offered.
    window: u32,
}

// Flags of a half, shifted by its number.
const KNOWN: u16 = 1;
const HAS_ACKED: u16 = 4;
const CLOSED: u16 = 16;
// Flags of the connection.
const RESET_BY_SECOND: u16 = 64;
/// The connection was established before it was reset.
const WAS_ESTABLISHED: u16 = 128;
/// A SYN has answered another.
const SHAKEN: u16 = 256;
// The latest SYN without ACK: whether there was one, who sent it, whether it was answered, and
// whether it had a scale.
const OFFERED: u16 = 512;
const OFFERED_BY_SECOND: u16 = 1024;
const ANSWERED: u16 = 2048;
const SCALES: u16 = 4096;
const OFFER: u16 = OFFERED | OFFERED_BY_SECOND | ANSWERED | SCALES;

/// The effect of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Noted {
    /// `true` if the other end accepts the segment.
    pub(crate) is_accepted: bool,
    /// The end that began the connection, as it is now.
    pub(crate) began: usize,
}

/// A connection between two ends, numbered 0 and 1.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Connection {
    halves: [Half; 2],
    /// The sequence number of the latest SYN without ACK.
    offer: u32,
    flags: u16,
    /// The scales of both halves' windows, four bits each; 15: not known.
    scales: u8,
    /// Returns the scale in the latest SYN without ACK.
    offered_scale: u8,
    state: State,
}

/// Returns whether `a` is not behind `b` (RFC 9293 §3.4).
fn at_or_before(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) as i32 >= 0
}

impl Connection {
    /// A connection of which nothing is known but that both ends may have spoken before.
    pub(crate) fn unknown(state: State) -> Self {
        Self { state, scales: 0xff, ..Self::default() }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Returns whether it was established before it ended.
    pub(crate) fn was_established(&self) -> bool {
        self.flags & WAS_ESTABLISHED != 0
    }

    fn is(&self, flag: u16, end: usize) -> bool {
        self.flags & (flag << end) != 0
    }

    fn set(&mut self, flag: u16, end: usize) {
        self.flags |= flag << end;
    }

    /// Notes a segment that `by` has sent. `began` is the end that began the connection.
    pub(crate) fn note(&mut self, by: usize, began: usize, segment: &Segment) -> Noted {
        let is_accepted = match (segment.has(RST), segment.has(SYN), segment.has(ACK)) {
            (true, ..) => self.note_reset(by, segment),
            (_, true, false) => self.note_offer(by, began, segment),
            (_, true, true) => return self.note_answer(by, began, segment),
            _ => self.note_data(by, began, segment),
        };
        Noted { is_accepted, began }
    }

    /// Applies a SYN: a new connection if the other side has said nothing yet; otherwise that side
    /// decides.
    fn note_offer(&mut self, by: usize, began: usize, segment: &Segment) -> bool {
        if self.offered_by(by) && self.offer == segment.seq {
            return matches!(self.state, State::Opening | State::Answered);
        }
        self.offer = segment.seq;
        self.flags &= !OFFER;
        self.flags |= OFFERED | if by == 1 { OFFERED_BY_SECOND } else { 0 };
        if let Some(scale) = segment.scale {
            self.flags |= SCALES;
            self.offered_scale = scale;
        }
        let begins = by == began && self.state == State::Opening;
        if begins {
            self.begin(by, segment.end, segment.window);
        }
        begins
    }

    fn offered_by(&self, end: usize) -> bool {
        self.flags & OFFERED != 0 && (self.flags & OFFERED_BY_SECOND != 0) == (end == 1)
    }

    /// Forgets everything but the latest SYN, with which it begins.
    fn begin(&mut self, by: usize, end: u32, window: u16) {
        let Self { offer, offered_scale, flags, .. } = *self;
        *self =
            Self { offer, offered_scale, flags: flags & OFFER, scales: 0xff, ..Self::default() };
        self.halves[by].end = end;
        self.halves[by].window = u32::from(window);
        self.set(KNOWN, by);
    }

    /// Applies a SYN that answers another: the sender of that has begun the connection.
    fn note_answer(&mut self, by: usize, began: usize, segment: &Segment) -> Noted {
        let other = 1 - by;
        if !self.offered_by(other) || !self.acknowledges_offer(segment) {
            return Noted { is_accepted: false, began };
        }
        if self.flags & ANSWERED != 0 {
            return Noted { is_accepted: self.state == State::Answered, began };
        }
        if self.state != State::Opening || other != began {
            self.begin(other, segment.ack, u16::MAX);
        }
        let scales = match (self.flags & SCALES != 0, segment.scale) {
            (true, Some(scale)) => self.offered_scale << (4 * other) | scale << (4 * by),
            _ => 0,
        };
        let window = u32::from(segment.window);
        let edge = segment.ack.wrapping_add(window);
        self.halves[by] = Half { end: segment.end, acked: segment.ack, edge, window };
        self.scales = scales;
        self.set(KNOWN, by);
        self.set(HAS_ACKED, by);
        self.flags |= ANSWERED | SHAKEN;
        self.state = State::Answered;
        Noted { is_accepted: true, began: other }
    }

    fn acknowledges_offer(&self, segment: &Segment) -> bool {
        segment.has(ACK) && (1..=1 + MAX_EARLY_DATA).contains(&segment.ack.wrapping_sub(self.offer))
    }

    /// Anything but SYN and RST.
    fn note_data(&mut self, by: usize, began: usize, segment: &Segment) -> bool {
        if !self.accepts(by, segment) {
            return false;
        }
        if self.state == State::Opening && by != began && self.flags & OFFERED != 0 {
            // A SYN is answered by one; this belongs to what was before.
            return false;
        }
        let confirms = self.confirms(by, began, segment);
        self.learn(by, segment);
        match self.state {
            State::Opening if by != began => self.state = State::Answered,
            State::Answered if confirms => self.state = State::Established,
            State::Reset if by != usize::from(self.flags & RESET_BY_SECOND != 0) => {
                // The receiver of the reset goes on, so it has not accepted it.
                let established = self.flags & WAS_ESTABLISHED != 0;
                self.state = if established { State::Established } else { State::Answered };
            }
            _ => {}
        }
        let both = CLOSED | CLOSED << 1;
        if self.state == State::Established && self.flags & both == both {
            self.state = State::Closing;
        }
        true
    }

    /// Returns whether the initiator acknowledges the responder's answer.
    fn confirms(&self, by: usize, began: usize, segment: &Segment) -> bool {
        if by != began || !segment.has(ACK) || !self.is(KNOWN, 1 - by) {
            return false;
        }
        // The acknowledgement of an answer that was seen must be exact: a guess must not do.
        self.flags & SHAKEN == 0 || segment.ack == self.halves[1 - by].end
    }

    fn learn(&mut self, by: usize, segment: &Segment) {
        let shift = self.scale(by);
        let first = !self.is(KNOWN, by);
        let half = &mut self.halves[by];
        if first || at_or_before(half.end, segment.end) {
            half.end = segment.end;
        }
        self.flags |= KNOWN << by;
        if segment.has(ACK) {
            let window = u32::from(segment.window) << shift;
            let edge = segment.ack.wrapping_add(window);
            let half = &mut self.halves[by];
            if self.flags & (HAS_ACKED << by) == 0 {
                (half.acked, half.edge) = (segment.ack, edge);
            } else {
                if at_or_before(half.acked, segment.ack) {
                    half.acked = segment.ack;
                }
                if at_or_before(half.edge, edge) {
                    half.edge = edge;
                }
            }
            half.window = half.window.max(window);
            self.set(HAS_ACKED, by);
        }
        if segment.has(FIN) {
            self.set(CLOSED, by);
        }
    }

    fn scale(&self, end: usize) -> u32 {
        let scale = self.scales >> (4 * end) & 15;
        u32::from(scale.min(MAX_SCALE))
    }

    /// Returns whether the other end accepts a segment: RFC 9293 §3.10.7.4 for its sequence number,
    /// RFC 5961 §5.2 for its acknowledgement.
    fn accepts(&self, by: usize, segment: &Segment) -> bool {
        let (own, other) = (&self.halves[by], &self.halves[1 - by]);
        // A window is rounded when it is scaled, and a full one is probed with a byte (RFC 9293
        // §3.8.6.1).
        let slack = 1 << self.scale(1 - by);
        if self.is(HAS_ACKED, 1 - by) && !at_or_before(segment.seq, other.edge.wrapping_add(slack))
        {
            return false;
        }
        let oldest = other.window.max(MIN_WINDOW);
        if self.is(KNOWN, by) && !at_or_before(own.end.wrapping_sub(oldest), segment.end) {
            return false;
        }
        if !segment.has(ACK) || !self.is(KNOWN, 1 - by) {
            return true;
        }
        let oldest = other.end.wrapping_sub(own.window.max(MIN_WINDOW).saturating_mul(2));
        at_or_before(segment.ack, other.end) && at_or_before(oldest, segment.ack)
    }

    /// Applies a reset. It counts only at the very sequence number that its receiver expects (RFC
    /// 5961 §3.2): between what that end was seen to acknowledge, and what it may have got since.
    fn note_reset(&mut self, by: usize, segment: &Segment) -> bool {
        let other = 1 - by;
        let exact = if self.is(HAS_ACKED, other) {
            let from = self.halves[other].acked;
            let ahead =
                if self.is(KNOWN, by) { self.halves[by].end.wrapping_sub(from) as i32 } else { 0 };
            let offset = segment.seq.wrapping_sub(from);
            offset == 0 || (ahead > 0 && offset <= ahead as u32)
        } else if self.is(KNOWN, by) {
            // The other end has said nothing yet.
            self.halves[by].end.wrapping_sub(segment.seq) <= MAX_EARLY_DATA
        } else {
            // The answer to a SYN (RFC 9293 §3.10.7.3).
            self.offered_by(other) && self.acknowledges_offer(segment)
        };
        if exact && self.state != State::Reset {
            let established = matches!(self.state, State::Established | State::Closing);
            self.flags &= !(RESET_BY_SECOND | WAS_ESTABLISHED);
            self.flags |= if by == 1 { RESET_BY_SECOND } else { 0 };
            self.flags |= if established { WAS_ESTABLISHED } else { 0 };
            self.state = State::Reset;
        }
        exact
    }

    /// Returns whether an error about a segment that `by` has sent, with this sequence number, can
    /// be true: it was sent, and was not acknowledged when it was (RFC 5927 §4.1). Probes of an
    /// idle connection are a byte behind.
    pub(crate) fn has_in_flight(&self, by: usize, seq: u32) -> bool {
        let (own, other) = (&self.halves[by], &self.halves[1 - by]);
        if self.offered_by(by) && self.flags & ANSWERED == 0 && seq == self.offer {
            return true;
        }
        if !self.is(KNOWN, by) || !at_or_before(seq, own.end) {
            return false;
        }
        let oldest = match self.is(HAS_ACKED, 1 - by) {
            true => other.acked.wrapping_sub(1),
            false => own.end.wrapping_sub(MIN_WINDOW),
        };
        at_or_before(oldest, seq)
    }
}

impl Connection {
    /// Returns the sequence numbers at which an end may accept a reset: the one that it expects, or
    /// ones around that, so that it answers with it (RFC 5961 §3.2). Empty: no numbers are known.
    pub(crate) fn resets(&self, end: usize) -> impl Iterator<Item = u32> {
        let acked = self.is(HAS_ACKED, end).then_some(self.halves[end].acked);
        let sent = self.is(KNOWN, 1 - end).then_some(self.halves[1 - end].end);
        acked.into_iter().chain(sent.filter(|sent| acked != Some(*sent)))
    }

    /// A connection that was in this state before, of which no numbers are known. `closed`: see
    /// [`Self::closed`].
    pub(crate) fn restored(state: State, closed: u8) -> Self {
        Self { flags: u16::from(closed & 3) * CLOSED, ..Self::unknown(state) }
    }

    /// Returns which ends have closed their halves, a bit for each.
    pub(crate) fn closed(&self) -> u8 {
        ((self.flags / CLOSED) & 3) as u8
    }

    /// Notes that the other side has spoken, in a protocol without states of its own.
    pub(crate) fn answer(&mut self) {
        if self.state == State::Opening {
            self.state = State::Answered;
        }
    }
}

#[cfg(test)]
mod tests;
