//! Messages of Protobuf as bytes: which fields are on top, and where. What is not looked for stays
//! as it came, known or not (protobuf.dev, "Encoding").

use prost::encoding::{WireType, decode_varint, encode_key, encode_varint};

/// A field on top of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) number: u32,
    pub(super) value: Value<'a>,
    /// Its bytes, number and length included.
    pub(super) whole: &'a [u8],
}

/// What a field holds, as far as the encoding tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Varint(u64),
    /// Text, bytes, a message or several numbers.
    Bytes(&'a [u8]),
    /// A number of four or eight bytes.
    Fixed,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what came is no message of Protobuf")]
pub struct Malformed;

/// The fields in the order in which they stand.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

pub(super) fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = first(self.rest);
        self.rest = match &field {
            Some(field) => &self.rest[field.whole.len()..],
            None => &[],
        };
        Some(field.ok_or(Malformed))
    }
}

fn first(message: &[u8]) -> Option<Field<'_>> {
    let mut rest = message;
    let key = decode_varint(&mut rest).ok()?;
    let number = u32::try_from(key >> 3).ok().filter(|&number| {
        // Numbers have 29 bits.
        number > 0 && number < 1 << 29
    })?;
    let value = match key & 7 {
        0 => Value::Varint(decode_varint(&mut rest).ok()?),
        1 => {
            rest = rest.get(8..)?;
            Value::Fixed
        }
        2 => {
            let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            let (bytes, after) = rest.split_at_checked(length)?;
            rest = after;
            Value::Bytes(bytes)
        }
        5 => {
            rest = rest.get(4..)?;
            Value::Fixed
        }
        // Groups: nothing that Envoy ever had.
        _ => return None,
    };
    Some(Field {
        number,
        value,
        whole: &message[..message.len() - rest.len()],
    })
}

/// The field `number` of a message, as text. Of several the last one counts.
pub(super) fn text(message: &[u8], number: u32) -> Result<Option<&str>, Malformed> {
    let mut found = None;
    for bytes in all(message, number) {
        found = Some(str::from_utf8(bytes?).map_err(|_| Malformed)?);
    }
    Ok(found)
}

/// The field `number` of a message, as a message. Several are one, as if they were merged.
pub(super) fn message(message: &[u8], number: u32) -> Result<Option<Vec<u8>>, Malformed> {
    let mut found: Option<Vec<u8>> = None;
    for bytes in all(message, number) {
        found.get_or_insert_default().extend_from_slice(bytes?);
    }
    Ok(found)
}

/// All fields `number` of a message that hold bytes.
pub(super) fn all(message: &[u8], number: u32) -> impl Iterator<Item = Result<&[u8], Malformed>> {
    fields(message).filter_map(move |field| match field {
        Ok(Field {
            number: found,
            value: Value::Bytes(bytes),
            ..
        }) if found == number => Some(Ok(bytes)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })
}

/// The value of a map, by its key (fields 1 and 2 of an entry).
pub(super) fn entry<'a>(
    message: &'a [u8],
    map: u32,
    key: &str,
) -> Result<Option<&'a [u8]>, Malformed> {
    let mut found = None;
    for entry in all(message, map) {
        let entry = entry?;
        if text(entry, 1)?.unwrap_or_default() == key {
            found = Some(all(entry, 2).last().transpose()?.unwrap_or_default());
        }
    }
    Ok(found)
}

/// Writes a field that holds bytes.
pub(super) fn put(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// The message without the fields for which `gone` is true.
pub(super) fn without(
    message: &[u8],
    gone: impl Fn(&Field<'_>) -> bool,
) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::with_capacity(message.len());
    for field in fields(message) {
        let field = field?;
        if !gone(&field) {
            out.extend_from_slice(field.whole);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any message: fields of any number and kind.
    fn any_message() -> impl Strategy<Value = Vec<u8>> {
        let field = (1u32..1 << 29, 0..4, any::<u64>(), any::<Vec<u8>>());
        proptest::collection::vec(field, 0..12).prop_map(|fields| {
            let mut out = Vec::new();
            for (number, kind, value, bytes) in fields {
                match kind {
                    0 => {
                        encode_key(number, WireType::Varint, &mut out);
                        encode_varint(value, &mut out);
                    }
                    1 => {
                        encode_key(number, WireType::SixtyFourBit, &mut out);
                        out.extend_from_slice(&value.to_le_bytes());
                    }
                    2 => put(&mut out, number, &bytes),
                    _ => {
                        encode_key(number, WireType::ThirtyTwoBit, &mut out);
                        out.extend_from_slice(&value.to_le_bytes()[..4]);
                    }
                }
            }
            out
        })
    }

    proptest! {
        #[test]
        fn the_fields_of_a_message_are_the_message(message in any_message()) {
            let parts: Result<Vec<_>, _> = fields(&message).collect();
            let parts: Vec<u8> = parts.unwrap().iter().flat_map(|field| field.whole.to_vec()).collect();
            prop_assert_eq!(parts, message);
        }

        #[test]
        fn bytes_of_any_kind_are_read_to_their_end_or_refused(bytes in any::<Vec<u8>>()) {
            let mut length = 0;
            for field in fields(&bytes) {
                match field {
                    Ok(field) => length += field.whole.len(),
                    Err(Malformed) => return Ok(()),
                }
            }
            prop_assert_eq!(length, bytes.len());
        }

        #[test]
        fn what_is_put_in_is_found_and_what_is_taken_out_leaves_the_rest(
            message in any_message(), bytes in any::<Vec<u8>>()
        ) {
            // Beyond the numbers of `any_message` is none; one that it did not draw will do.
            let number = (1..).find(|number| all(&message, *number).next().is_none()).unwrap();
            let message = without(&message, |field| field.number == number).unwrap();
            let mut more = message.clone();
            put(&mut more, number, &bytes);
            prop_assert_eq!(super::message(&more, number), Ok(Some(bytes)));
            prop_assert_eq!(without(&more, |field| field.number == number), Ok(message));
        }
    }

    #[test]
    fn of_several_texts_the_last_counts_and_several_messages_are_one() {
        let mut out = Vec::new();
        put(&mut out, 1, b"one");
        put(&mut out, 2, b"other");
        put(&mut out, 1, b"two");
        assert_eq!(text(&out, 1), Ok(Some("two")));
        assert_eq!(message(&out, 1), Ok(Some(b"onetwo".to_vec())));
        assert_eq!(text(&out, 3), Ok(None));
    }

    #[test]
    fn a_message_that_ends_early_is_none() {
        let mut whole = Vec::new();
        put(&mut whole, 1, b"text");
        for end in 1..whole.len() {
            let read: Result<Vec<_>, _> = fields(&whole[..end]).collect();
            assert_eq!(read, Err(Malformed), "{end} bytes");
        }
        // A group, and field 0.
        for wrong in [&[0x0b, 0x0c][..], &[0x00, 0x00], &[0x0f]] {
            let read: Result<Vec<_>, _> = fields(wrong).collect();
            assert_eq!(read, Err(Malformed), "{wrong:?}");
        }
    }
}
