//! Cutting the stream into batches. Pure: time is an argument.
//!
//! A batch is a contiguous run of stream sequences. Where it is cut does not matter,
//! except for a batch that may have been inserted before: that one must be cut exactly
//! where it was, or its token would stand for other rows.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::Subject;
use tokio::time::Instant;

use crate::checkpoint::Range;
use crate::config::Analytics;
use crate::nats::Message;

/// What one insert carries, or several where a message is large.
#[derive(Debug)]
pub struct Batch {
    pub range: Range,
    /// Those that were in no [chunk](Cut::Chunk).
    pub messages: Vec<Message>,
    /// What completed it.
    pub flush: Flush,
    /// Rows that the messages become.
    pub rows: usize,
    /// Bytes of the messages, payloads and headers.
    pub bytes: usize,
    /// The same, with subject and headers of a batch message for each of its rows.
    row_bytes: usize,
    /// One of its messages is too large to be decoded as a whole.
    pub in_pieces: bool,
    /// Where the last acknowledgement goes; `None` when there is no message to
    /// acknowledge.
    pub ack: Option<Subject>,
}

impl Batch {
    fn empty(range: Range) -> Self {
        Self {
            range,
            messages: Vec::new(),
            flush: Flush::End,
            rows: 0,
            bytes: 0,
            row_bytes: 0,
            in_pieces: false,
            ack: None,
        }
    }

    fn add(&mut self, mut message: Message, rows: usize) {
        if let Some(reply) = message.reply.take() {
            self.ack = Some(reply);
        }
        self.bytes += message.size();
        self.row_bytes += message.size_as_rows(rows);
        self.in_pieces |= is_large(&message, rows);
        self.rows += rows;
        self.messages.push(message);
    }
}

/// What the stream is cut into. A batch comes as any number of chunks and then its end.
#[derive(Debug)]
pub enum Cut {
    /// Messages of the open batch, which can be decoded before its end comes.
    Chunk(Vec<Message>),
    /// A complete batch, with the messages that are left.
    End(Batch),
}

/// What completes a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// It has as many rows as a batch may have.
    Rows,
    /// Or as many bytes.
    Bytes,
    /// Its first message waited long enough.
    Age,
    /// The checkpoint says that it was cut there before.
    Recorded,
    /// Reading ended.
    End,
}

impl Flush {
    pub const ALL: [Self; 5] = [
        Self::Rows,
        Self::Bytes,
        Self::Age,
        Self::Recorded,
        Self::End,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Bytes => "bytes",
            Self::Age => "age",
            Self::Recorded => "recorded",
            Self::End => "end",
        }
    }
}

/// When a batch is full.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub rows: usize,
    pub bytes: usize,
    /// How long the batch's first message may wait here.
    pub interval: Duration,
}

impl Limits {
    pub fn of(analytics: &Analytics) -> Self {
        Self {
            rows: analytics.batch_size.get(),
            bytes: usize::try_from(analytics.batch_max_bytes.as_u64()).unwrap_or(usize::MAX),
            interval: analytics.flush_interval,
        }
    }
}

/// Rows, and bytes of messages, that are decoded ahead at a time: as many as the
/// processor's cache holds, so that they are still in it from when they arrived.
const CHUNK: (usize, usize) = (1_000, 1024 * 1024);

/// Chunks of a full batch, where that makes them smaller.
const CHUNKS: usize = 4;

/// Rows that are held decoded at a time, of a message that has more by itself, and
/// their bytes, with subject and headers counted for each row. A row takes half a
/// kilobyte in the daemon, however small its event, so a piece is some 30 MB at most.
/// More rows would hardly make an insert cheaper: this is the default of `batch_size`.
pub const PIECE: (usize, usize) = (50_000, 16 * 1024 * 1024);

/// Whether a message is stored in pieces.
fn is_large(message: &Message, rows: usize) -> bool {
    rows > PIECE.0 || (rows > 1 && message.size_as_rows(rows) > PIECE.1)
}

/// Takes messages in stream order and gives what they are cut into, in stream order.
#[derive(Debug)]
pub struct Batcher {
    limits: Limits,
    /// Ranges that were recorded before a restart, in order: cut again as they were.
    recorded: VecDeque<Range>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    batch: Batch,
    deadline: Instant,
    /// Rows and bytes of its chunks so far.
    in_chunks: (usize, usize),
}

impl Open {
    fn new(range: Range, deadline: Instant) -> Self {
        Self {
            batch: Batch::empty(range),
            deadline,
            in_chunks: (0, 0),
        }
    }

    /// Why the batch has to end with the message that was added last.
    fn is_complete(&self, limits: Limits, now: Instant) -> Option<Flush> {
        let batch = &self.batch;
        if batch.rows >= limits.rows || batch.in_pieces {
            Some(Flush::Rows)
        } else if batch.row_bytes >= limits.bytes {
            Some(Flush::Bytes)
        } else {
            (now >= self.deadline).then_some(Flush::Age)
        }
    }

    /// The messages that were in no chunk yet, once there are enough of them.
    fn chunk(&mut self, limits: Limits) -> Option<Vec<Message>> {
        let batch = &mut self.batch;
        let (rows, bytes) = self.in_chunks;
        let enough = CHUNK.0.min(limits.rows / CHUNKS).max(1);
        if batch.rows - rows < enough && batch.bytes - bytes < CHUNK.1 {
            return None;
        }
        self.in_chunks = (batch.rows, batch.bytes);
        Some(std::mem::take(&mut batch.messages))
    }
}

impl Batcher {
    pub fn new(limits: Limits, recorded: impl IntoIterator<Item = Range>) -> Self {
        Self {
            limits,
            recorded: recorded.into_iter().collect(),
            open: None,
        }
    }

    /// They apply from now on; the open batch keeps the time at which it is due.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Adds a message, which becomes `rows` rows; returns what this cuts, mostly nothing. A
    /// batch has more rows or bytes than the limit only where a single message has.
    #[must_use = "messages that are dropped are lost"]
    pub fn push(&mut self, message: Message, rows: usize, now: Instant) -> Vec<Cut> {
        let mut cuts = Vec::new();
        while let Some(range) = self.recorded.front() {
            if message.sequence <= range.last {
                let is_last = message.sequence == range.last;
                self.open_recorded(now).batch.add(message, rows);
                if is_last {
                    cuts.extend(self.close_recorded());
                }
                return cuts;
            }
            // The rest of this range is no longer in the stream.
            cuts.extend(self.close_recorded());
        }

        if let Some(flush) = self.has_no_room_for(&message, rows) {
            cuts.extend(self.flush(flush));
        }
        let open = self.open.get_or_insert_with(|| {
            Open::new(Range::starting_at(&message), now + self.limits.interval)
        });
        open.batch.range.extend_to(&message);
        open.batch.add(message, rows);
        let cut = match open.is_complete(self.limits, now) {
            Some(flush) => self.flush(flush),
            None => open.chunk(self.limits).map(Cut::Chunk),
        };
        cuts.extend(cut);
        cuts
    }

    /// Why the open batch has to end before a message: together they would be more than
    /// a batch may have, or the message is to be stored in pieces.
    fn has_no_room_for(&self, message: &Message, rows: usize) -> Option<Flush> {
        let batch = &self.open.as_ref()?.batch;
        if batch.rows + rows > self.limits.rows || is_large(message, rows) {
            return Some(Flush::Rows);
        }
        let bytes = batch.row_bytes + message.size_as_rows(rows);
        (bytes > self.limits.bytes).then_some(Flush::Bytes)
    }

    /// Whether no batch is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_none()
    }

    /// When the open batch must be flushed. `None` while there is none, and while
    /// a recorded range is being read again: only its end may end it.
    pub fn deadline(&self) -> Option<Instant> {
        self.open
            .as_ref()
            .filter(|_| self.recorded.is_empty())
            .map(|open| open.deadline)
    }

    /// Completes the open batch, full or not; a recorded range stays open.
    #[must_use = "messages that are dropped are lost"]
    pub fn flush(&mut self, flush: Flush) -> Option<Cut> {
        if !self.recorded.is_empty() {
            return None;
        }
        let Open { mut batch, .. } = self.open.take()?;
        batch.flush = flush;
        Some(Cut::End(batch))
    }

    /// Whether every recorded range has been cut again.
    pub fn is_recovered(&self) -> bool {
        self.recorded.is_empty()
    }

    /// Completes every recorded range: nothing that is in the stream follows,
    /// so what is missing from them is gone.
    #[must_use = "messages that are dropped are lost"]
    pub fn end_of_stream(&mut self) -> Vec<Cut> {
        std::iter::from_fn(|| self.close_recorded()).collect()
    }

    fn open_recorded(&mut self, now: Instant) -> &mut Open {
        let recorded = &self.recorded;
        self.open
            .get_or_insert_with(|| Open::new(recorded[0].clone(), now))
    }

    /// A recorded range has no chunks: a message that follows may be too large to be
    /// decoded as a whole.
    fn close_recorded(&mut self) -> Option<Cut> {
        let range = self.recorded.pop_front()?;
        let open = self.open.take().map(|open| open.batch);
        let mut batch = open.unwrap_or_else(|| Batch::empty(range));
        batch.flush = Flush::Recorded;
        Some(Cut::End(batch))
    }
}

#[cfg(test)]
mod tests;
