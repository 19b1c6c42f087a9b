//! Storing a batch whose rows are too many to be held at once: piece by piece, each
//! decoded when its turn comes.
//!
//! The cuts follow from the messages alone, and a part of a piece is named by its own
//! first and last row: the same pieces have the same tokens after a restart. The record
//! has what is left: the parts of the piece that is being stored, as they are sent, and
//! the rest after them.

use super::parts::{Step, divide, everything, narrowed};
use super::{Inserter, Storing};
use crate::clickhouse::stored::Place;
use crate::lane::error::Lost;
use crate::lane::metrics::Stage;
use crate::nats::Message;

impl Inserter {
    /// Returns once ClickHouse has every row of the messages.
    pub(super) async fn store_in_pieces(
        &self,
        storing: &mut Storing,
        messages: &[Message],
        recovered: bool,
    ) -> Result<(), Lost> {
        let mut left = storing.in_flight.parts.clone();
        if left.is_empty() {
            left = everything(&storing.in_flight.range);
        }
        let mut next = Some(Place(storing.in_flight.range.first, 0));
        while let Some(from) = next {
            // What is stored already is counted with the rest.
            let (piece, after) = tokio::task::block_in_place(|| {
                let _stage = self.store.progress.metrics.stage(Stage::Encode);
                self.encoder.piece(messages, from)
            });
            let (parts, rest) = divide(&left, after);
            let parts = parts.iter().filter_map(|part| narrowed(part, &piece));
            let steps = Step::all(parts.collect(), recovered);
            if !steps.is_empty() {
                self.record(&mut storing.in_flight, &steps, &rest).await?;
            }
            self.store_piece(storing, &piece, steps, &rest).await?;
            (left, next) = (rest, after);
        }
        // Also where nothing was left to be sent.
        storing.history.repeated |= recovered;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::checkpoint::{Part, Range, Rows};
    use crate::config::Subjects;
    use crate::kind::analytics::Analytics;
    use crate::lane::encode::{Encoder, Piece};
    use crate::nats::Headers;

    /// Of dead letters, but for the events with the indexes 1 and 2.
    fn piece() -> Piece {
        let (letter, event) = (b"\x0a\x00".as_slice(), b"\x0a\x05\x0a\x03\x0a\x01a");
        let payload = [letter, event, event, letter, letter].concat();
        let message = Message {
            sequence: 7,
            stored_at: 1,
            subject: "fechatter.analytics.batch".into(),
            headers: Headers::default(),
            payload: Bytes::from(payload),
            reply: None,
        };
        let kind = std::sync::Arc::new(Analytics::new(&Subjects::default()));
        let (piece, next) = Encoder::new(kind, "S@1".to_owned()).piece(&[message], Place(7, 0));
        assert_eq!(next, None);
        piece
    }

    fn part(rows: Rows, first: u32, last: u32, attempt: u32) -> Part {
        Part {
            rows,
            first: Place(7, first),
            last: Place(7, last),
            attempt,
        }
    }

    #[test]
    fn a_part_of_a_piece_is_named_by_its_own_first_and_last_row() {
        let range = Range {
            first: 5,
            last: 9,
            first_stored_at: 0,
            last_stored_at: 0,
        };
        let parts = everything(&range);
        let parts: Vec<_> = parts.iter().map(|part| narrowed(part, &piece())).collect();
        // An event that is refused is a dead letter, too: the two must not share a token.
        let letters = part(Rows::DeadLetters, 0, 4, 1);
        let events = part(Rows::Events, 1, 2, 1);
        assert_eq!(parts, [Some(letters), Some(events)]);
        // As the record has it after a restart.
        assert_eq!(narrowed(&events, &piece()), Some(events));
        assert_eq!(narrowed(&part(Rows::Events, 3, 9, 1), &piece()), None);
        // The token of the first attempt is that of the whole range.
        let of_older_build = part(Rows::Events, 0, 9, 0);
        assert_eq!(narrowed(&of_older_build, &piece()), Some(events));
    }

    proptest! {
        #[test]
        fn every_row_of_a_part_comes_before_the_next_piece_or_is_left(
            parts in proptest::collection::vec((0u32..20, 0u32..20, 0u32..3), 0..4),
            next in proptest::option::of(0u32..20),
        ) {
            let parts: Vec<_> = parts.into_iter()
                .map(|(one, other, attempt)| part(Rows::Events, one.min(other), one.max(other), attempt))
                .collect();
            let next = next.map(|index| Place(7, index));
            let (before, rest) = divide(&parts, next);
            let count = |parts: &[Part], place| {
                parts.iter().filter(|part| (part.first..=part.last).contains(&place)).count()
            };
            for place in (0..20).map(|index| Place(7, index)) {
                let comes_before = next.is_none_or(|next| place < next);
                let holding = if comes_before { &before } else { &rest };
                prop_assert_eq!(count(holding, place), count(&parts, place));
                prop_assert!(!comes_before || count(&rest, place) == 0);
            }
        }
    }
}
