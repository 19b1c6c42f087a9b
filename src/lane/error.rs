//! What ends a run of the pipeline.

use super::consume::ConsumeError;
use super::sole_writer::NotAlone;
use crate::checkpoint::CheckpointError;
use crate::nats::{StoredMessageError, StreamError};

/// Why this instance must not insert any more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The checkpoint cannot be written, or is another instance's.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Another lane inserts, too.
    #[error(transparent)]
    NotAlone(#[from] NotAlone),
}

#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error(transparent)]
    Message(#[from] StoredMessageError),
    #[error(transparent)]
    Consume(#[from] ConsumeError),
    #[error("acknowledging failed: {0}")]
    Ack(#[from] async_nats::PublishError),
    #[error("a task of the pipeline failed, which is a fault of this program")]
    TaskFailed,
}

impl PipelineError {
    /// Whether running again cannot help, or must not be tried.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Lost(Lost::NotAlone(_)))
            || matches!(
                self.checkpoint(),
                Some(CheckpointError::Forgetful | CheckpointError::Corrupt { .. })
            )
    }

    pub(super) fn is_fenced(&self) -> bool {
        matches!(self.checkpoint(), Some(CheckpointError::Fenced { .. }))
    }

    fn checkpoint(&self) -> Option<&CheckpointError> {
        match self {
            Self::Checkpoint(error) | Self::Lost(Lost::Checkpoint(error)) => Some(error),
            _ => None,
        }
    }
}
