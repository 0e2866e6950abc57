//! The status page: one HTML document without scripts, which reloads itself.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Counts, Job};

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"5\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>SOCI index builder</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #ddd; vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
td.image, td.remark { overflow-wrap: anywhere }
ul { display: flex; gap: 2rem; list-style: none; padding: 0; flex-wrap: wrap }
ul b { font-size: 1.6rem; display: block }
@media (max-width: 50rem) { body { margin: .5rem; font-size: 12px } th, td { padding: .2rem .25rem } ul { gap: 1rem } }
.dead { color: #b00020 } .done { color: #1b6e2d }
@media (prefers-color-scheme: dark) {
body { color: #ddd; background: #181818 } th, td { border-color: #444 } .dead { color: #ff8a80 } .done { color: #8fd19e }
}
</style></head><body><h1>SOCI index builder</h1>
";

/// Writes the page.
pub(super) fn render(counts: &Counts, jobs: &[Job]) -> String {
    let mut page = HEAD.to_owned();
    page.push_str("<ul>");
    for (state, count) in counts.by_state() {
        let _ = write!(
            page,
            "<li class=\"{state}\" id=\"{state}\"><b>{count}</b> {state}</li>"
        );
    }
    page.push_str(
        "</ul>\n<table><thead><tr><th class=\"number\">Job</th><th>State</th><th>Image</th>\
         <th class=\"number\">Age</th><th class=\"number\">Time</th><th class=\"number\">Bytes</th>\
         <th class=\"number\">Attempts</th><th>Remark</th></tr></thead><tbody>\n",
    );
    for job in jobs {
        row(&mut page, job);
    }
    page.push_str("</tbody></table>\n");
    if jobs.is_empty() {
        page.push_str("<p>No image was pushed yet.</p>\n");
    }
    page.push_str("</body></html>\n");
    page
}

fn row(page: &mut String, job: &Job) {
    let state = job.state.name();
    let outcome = job.outcome.as_ref();
    let made = outcome.and_then(|outcome| {
        let indexes = outcome.indexes.first().map(ToString::to_string);
        outcome.image.clone().or(indexes)
    });
    let remark = job.reason.clone().or(made).unwrap_or_default();
    let time = job
        .duration_ms()
        .map(|ms| format!("{:.1} s", ms as f64 / 1000.0));
    let _ = writeln!(
        page,
        "<tr class=\"{state}\"><td class=\"number\">{}</td><td>{state}</td><td class=\"image\">{}</td>\
         <td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td>\
         <td class=\"number\">{}</td><td class=\"remark\">{}</td></tr>",
        job.id,
        escaped(&job.push.tagged_name()),
        age(job.received_ms),
        time.unwrap_or_default(),
        outcome.map_or_else(String::new, |outcome| size(outcome.bytes)),
        job.attempts,
        escaped(&remark),
    );
}

/// The text as HTML shows it; what would end an element or an attribute does not.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            character => safe.push(character),
        }
    }
    safe
}

fn age(since_ms: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    let seconds = now.saturating_sub(since_ms / 1000);
    if seconds < 120 {
        format!("{seconds} s")
    } else if seconds < 7200 {
        format!("{} min", seconds / 60)
    } else if seconds < 172_800 {
        format!("{} h", seconds / 3600)
    } else {
        format!("{} d", seconds / 86_400)
    }
}

fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{JobState, Push};

    #[test]
    fn a_reason_from_outside_is_text_and_nothing_else() {
        let job = Job {
            id: 7,
            push: Push::new("registry.example", "app", Some("1"), None).unwrap(),
            state: JobState::Dead,
            attempts: 2,
            received_ms: 0,
            started_ms: Some(1000),
            finished_ms: Some(2500),
            reason: Some("<script>alert(\"x\")</script> & 'more'".to_owned()),
            outcome: None,
        };
        let page = render(&Counts::default(), &[job]);
        assert!(!page.contains("<script"), "{page}");
        let shown = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &#39;more&#39;";
        assert!(page.contains(shown), "{page}");
        assert!(page.contains("1.5 s") && page.contains("registry.example/app:1"));
    }
}
