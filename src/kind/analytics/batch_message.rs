//! The events of a batch message, one after another.
//!
//! A message of 8 MiB may hold four million of them. A list, as prost makes it, would
//! take 32 bytes for each.

use bytes::Bytes;
use prost::DecodeError;
use prost::encoding::{
    DecodeContext, WireType, check_wire_type, decode_key, decode_varint, skip_field,
};

/// The field `events` of `BatchRecordEventsRequest`.
const EVENTS: u32 = 1;

/// How many events there are.
///
/// # Errors
/// Where prost's own decoding has one: at the first thing that cannot be read, whatever
/// comes before it.
pub fn count(payload: &[u8]) -> Result<usize, DecodeError> {
    let mut rest = payload;
    let mut count = 0;
    while next(&mut rest)?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// The bytes of each event. They end where the message cannot be read, which [`count`]
/// finds out beforehand.
pub fn events(payload: &Bytes) -> impl Iterator<Item = Bytes> {
    let mut rest = payload.as_ref();
    std::iter::from_fn(move || {
        let event = next(&mut rest).ok()??;
        Some(payload.slice_ref(event))
    })
}

/// The next event, `None` at the end of the message.
fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, DecodeError> {
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(rest)?;
        if tag != EVENTS {
            skip_field(wire_type, tag, rest, DecodeContext::default())?;
            continue;
        }
        check_wire_type(WireType::LengthDelimited, wire_type)?;
        let mut event = *rest;
        let length = decode_varint(&mut event)?;
        // This also checks that all of it is there.
        skip_field(wire_type, tag, rest, DecodeContext::default())?;
        return Ok(Some(&event[..length as usize]));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;
    use prost::Message as _;
    use prost::encoding::{encode_key, encode_varint};

    use super::*;
    use crate::kind::analytics::BatchMessage;

    /// A field of a message: mostly an event, otherwise something that may be skipped, or
    /// not.
    fn field() -> impl Strategy<Value = Vec<u8>> {
        let event = |bytes: Vec<u8>| {
            let events = vec![bytes.into()];
            BatchMessage { events }.encode_to_vec()
        };
        let key = (0u32..4, 0i32..6, any::<u64>(), 0usize..12);
        let other = key.prop_map(|(tag, wire_type, value, more)| {
            let mut field = Vec::new();
            match WireType::try_from(wire_type as u64) {
                Ok(wire_type) => encode_key(tag.max(1), wire_type, &mut field),
                Err(_) => field.put_u8((tag as u8) << 3 | wire_type as u8),
            }
            encode_varint(value % 16, &mut field);
            field.resize(field.len() + more, 0x0a);
            field
        });
        prop_oneof![
            6 => proptest::collection::vec(any::<u8>(), 0..12).prop_map(event),
            2 => other,
            1 => proptest::collection::vec(any::<u8>(), 0..4),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn what_can_be_read_and_what_it_holds_is_what_prost_says(
            fields in proptest::collection::vec(field(), 0..12),
            cut_off in 0usize..4,
        ) {
            let mut payload = fields.concat();
            payload.truncate(payload.len().saturating_sub(cut_off));
            let payload = Bytes::from(payload);
            match BatchMessage::decode(payload.clone()) {
                Ok(batch) => {
                    prop_assert_eq!(count(&payload).ok(), Some(batch.events.len()));
                    prop_assert_eq!(events(&payload).collect::<Vec<_>>(), batch.events);
                }
                Err(_) => prop_assert!(count(&payload).is_err()),
            }
        }
    }
}
