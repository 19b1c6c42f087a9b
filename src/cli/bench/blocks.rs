//! The blocks of a whole stream, kept on disk: there may be more than fit into memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use indicatif::ProgressBar;
use tokio::time::Instant;

use super::nats_alone;
use super::scratch::Scratch;
use crate::checkpoint::{InFlight, Incarnation};
use crate::clickhouse::native::Block;
use crate::lane::batch::{Batch, Batcher, Cut, Flush, Limits};
use crate::lane::encode::{Content, Encoded, Encoder, Run};
use crate::lane::insert::whole;
use crate::nats::Message;
use crate::nats::StreamId;

/// What the pipeline sends, in order.
pub struct Blocks {
    file: Arc<File>,
    places: Vec<Location>,
}

#[derive(Clone)]
struct Location {
    token: String,
    rows: usize,
    offset: u64,
    length: usize,
}

/// Longer than any run: batches are cut by rows and bytes alone.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Turns messages into blocks as the pipeline does at full speed. The one place in this
/// command that knows what a batch is.
struct Cutter {
    stream: StreamId,
    encoder: Encoder,
    batcher: Batcher,
    /// The open batch, as far as it is decoded.
    runs: Vec<Run>,
    /// No batch gets too old.
    now: Instant,
}

impl Cutter {
    fn new(scratch: &Scratch, stream: StreamId) -> Self {
        let limits = Limits {
            interval: DAY,
            ..Limits::of(&scratch.config.features.analytics)
        };
        Self {
            encoder: Encoder::new(Arc::clone(&scratch.lane.kind), stream.to_string()),
            batcher: Batcher::new(limits, []),
            runs: Vec::new(),
            stream,
            now: Instant::now(),
        }
    }

    /// The tokens and blocks of the batches that a message completes.
    fn push(&mut self, message: Message) -> Result<Vec<(String, Block)>> {
        // Each sample event is a message of its own.
        let cuts = self.batcher.push(message, 1, self.now);
        cuts.into_iter()
            .filter_map(|cut| self.block_of(cut).transpose())
            .collect()
    }

    /// The last one, which is not full.
    fn finish(mut self) -> Result<Option<(String, Block)>> {
        match self.batcher.flush(Flush::End) {
            Some(cut) => self.block_of(cut),
            None => Ok(None),
        }
    }

    fn block_of(&mut self, cut: Cut) -> Result<Option<(String, Block)>> {
        match cut {
            Cut::Chunk(messages) => {
                self.runs.push(self.encoder.decode(messages));
                Ok(None)
            }
            Cut::End(batch) => {
                let runs = std::mem::take(&mut self.runs);
                self.block(runs, batch).map(Some)
            }
        }
    }

    fn block(&self, runs: Vec<Run>, batch: Batch) -> Result<(String, Block)> {
        let Encoded { summary, content } = self.encoder.encode(runs, batch);
        let Content::Rows(piece) = content else {
            bail!("sample events came as one large message, which is a bug in this program");
        };
        let [part] = whole(&piece)[..] else {
            bail!("sample events became dead letters, which is a bug in this program");
        };
        let in_flight = InFlight {
            incarnation: Incarnation::default(),
            range: summary.range,
            generation: 0,
            parts: Vec::new(),
        };
        Ok((in_flight.token(&self.stream, &part), piece.block))
    }
}

impl Blocks {
    /// Reads the stream up to the sequence `last`.
    pub async fn encode(scratch: &Scratch, last: u64, progress: &ProgressBar) -> Result<Self> {
        let stream = StreamId::of(&scratch.stream().await?);
        let mut cutter = Cutter::new(scratch, stream);
        let mut writer = Writer::create(scratch)?;
        nats_alone::read(scratch, last, progress, |message| {
            for (token, block) in cutter.push(message)? {
                writer.add(token, &block)?;
            }
            Ok(())
        })
        .await?;
        if let Some((token, block)) = cutter.finish()? {
            writer.add(token, &block)?;
        }
        writer.finish()
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Reads a block back; also returns its token.
    pub async fn read(&self, index: usize) -> Result<(String, Block)> {
        let place = self.places[index].clone();
        let file = Arc::clone(&self.file);
        tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; place.length];
            file.read_exact_at(&mut bytes, place.offset)?;
            let block = Block {
                bytes: Bytes::from(bytes),
                rows: place.rows,
            };
            Ok((place.token, block))
        })
        .await?
    }
}

struct Writer {
    out: BufWriter<File>,
    offset: u64,
    places: Vec<Location>,
}

impl Writer {
    fn create(scratch: &Scratch) -> Result<Self> {
        let path = scratch.folder().join("blocks");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("cannot create `{}`", path.display()))?;
        // Its bytes are freed when it is closed, and also when a run is killed.
        std::fs::remove_file(&path)?;
        Ok(Self {
            out: BufWriter::new(file),
            offset: 0,
            places: Vec::new(),
        })
    }

    fn add(&mut self, token: String, block: &Block) -> Result<()> {
        let written = self.out.write_all(&block.bytes);
        written.context("cannot keep the encoded blocks (server.base_dir)")?;
        self.places.push(Location {
            token,
            rows: block.rows,
            offset: self.offset,
            length: block.bytes.len(),
        });
        self.offset += block.bytes.len() as u64;
        Ok(())
    }

    fn finish(self) -> Result<Blocks> {
        Ok(Blocks {
            file: Arc::new(self.out.into_inner().map_err(|error| error.into_error())?),
            places: self.places,
        })
    }
}
