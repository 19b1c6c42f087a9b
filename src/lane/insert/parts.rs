//! The parts of a batch: which rows, and what becomes of a part that did not go
//! through. Pure.

use std::collections::{HashSet, VecDeque};

use crate::checkpoint::{Part, Range, Rows};
use crate::clickhouse::native::{Block, Millis};
use crate::clickhouse::stored::{Origin, Place};
use crate::dead_letter::{DeadLetter, Reason, Unfit};
use crate::event::{Event, Source};
use crate::lane::encode::{Content, Encoded, Encoder, Piece};

/// More refused rows than this do not wait for the end of their batch: the record,
/// which names them, has to stay small.
const MOST_WAITING: usize = 256;

/// What a dead letter says when its refusal was before a restart.
const REFUSED: &str = "ClickHouse refuses the row";

/// A part on its way.
#[derive(Debug)]
pub struct Step {
    pub part: Part,
    /// A writer before this one may have sent it.
    pub recovered: bool,
    /// What ClickHouse says of a refused row.
    error: String,
}

impl Step {
    pub fn all(parts: Vec<Part>, recovered: bool) -> VecDeque<Self> {
        let step = |part| Self {
            part,
            recovered,
            error: REFUSED.to_owned(),
        };
        parts.into_iter().map(step).collect()
    }

    fn new(part: Part, error: String) -> Self {
        Self {
            part,
            recovered: false,
            error,
        }
    }

    fn has(&self, source: &Source) -> bool {
        (self.part.first..=self.part.last).contains(&source.place)
    }

    /// The batch's events that the part is made from.
    pub fn events<'a>(&self, piece: &'a Piece) -> Vec<&'a Event> {
        let events = piece.events.iter();
        events.filter(|event| self.has(&event.source)).collect()
    }

    /// The rows of the part.
    pub fn select<'a>(&self, piece: &'a Piece) -> Selected<'a> {
        match self.part.rows {
            Rows::Events => Selected::Events(self.events(piece)),
            Rows::Refused => {
                let letter = |event: &Event| {
                    let unfit = Unfit::new(Reason::Refused, &self.error);
                    DeadLetter::new(event.source.clone(), unfit)
                };
                Selected::Letters(self.events(piece).into_iter().map(letter).collect())
            }
            Rows::DeadLetters => {
                let letters = piece.dead_letters.iter();
                let letters = letters.filter(|letter| self.has(&letter.source));
                Selected::Letters(letters.cloned().collect())
            }
        }
    }
}

/// The batch as it is inserted first. Dead letters go before events: their range
/// must not be committed without them.
pub fn whole(piece: &Piece) -> Vec<Part> {
    let letters = piece.dead_letters.iter().map(|letter| letter.source.place);
    let events = piece.events.iter().map(|event| event.source.place);
    let parts = [
        part_of(Rows::DeadLetters, &letters.collect::<Vec<_>>(), 0),
        part_of(Rows::Events, &events.collect::<Vec<_>>(), 0),
    ];
    parts.into_iter().flatten().collect()
}

/// How a batch that was not recorded before is recorded. Empty: as a whole.
/// `may_be_there` says that ClickHouse may hold something of it already.
pub fn first_parts(batch: &Encoded, may_be_there: bool) -> Vec<Part> {
    match &batch.content {
        Content::Messages(_) => everything(&batch.summary.range),
        Content::Rows(piece) if may_be_there => what_is_missing(piece),
        Content::Rows(_) => Vec::new(),
    }
}

/// All rows of a range. They are looked for before they are sent: only such parts have
/// tokens of their own.
pub fn everything(range: &Range) -> Vec<Part> {
    let part = |rows| Part {
        rows,
        first: Place(range.first, 0),
        last: Place(range.last, u32::MAX),
        attempt: 1,
    };
    vec![part(Rows::DeadLetters), part(Rows::Events)]
}

/// As [`whole`], for a range of which ClickHouse may hold something already.
fn what_is_missing(piece: &Piece) -> Vec<Part> {
    let mut parts = whole(piece);
    for part in &mut parts {
        part.attempt = 1;
    }
    parts
}

fn part_of(rows: Rows, places: &[Place], attempt: u32) -> Option<Part> {
    Some(Part {
        rows,
        first: *places.first()?,
        last: *places.last()?,
        attempt,
    })
}

/// The parts of which something comes before a place, and what comes from there on.
pub fn divide(parts: &[Part], next: Option<Place>) -> (Vec<Part>, Vec<Part>) {
    let Some(next) = next else {
        return (parts.to_vec(), Vec::new());
    };
    let before = parts.iter().filter(|part| part.first < next);
    let rest = parts.iter().filter(|part| part.last >= next);
    let from_next = |part: &Part| Part {
        first: part.first.max(next),
        ..*part
    };
    (before.copied().collect(), rest.map(from_next).collect())
}

/// A part between the first and the last of its rows that a piece has, under a token of
/// its own; `None` where the piece has none.
pub fn narrowed(part: &Part, piece: &Piece) -> Option<Part> {
    let of_part = |place: &Place| (part.first..=part.last).contains(place);
    let places: Vec<Place> = match part.rows {
        Rows::DeadLetters => {
            let letters = piece.dead_letters.iter().map(|letter| letter.source.place);
            letters.filter(of_part).collect()
        }
        Rows::Events | Rows::Refused => {
            let events = piece.events.iter().map(|event| event.source.place);
            events.filter(of_part).collect()
        }
    };
    part_of(part.rows, &places, part.attempt.max(1))
}

/// The first step goes once more, with what is missing, under another token.
pub fn again(steps: &mut VecDeque<Step>) {
    if let Some(step) = steps.pop_front() {
        let part = Part {
            attempt: step.part.attempt + 1,
            ..step.part
        };
        steps.push_front(Step::new(part, step.error));
    }
}

/// As [`again`], for every step: none of their tokens is known any more.
pub fn all_again(steps: &mut VecDeque<Step>) {
    for _ in 0..steps.len() {
        again(steps);
        steps.rotate_left(1);
    }
}

/// The first step, which ClickHouse refused, becomes its halves, or a dead letter
/// when it is one row. They are counted before they are sent: some of them may be
/// stored after all.
pub fn split(steps: &mut VecDeque<Step>, piece: &Piece, error: String) {
    let Some(refused) = steps.pop_front() else {
        return;
    };
    let attempt = refused.part.attempt + 1;
    let places = refused.select(piece).places();
    if let [place] = places.as_slice() {
        let letter = part_of(Rows::Refused, &places, 1);
        add_refused(steps, piece, *place, letter, error);
        return;
    }
    let (low, high) = places.split_at(places.len() / 2);
    for half in [high, low] {
        if let Some(part) = part_of(Rows::Events, half, attempt) {
            steps.push_front(Step::new(part, String::new()));
        }
    }
}

/// Refused rows wait until the end, so that neighbours go as one insert.
fn add_refused(
    steps: &mut VecDeque<Step>,
    piece: &Piece,
    place: Place,
    letter: Option<Part>,
    error: String,
) {
    let Some(letter) = letter else {
        return;
    };
    let mut before = piece.events.iter().map(|event| event.source.place).rev();
    let neighbour = before.find(|other| *other < place);
    if let Some(last) = steps.back_mut()
        && last.part.rows == Rows::Refused
        && !last.recovered
        && Some(last.part.last) == neighbour
        && last.error == error
    {
        last.part.last = place;
        return;
    }
    let waiting = steps.iter().filter(|step| step.part.rows == Rows::Refused);
    if waiting.count() < MOST_WAITING {
        steps.push_back(Step::new(letter, error));
    } else {
        steps.push_front(Step::new(letter, error));
    }
}

/// The rows of a part.
pub enum Selected<'a> {
    Events(Vec<&'a Event>),
    Letters(Vec<DeadLetter>),
}

impl Selected<'_> {
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Events(events) => events.len(),
            Self::Letters(letters) => letters.len(),
        }
    }

    pub fn places(&self) -> Vec<Place> {
        match self {
            Self::Events(events) => events.iter().map(|event| event.source.place).collect(),
            Self::Letters(letters) => letters.iter().map(|letter| letter.source.place).collect(),
        }
    }

    /// Leaves the rows that are not in `held`, but for those from before `oldest`:
    /// ClickHouse may have dropped these because of their age.
    pub fn keep_missing(&mut self, held: &HashSet<Origin>, oldest: Millis) {
        let missing = |source: &Source| !held.contains(&source.origin());
        match self {
            Self::Events(events) => {
                events.retain(|event| missing(&event.source) && event.row.time > oldest)
            }
            Self::Letters(letters) => letters
                .retain(|letter| missing(&letter.source) && letter.source.received_at > oldest),
        }
    }

    /// The block that inserts them.
    pub fn block(&self, piece: &Piece, encoder: &Encoder) -> Block {
        match self {
            Self::Events(events) if events.len() == piece.events.len() => piece.block.clone(),
            Self::Events(events) => encoder.block(events),
            Self::Letters(letters) => encoder.block_of_letters(letters),
        }
    }
}
