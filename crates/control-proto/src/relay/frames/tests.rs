use super::*;
use proptest::prelude::*;

fn ids() -> (RelayId, RelayNetwork) {
    (RelayId::of(&"rack".parse().unwrap()), RelayNetwork::of(&"shop".parse().unwrap()))
}

/// Returns the messages of runs, one by one.
fn messages(runs: &[MessageRun]) -> Vec<Vec<u8>> {
    runs.iter().flat_map(|run| run.messages.chunks(run.size)).map(<[u8]>::to_vec).collect()
}

proptest! {
    #[test]
    fn batches_come_out_as_they_went_in(
        batches in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 1..20_000), 1usize..3000),
            1..5,
        ),
        most in 300usize..1500,
        at_once in 1usize..8,
    ) {
        let (to, network) = ids();
        let (mut assembler, mut out, mut sent) = (BatchAssembler::default(), vec![], vec![]);
        for (number, (batch, size)) in batches.iter().enumerate() {
            let size = (*size).min(batch.len());
            sent.extend(batch.chunks(size).map(<[u8]>::to_vec));
            let frames: Vec<Vec<u8>> =
                MessageBatch { to, network, number: number as u16, messages: batch, size }
                    .frames(most)
                    .collect();
            prop_assert_eq!(frames.len(), batch.len().div_ceil(most - HEADER));
            for some in frames.chunks(at_once) {
                for frame in some {
                    prop_assert!(frame.len() <= most && destination(frame) == Some(to));
                    assembler.add(frame);
                }
                out.extend(assembler.drain_complete());
            }
        }
        prop_assert_eq!(messages(&out), sent);
        prop_assert!(assembler.waiting.is_empty() && assembler.order.is_empty());
    }

    #[test]
    fn frames_that_are_cut_on_their_way_carry_the_same(
        batch in prop::collection::vec(any::<u8>(), 1..20_000),
        size in 1usize..3000,
        most in 21usize..1500,
    ) {
        let (to, network) = ids();
        let size = size.min(batch.len());
        let mut assembler = BatchAssembler::default();
        let sent = MessageBatch { to, network, number: 1, messages: &batch, size };
        for frame in sent.frames(1400) {
            for piece in split_frame(&frame, most) {
                prop_assert!(piece.len() <= most && destination(&piece) == Some(to));
                assembler.add(&piece);
            }
        }
        let expected: Vec<Vec<u8>> = batch.chunks(size).map(<[u8]>::to_vec).collect();
        prop_assert_eq!(messages(&assembler.drain_complete()), expected);
        prop_assert_eq!(split_frame(&[0; HEADER + 9], HEADER).count(), 0);
    }

    #[test]
    fn what_is_lost_takes_only_its_own_messages_along(
        batch in prop::collection::vec(any::<u8>(), 5_000..20_000), size in 200usize..2000,
        lost in prop::collection::vec(any::<bool>(), 100), swapped in any::<bool>(),
    ) {
        let (to, network) = ids();
        let mut all: Vec<Vec<u8>> =
            MessageBatch { to, network, number: 1, messages: &batch, size }.frames(1200).collect();
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
        let mut kept: Vec<Vec<u8>> = all
            .drain(..)
            .enumerate()
            .filter(|(at, _)| !is_lost(*at))
            .map(|(_, frame)| frame)
            .collect();
        if swapped && kept.len() > 1 {
            kept.swap(0, 1);
        }
        let (mut assembler, mut out) = (BatchAssembler::default(), vec![]);
        for frame in &kept {
            assembler.add(frame);
        }
        out.extend(assembler.drain_complete());
        // The next batch shows that the missing frames are lost.
        for frame in
            (MessageBatch { to, network, number: 2, messages: &[9; 10], size: 10 }).frames(1200)
        {
            assembler.add(&frame);
        }
        out.extend(assembler.drain_complete());
        let mut got = messages(&out);
        prop_assert_eq!(got.pop(), Some(vec![9; 10]));
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn whatever_comes_is_bounded(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..600),
    ) {
        let mut assembler = BatchAssembler::default();
        for frame in &frames {
            assembler.add(frame);
            prop_assert!(
                assembler.waiting.len() <= MAX_PARTIAL_BATCHES
                    && assembler.order.len() <= MAX_PARTIAL_BATCHES
            );
        }
        assembler.drain_complete();
    }
}
