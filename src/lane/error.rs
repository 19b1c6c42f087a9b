//! What ends a run of the pipeline.

use super::consume::ConsumeError;
use super::recover::RecoverError;
use crate::checkpoint::CheckpointError;
use crate::nats::StreamError;

#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Recover(#[from] RecoverError),
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
        matches!(
            self.checkpoint(),
            Some(CheckpointError::Forgetful | CheckpointError::Corrupt { .. })
        )
    }

    pub(super) fn is_fenced(&self) -> bool {
        matches!(self.checkpoint(), Some(CheckpointError::Fenced { .. }))
    }

    fn checkpoint(&self) -> Option<&CheckpointError> {
        match self {
            Self::Checkpoint(error) | Self::Recover(RecoverError::Checkpoint(error)) => Some(error),
            _ => None,
        }
    }
}
