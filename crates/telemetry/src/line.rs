//! One line of the log: a JSON object whose values are all strings.

use jiff::Zoned;
use jiff::tz::Offset;
use serde::Serializer as _;
use serde::ser::SerializeMap as _;

use crate::fields::Fields;
use crate::level::Level;

/// Writes `{"level":…,"msg":…,"time":…,field:…}` and a line end. A field that takes one of the
/// three names is renamed to `fields.NAME`, as v0.15's logger does.
pub(crate) fn line(level: Level, fields: &Fields, now: &Zoned) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let mut json = serde_json::Serializer::new(&mut out);
    // Strings into memory: this cannot fail, and a log line is not worth a panic if it did.
    let _ = (|| {
        let mut map = json.serialize_map(None)?;
        map.serialize_entry("level", level.word())?;
        map.serialize_entry("msg", &fields.message)?;
        map.serialize_entry("time", &timestamp(now))?;
        for (name, value) in &fields.values {
            match *name {
                "level" | "msg" | "time" => {
                    map.serialize_entry(&format!("fields.{name}"), value)?
                }
                name => map.serialize_entry(name, value)?,
            }
        }
        map.end()
    })();
    out.push(b'\n');
    out
}

/// RFC 3339 with nine fractional digits and the local offset, `Z` for UTC.
fn timestamp(now: &Zoned) -> String {
    let format = if now.offset() == Offset::UTC {
        "%Y-%m-%dT%H:%M:%S.%9fZ"
    } else {
        "%Y-%m-%dT%H:%M:%S.%9f%:z"
    };
    now.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed offset in minutes: the machine may have no time zone database.
    fn at(minutes: i32) -> Zoned {
        let offset = Offset::from_seconds(minutes * 60).unwrap();
        let instant: jiff::Timestamp = "2026-11-21T05:06:07.00000801Z".parse().unwrap();
        instant.to_zoned(jiff::tz::TimeZone::fixed(offset))
    }

    #[test]
    fn the_time_has_nine_digits_and_the_local_offset() {
        assert_eq!(timestamp(&at(0)), "2026-11-21T05:06:07.000008010Z");
        assert_eq!(timestamp(&at(330)), "2026-11-21T10:36:07.000008010+05:30");
        assert_eq!(timestamp(&at(-300)), "2026-11-21T00:06:07.000008010-05:00");
    }

    #[test]
    fn a_field_never_replaces_level_msg_or_time() {
        let mut fields = Fields {
            message: "m\n\"x\"".to_owned(),
            ..Fields::default()
        };
        fields.values.insert("level", "high".to_owned());
        fields
            .values
            .insert("remote-snapshot-prepared", "true".to_owned());
        let bytes = line(Level::Warn, &fields, &at(0));
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "{\"level\":\"warning\",\"msg\":\"m\\n\\\"x\\\"\",\"time\":\"2026-11-21T05:06:07.000008010Z\",\
             \"fields.level\":\"high\",\"remote-snapshot-prepared\":\"true\"}\n"
        );
    }
}
