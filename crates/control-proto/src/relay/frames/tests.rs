use super::*;
use proptest::prelude::*;

fn ids() -> (RelayId, RelayNetwork) {
    (RelayId::of(&"rack".parse().unwrap()), RelayNetwork::of(&"shop".parse().unwrap()))
}

/// Returns the messages of runs, one by one.
fn messages(runs: &[Run]) -> Vec<Vec<u8>> {
    runs.iter().flat_map(|run| run.messages.chunks(run.size)).map(<[u8]>::to_vec).collect()
}

proptest! {
    #[test]
    fn batches_come_out_as_they_went_in(
        batches in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..20_000), 1usize..3000), 1..5),
        most in 300usize..1500, at_once in 1usize..8,
    ) {
        let (to, network) = ids();
        let (mut gathering, mut out, mut sent) = (Gathering::default(), vec![], vec![]);
        for (number, (batch, size)) in batches.iter().enumerate() {
            let size = (*size).min(batch.len());
            sent.extend(batch.chunks(size).map(<[u8]>::to_vec));
            let frames: Vec<Vec<u8>> = frames(to, network, number as u16, batch, size, most).collect();
            prop_assert_eq!(frames.len(), batch.len().div_ceil(most - HEADER));
            for some in frames.chunks(at_once) {
                for frame in some {
                    prop_assert!(frame.len() <= most && destination(frame) == Some(to));
                    gathering.take(frame);
                }
                out.extend(gathering.take_whole());
            }
        }
        prop_assert_eq!(messages(&out), sent);
        prop_assert!(gathering.waiting.is_empty() && gathering.order.is_empty());
    }

    #[test]
    fn frames_that_are_cut_on_their_way_carry_the_same(
        batch in prop::collection::vec(any::<u8>(), 1..20_000), size in 1usize..3000, most in 21usize..1500,
    ) {
        let (to, network) = ids();
        let size = size.min(batch.len());
        let mut gathering = Gathering::default();
        for frame in frames(to, network, 1, &batch, size, 1400) {
            for piece in cut(&frame, most) {
                prop_assert!(piece.len() <= most && destination(&piece) == Some(to));
                gathering.take(&piece);
            }
        }
        let expected: Vec<Vec<u8>> = batch.chunks(size).map(<[u8]>::to_vec).collect();
        prop_assert_eq!(messages(&gathering.take_whole()), expected);
        prop_assert_eq!(cut(&[0; HEADER + 9], HEADER).count(), 0);
    }

    #[test]
    fn what_is_lost_takes_only_its_own_messages_along(
        batch in prop::collection::vec(any::<u8>(), 5_000..20_000), size in 200usize..2000,
        lost in prop::collection::vec(any::<bool>(), 100), swapped in any::<bool>(),
    ) {
        let (to, network) = ids();
        let mut all: Vec<Vec<u8>> = frames(to, network, 1, &batch, size, 1200).collect();
        let room = 1200 - HEADER;
        let is_lost = |at: usize| lost[at % lost.len()];
        let expected: Vec<Vec<u8>> = batch
            .chunks(size)
            .enumerate()
            .filter(|(at, message)| {
                let (first, last) = (at * size / room, (at * size + message.len() - 1) / room);
                !(first..=last).any(is_lost)
            })
            .map(|(_, message)| message.to_vec())
            .collect();
        let mut kept: Vec<Vec<u8>> =
            all.drain(..).enumerate().filter(|(at, _)| !is_lost(*at)).map(|(_, frame)| frame).collect();
        if swapped && kept.len() > 1 {
            kept.swap(0, 1);
        }
        let (mut gathering, mut out) = (Gathering::default(), vec![]);
        kept.iter().for_each(|frame| gathering.take(frame));
        out.extend(gathering.take_whole());
        // The next batch shows that the missing frames are lost.
        frames(to, network, 2, &[9; 10], 10, 1200).for_each(|frame| gathering.take(&frame));
        out.extend(gathering.take_whole());
        let mut got = messages(&out);
        prop_assert_eq!(got.pop(), Some(vec![9; 10]));
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn whatever_comes_is_bounded(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..600)) {
        let mut gathering = Gathering::default();
        for frame in &frames {
            gathering.take(frame);
            prop_assert!(gathering.waiting.len() <= MOST_WAITING && gathering.order.len() <= MOST_WAITING);
        }
        gathering.take_whole();
    }
}
