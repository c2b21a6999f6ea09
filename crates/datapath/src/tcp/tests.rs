use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

const A: usize = 0;
const B: usize = 1;

fn segment(flags: u8, seq: u32, ack: u32, data: u32) -> Segment {
    let marks = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let end = seq.wrapping_add(data + marks);
    Segment { seq, ack, flags, window: 1000, end, scale: (flags & SYN != 0).then_some(7) }
}

/// A connection and who began it.
struct Watch {
    connection: Connection,
    began: usize,
}

impl Watch {
    fn new() -> Self {
        Self { connection: Connection::unknown(State::Opening), began: A }
    }

    fn note(&mut self, by: usize, segment: Segment) -> bool {
        let noted = self.connection.note(by, self.began, &segment);
        self.began = noted.began;
        noted.is_accepted
    }

    fn state(&self) -> State {
        self.connection.state()
    }
}

/// A's first byte has number 101, B's 501; both have sent and acknowledged 10 bytes.
fn established() -> Watch {
    let mut watch = Watch::new();
    assert!(watch.note(A, segment(SYN, 100, 0, 0)));
    assert_eq!(watch.state(), State::Opening);
    assert!(watch.note(B, segment(SYN | ACK, 500, 101, 0)));
    assert_eq!(watch.state(), State::Answered);
    assert!(watch.note(A, segment(ACK, 101, 501, 10)));
    assert!(watch.note(B, segment(ACK, 501, 111, 10)));
    assert!(watch.note(A, segment(ACK, 111, 511, 0)));
    assert_eq!(watch.state(), State::Established);
    watch
}

#[test]
fn a_handshake_counts_once_both_sides_have_made_it() {
    let mut watch = Watch::new();
    watch.note(A, segment(SYN, 100, 0, 0));
    assert!(!watch.note(B, segment(SYN | ACK, 500, 77, 0)), "it answers another SYN");
    assert!(!watch.note(B, segment(ACK, 500, 101, 0)));
    assert_eq!(watch.state(), State::Opening);
    watch.note(B, segment(SYN | ACK, 500, 101, 0));
    watch.note(A, segment(ACK, 101, 480, 0));
    watch.note(A, segment(ACK, 101, 502, 0));
    watch.note(B, segment(ACK, 501, 101, 0));
    assert_eq!(watch.state(), State::Answered, "a guess is no acknowledgement");
    watch.note(A, segment(ACK, 101, 501, 0));
    assert_eq!(watch.state(), State::Established);
}

#[test]
fn a_blind_reset_changes_nothing_and_an_exact_one_ends_it() {
    for (by, exact) in [(A, 111), (B, 511)] {
        for wrong in [0, 1, exact - 1, exact + 1, exact + 500, exact + 100_000, exact ^ (1 << 31)] {
            let mut watch = established();
            watch.note(by, segment(RST, wrong, 0, 0));
            watch.note(by, segment(RST | ACK, wrong, 511, 0));
            assert_eq!(watch.state(), State::Established, "{wrong}");
        }
        let mut watch = established();
        assert!(watch.note(by, segment(RST, exact, 0, 0)));
        assert_eq!(watch.state(), State::Reset);
    }
}

#[test]
fn an_end_that_goes_on_after_a_reset_has_not_accepted_it() {
    let mut watch = established();
    watch.note(B, segment(RST, 511, 0, 0));
    watch.note(B, segment(ACK, 511, 111, 5));
    assert_eq!(watch.state(), State::Reset);
    watch.note(A, segment(ACK, 111, 511, 5));
    assert_eq!(watch.state(), State::Established);
}

#[test]
fn a_refused_connection_is_over_and_may_begin_again() {
    let mut watch = Watch::new();
    watch.note(A, segment(SYN, 100, 0, 0));
    assert!(!watch.note(B, segment(RST | ACK, 0, 99, 0)));
    assert!(watch.note(B, segment(RST | ACK, 0, 101, 0)));
    assert_eq!(watch.state(), State::Reset);
    watch.note(A, segment(SYN, 9000, 0, 0));
    assert!(watch.note(B, segment(SYN | ACK, 40, 9001, 0)));
    assert!(watch.note(A, segment(ACK, 9001, 41, 0)));
    assert_eq!(watch.state(), State::Established);
}

#[test]
fn half_closed_is_established_and_closed_is_not() {
    for first in [A, B] {
        let mut watch = established();
        let numbers = [(111, 511), (511, 111)];
        let fin = |by: usize| {
            let (seq, ack) = numbers[by];
            let other_has_closed = u32::from(by != first);
            segment(FIN | ACK, seq, ack + other_has_closed, 0)
        };
        assert!(watch.note(first, fin(first)));
        assert_eq!(watch.state(), State::Established);
        assert!(watch.note(1 - first, fin(1 - first)));
        assert_eq!(watch.state(), State::Closing);
    }
    let mut watch = established();
    watch.note(A, segment(FIN | ACK, 111, 511, 0));
    watch.note(B, segment(FIN | ACK, 511 + (1 << 24), 112, 0));
    assert_eq!(watch.state(), State::Established, "a FIN that is far ahead is not taken");
}

#[test]
fn a_syn_in_the_middle_begins_nothing_until_it_is_answered() {
    let mut watch = established();
    assert!(!watch.note(A, segment(SYN, 7_000_000, 0, 0)));
    assert!(watch.note(B, segment(ACK, 511, 111, 0)), "a challenge (RFC 5961 §4)");
    assert!(watch.note(A, segment(ACK, 111, 511, 4)));
    assert_eq!(watch.state(), State::Established);
    assert!(watch.note(B, segment(SYN | ACK, 3_000_000, 7_000_001, 0)));
    assert_eq!((watch.state(), watch.began), (State::Answered, A));
    assert!(watch.note(A, segment(ACK, 7_000_001, 3_000_001, 0)));
    assert_eq!(watch.state(), State::Established);
}

#[test]
fn the_side_that_answered_begins_only_by_a_syn_that_is_answered() {
    let mut watch = established();
    watch.note(B, segment(SYN, 9_000_000, 0, 0));
    assert_eq!((watch.state(), watch.began), (State::Established, A));
    watch.note(A, segment(SYN | ACK, 40, 9_000_001, 0));
    assert_eq!((watch.state(), watch.began), (State::Answered, B));
}

#[test]
fn an_old_handshake_that_comes_again_changes_nothing() {
    let mut watch = established();
    let (mut seq, step) = (511, 50_000);
    for _ in 0..100 {
        assert!(watch.note(B, segment(ACK, seq, 111, step)));
        seq += step;
        assert!(watch.note(A, segment(ACK, 111, seq, 0)));
    }
    watch.note(A, segment(SYN, 100, 0, 0));
    watch.note(B, segment(SYN | ACK, 500, 101, 0));
    assert_eq!(watch.state(), State::Established);
    assert!(watch.note(B, segment(ACK, seq, 111, step)));
}

#[test]
fn a_connection_that_began_elsewhere_is_established_once_both_have_spoken() {
    let mut watch = Watch::new();
    watch.note(A, segment(ACK, 5000, 900, 10));
    assert_eq!(watch.state(), State::Opening);
    watch.note(B, segment(ACK, 900, 5010, 3));
    assert_eq!(watch.state(), State::Answered);
    watch.note(A, segment(ACK, 5010, 903, 0));
    assert_eq!(watch.state(), State::Established);
}

#[test]
fn an_error_is_about_what_is_in_flight() {
    let mut watch = established();
    watch.note(A, segment(ACK, 111, 511, 1000));
    let in_flight = |watch: &Watch, seq: u32| watch.connection.has_in_flight(A, seq);
    assert!(in_flight(&watch, 111) && in_flight(&watch, 1111) && in_flight(&watch, 110));
    assert!(!in_flight(&watch, 109) && !in_flight(&watch, 1112));
    watch.note(B, segment(ACK, 511, 1111, 0));
    assert!(!in_flight(&watch, 111) && in_flight(&watch, 1110));
    let unknown = Connection::unknown(State::Established);
    assert!(!unknown.has_in_flight(A, 5), "nothing was seen of it");
}

#[test]
fn the_scale_of_windows_is_found_among_options() {
    assert_eq!(scale(&[2, 4, 5, 180, 4, 2, 1, 3, 3, 9]), Some(9));
    assert_eq!(scale(&[1, 1, 3, 3, 200]), Some(MAX_SCALE));
    assert_eq!(scale(&[0, 3, 3, 9]), None);
    assert_eq!(scale(&[2, 0, 3, 3, 9]), None);
    assert_eq!(scale(&[2, 40, 3]), None);
}

/// One end of a connection, as RFC 9293 has it: it accepts what is in order, and sends again from
/// what was not acknowledged.
struct End {
    unacknowledged: u32,
    next: u32,
    newest: u32,
    expected: u32,
    /// The scale of its own window, and how much the other has offered from `unacknowledged` on.
    scale: u8,
    offered: u32,
    /// The sequence number of its FIN.
    last: Option<u32>,
}

impl End {
    fn new(first: u32, scale: u8) -> Self {
        Self {
            unacknowledged: first,
            next: first,
            newest: first,
            expected: 0,
            scale,
            offered: 0,
            last: None,
        }
    }

    fn segment(&self, flags: u8, data: u32) -> Segment {
        let window = if flags & SYN != 0 { 60_000 } else { 60_000 >> self.scale };
        let scale = (flags & SYN != 0).then_some(self.scale);
        let marks = u32::from(flags & (SYN | FIN) != 0);
        let end = self.next.wrapping_add(data + marks);
        let ack = if flags & ACK != 0 { self.expected } else { 0 };
        Segment { seq: self.next, ack, flags, window, end, scale }
    }

    /// Data from `next` on, as much as fits.
    fn data(&mut self, most: u32) -> Segment {
        let used = self.next.wrapping_sub(self.unacknowledged);
        let mut length = most.min(self.offered.saturating_sub(used));
        let mut flags = ACK;
        let open = |last: &u32| at_or_before(self.next, *last);
        if self.last.is_some() && !self.last.as_ref().is_some_and(open) {
            length = 0;
        } else if let Some(last) = self.last {
            length = length.min(last.wrapping_sub(self.next));
            if self.next.wrapping_add(length) == last {
                flags |= FIN;
            }
        }
        let segment = self.segment(flags, length);
        self.next = segment.end;
        if at_or_before(self.newest, self.next) {
            self.newest = self.next;
        }
        segment
    }

    fn take(&mut self, segment: &Segment, other_scale: u8) -> Option<Segment> {
        if segment.has(ACK)
            && at_or_before(self.unacknowledged, segment.ack)
            && at_or_before(segment.ack, self.newest)
        {
            self.unacknowledged = segment.ack;
            if !at_or_before(self.unacknowledged, self.next) {
                self.next = self.unacknowledged;
            }
            let shift = if segment.has(SYN) { 0 } else { other_scale };
            self.offered = u32::from(segment.window) << shift;
        }
        if segment.seq == self.expected && segment.end != segment.seq {
            self.expected = segment.end;
            return Some(self.segment(ACK, 0));
        }
        (segment.end != segment.seq).then(|| self.segment(ACK, 0))
    }
}

/// Two ends, what is between them, and what stands by each end and watches.
struct Line {
    ends: [End; 2],
    between: [VecDeque<Segment>; 2],
    watches: [Watch; 2],
}

impl Line {
    fn new(first: [u32; 2], scales: [u8; 2]) -> Self {
        let ends = [End::new(first[0], scales[0]), End::new(first[1], scales[1])];
        let mut line =
            Self { ends, between: Default::default(), watches: [Watch::new(), Watch::new()] };
        // A handshake without losses.
        let syn = line.ends[A].segment(SYN, 0);
        line.ends[B].expected = syn.end;
        let answer = line.ends[B].segment(SYN | ACK, 0);
        for (end, sent) in line.ends.iter_mut().zip([syn, answer]) {
            (end.next, end.newest, end.unacknowledged) = (sent.end, sent.end, sent.end);
            end.offered = 60_000;
        }
        line.ends[A].expected = answer.end;
        let ack = line.ends[A].segment(ACK, 0);
        for watch in &mut line.watches {
            assert!(watch.note(A, syn) && watch.note(B, answer) && watch.note(A, ack));
            assert_eq!(watch.state(), State::Established);
        }
        line
    }

    /// Sends a segment of an end, which the watcher on that side has to accept.
    fn send(&mut self, by: usize, segment: Segment) {
        assert!(
            self.watches[by].note(by, segment),
            "{segment:?} by {by}: {:?}",
            self.watches[by].connection
        );
        self.between[by].push_back(segment);
    }

    fn deliver(&mut self, by: usize, at: usize) {
        let Some(segment) = self.between[by].remove(at) else { return };
        let other = 1 - by;
        self.watches[other].note(by, segment);
        let scale = self.ends[by].scale;
        if let Some(answer) = self.ends[other].take(&segment, scale) {
            self.send(other, answer);
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Send(usize, u32),
    Again(usize),
    Close(usize),
    Deliver(usize, usize),
    Lose(usize),
    Twice(usize),
    /// A segment of a stranger who does not know the numbers, off by so much.
    Guess(usize, u8, u32),
}

fn event() -> impl Strategy<Value = Event> {
    let far = prop_oneof![5_000_000..1u32 << 31, (1u32 << 31) + 1..u32::MAX - 5_000_000];
    let flags = prop_oneof![
        Just(RST),
        Just(RST | ACK),
        Just(FIN | ACK),
        Just(SYN),
        Just(SYN | ACK),
        Just(ACK)
    ];
    prop_oneof![
        6 => (0..2usize, prop_oneof![0..3000u32, 40_000..60_000u32])
            .prop_map(|(by, n)| Event::Send(by, n)),
        2 => (0..2usize).prop_map(Event::Again),
        1 => (0..2usize).prop_map(Event::Close),
        8 => (0..2usize, prop_oneof![3 => Just(0usize), 1 => 0..4usize])
            .prop_map(|(by, at)| Event::Deliver(by, at)),
        1 => (0..2usize).prop_map(Event::Lose),
        1 => (0..2usize).prop_map(Event::Twice),
        1 => (0..2usize, flags, far).prop_map(|(by, flags, off)| Event::Guess(by, flags, off)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Over loss, duplicates and reordering, beside ends that know their state: established while
    /// one of them has not closed, closing only when both have, whatever somebody else guesses.
    #[test]
    fn states_follow_the_ends_and_nobody_else(
        first in any::<[u32; 2]>(),
        scales in [0..8u8, 0..8u8],
        events in prop::collection::vec(event(), 1..200),
    ) {
        let mut line = Line::new(first, scales);
        for event in events {
            match event {
                Event::Send(by, most) => {
                    let segment = line.ends[by].data(most);
                    line.send(by, segment);
                }
                Event::Again(by) => {
                    line.ends[by].next = line.ends[by].unacknowledged;
                    let segment = line.ends[by].data(1400);
                    line.send(by, segment);
                }
                Event::Close(by) => {
                    let end = &mut line.ends[by];
                    if end.last.is_none() {
                        end.last = Some(end.newest);
                        end.next = end.unacknowledged;
                    }
                }
                Event::Deliver(by, at) => line.deliver(by, at),
                Event::Lose(by) => _ = line.between[by].pop_front(),
                Event::Twice(by) => {
                    if let Some(front) = line.between[by].front().copied() {
                        line.between[by].push_back(front);
                    }
                }
                Event::Guess(by, flags, off) => {
                    let guess = segment(
                        flags,
                        line.ends[by].newest.wrapping_add(off),
                        line.ends[1 - by].newest.wrapping_add(off),
                        0,
                    );
                    line.watches.iter_mut().for_each(|watch| _ = watch.note(by, guess));
                }
            }
            let closed = line.ends.iter().all(|end| end.last.is_some());
            for watch in &line.watches {
                let state = watch.state();
                prop_assert!(
                    state == State::Established || closed && state == State::Closing,
                    "{state:?}"
                );
            }
        }
        // Everything comes through in the end.
        for _ in 0..200 {
            for by in [A, B] {
                line.ends[by].next = line.ends[by].unacknowledged;
                let segment = line.ends[by].data(60_000);
                line.send(by, segment);
                while !line.between[by].is_empty() {
                    line.deliver(by, 0);
                }
            }
        }
        while let Some(by) = [A, B].into_iter().find(|by| !line.between[*by].is_empty()) {
            line.deliver(by, 0);
        }
        let closed = line.ends.iter().all(|end| end.last.is_some());
        prop_assert!(line.ends.iter().all(|end| end.unacknowledged == end.newest));
        for watch in &line.watches {
            prop_assert_eq!(
                watch.state(),
                if closed { State::Closing } else { State::Established }
            );
        }
    }
}
