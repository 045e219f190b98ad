//! The batch codec.

use crate::Batch;
use crate::envelope::EnvelopeError;

/// Why a batch cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {}

/// Why a payload is no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The header.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

/// Encodes batches; keeps scratch memory and each sensor's last decimal exponent between them.
#[derive(Debug, Default)]
pub struct Encoder {}

impl Encoder {
    /// Appends nothing to, but replaces, `payload` by the encoded batch with its header.
    ///
    /// # Errors
    /// When the batch breaks a limit.
    pub fn encode(&mut self, batch: &Batch, payload: &mut Vec<u8>) -> Result<(), EncodeError> {
        let _ = (batch, payload);
        Ok(())
    }
}

/// Decodes one payload.
///
/// # Errors
/// When the payload is no batch.
pub fn decode(payload: &[u8]) -> Result<Batch, DecodeError> {
    let _ = payload;
    Err(DecodeError::Envelope(EnvelopeError::Truncated))
}
