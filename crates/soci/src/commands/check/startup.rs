//! How much of an image its command needs before its own code runs: the program, its interpreter,
//! the libraries that they are linked with, and what the image lists for prefetching.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Serialize;
use soci_discovery::Found;
use soci_ztoc::prefetch::Prefetch;

use super::elf;
use crate::remote::{Node, RemoteImage, RemoteLayer, View};

/// Programs and libraries larger than this are not read (bytes).
const MAX_FILE: u64 = 64 << 20;
/// The default search path of the dynamic linker (ld.so(8), and Debian's and Red Hat's
/// folders for 64-bit libraries).
const LIBRARIES: [&str; 9] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
];

/// The estimate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Startup {
    pub(super) command: String,
    /// The files that are certainly read.
    files: Vec<String>,
    /// Compressed bytes: index, zTOCs, the spans of the files, and layers that are not lazy.
    pub(super) bytes: u64,
    pub(super) percent: f64,
}

/// Spans needed, by layer.
type Needed = BTreeMap<usize, BTreeSet<u32>>;

/// The estimate; `None` if the image names no command that is in it.
pub(super) async fn estimate(
    image: &RemoteImage,
    found: &Found,
    layers: &[RemoteLayer],
) -> anyhow::Result<Option<Startup>> {
    let (_, config) = image.config().await?;
    let view = View::new(layers);
    let Some(command) = command(&config, &view) else {
        return Ok(None);
    };
    let mut needed = Needed::new();
    let files = loaded_files(&view, &command, &mut needed).await?;
    for (at, layer) in layers.iter().enumerate() {
        if let Some(prefetch) = found.index.prefetch_for(&layer.digest) {
            let bytes = image
                .client
                .blob_bytes(&image.reference, &prefetch.descriptor)
                .await?;
            if let Ok(artifact) = Prefetch::parse(&bytes) {
                let most = layer.reader.spans().len();
                needed.entry(at).or_default().extend(spans(&artifact, most));
            }
        }
    }
    let mut bytes = found.bytes.len() as u64;
    let mut total = 0_u64;
    for (at, layer) in layers.iter().enumerate() {
        let spans = layer.reader.spans();
        total = total.saturating_add(spans.compressed_size());
        bytes = bytes.saturating_add(if layer.indexed {
            let of_spans: u64 = needed
                .get(&at)
                .into_iter()
                .flatten()
                .filter_map(|id| spans.get(soci_ztoc::SpanId(*id)))
                .map(|span| span.compressed.end.saturating_sub(span.compressed.start))
                .sum();
            of_spans.saturating_add(layer.ztoc.len() as u64)
        } else {
            spans.compressed_size()
        });
    }
    #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
    let percent = 100.0 * bytes as f64 / total.max(1) as f64;
    Ok(Some(Startup {
        command,
        files,
        bytes,
        percent,
    }))
}

/// The spans that an artifact lists, of a layer that has `most`.
fn spans(artifact: &Prefetch, most: u32) -> impl Iterator<Item = u32> {
    let listed = artifact.prefetch_spans.iter();
    listed.flat_map(move |span| span.range().take_while(move |id| *id < most))
}

/// The program that the image starts, with the folder where it is found.
fn command(config: &serde_json::Value, view: &View<'_>) -> Option<String> {
    let of = |key: &str| {
        let list = config.get("config")?.get(key)?.as_array()?;
        list.first()?.as_str().map(ToOwned::to_owned)
    };
    let program = of("Entrypoint").or_else(|| of("Cmd"))?;
    if program.contains('/') {
        return Some(program);
    }
    let environment = config.get("config")?.get("Env")?.as_array()?;
    let path = environment
        .iter()
        .filter_map(|variable| variable.as_str()?.strip_prefix("PATH="))
        .next()
        .unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path.split(':')
        .map(|folder| format!("{folder}/{program}"))
        .find(|path| matches!(view.find(path.as_bytes(), true), Ok(Node::File(_))))
}

/// The program and everything that it makes the kernel and the dynamic linker read.
async fn loaded_files(
    view: &View<'_>,
    command: &str,
    needed: &mut Needed,
) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    let mut queue = VecDeque::from([command.to_owned()]);
    while let Some(path) = queue.pop_front() {
        let Ok(Node::File(at)) = view.find(path.as_bytes(), true) else {
            continue;
        };
        if !seen.insert((at.layer, at.ino)) {
            continue;
        }
        let layer = view.layer(at)?;
        let Some((offset, length)) = layer.tree.extent(at.ino) else {
            continue;
        };
        let end = offset.saturating_add(length);
        let spans = layer.reader.spans().covering(offset..end);
        needed.entry(at.layer).or_default().extend(spans);
        files.push(path);
        if length > MAX_FILE {
            continue;
        }
        let content = layer.reader.bytes(offset..end).await?;
        if let Some(interpreter) = script_interpreter(&content) {
            queue.push_back(interpreter);
            continue;
        }
        let links = elf::links(&content);
        queue.extend(links.interpreter);
        for library in links.libraries {
            let folders = links.folders.iter().map(String::as_str).chain(LIBRARIES);
            let found = folders
                .map(|folder| format!("{folder}/{library}"))
                .find(|path| matches!(view.find(path.as_bytes(), true), Ok(Node::File(_))));
            queue.extend(found);
        }
    }
    Ok(files)
}

/// The program in the first line of a script.
fn script_interpreter(content: &[u8]) -> Option<String> {
    let line = content
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let line = std::str::from_utf8(line).ok()?;
    line.split_whitespace().next().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_spans_are_looked_at_than_the_layer_has() {
        let listed = r#"{"version":"1.0","prefetch_spans":[{"start_span":1,"end_span":4294967295},
            {"start_span":7,"end_span":4294967295}]}"#;
        let artifact = Prefetch::parse(listed.as_bytes()).unwrap();
        // More than can be counted in the time of a test follow.
        let first: Vec<u32> = spans(&artifact, 3).take(10).collect();
        assert_eq!(first, [1, 2]);
    }

    #[test]
    fn a_script_names_its_interpreter() {
        assert_eq!(
            script_interpreter(b"#! /bin/sh -e\nx").as_deref(),
            Some("/bin/sh")
        );
        assert_eq!(script_interpreter(b"\x7fELF"), None);
        assert_eq!(script_interpreter(b"#!"), None);
    }
}
