//! `soci ls`: the files of an image at a registry.

use clap::Args;
use serde::Serialize;

use crate::output;
use crate::remote::{ImagePath, Node, RemoteArgs, View, open_image};
use crate::remote::{kind_word, mode_text};
use crate::style::Style;

/// List files of an image at a registry, without pulling the image
///
/// Layers with a zTOC are not read at all; those without one are downloaded into a temporary file.
/// Characters in names that control a terminal are printed as escapes, to a pipe as well: --json has
/// the exact names.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci ls registry.example/app:1-soci
  soci ls --long registry.example/app:1-soci:/usr/bin")]
pub(crate) struct Ls {
    /// The image, and a path in it (default: its root)
    #[arg(value_name = "REF[:PATH]")]
    image: ImagePath,

    /// Mode, owner, size, time and link target too
    #[arg(short, long)]
    long: bool,

    /// What is below as well
    #[arg(short = 'R', long)]
    recursive: bool,

    /// Print a JSON array
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

/// A file, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct File {
    path: String,
    r#type: &'static str,
    /// Permissions, in octal.
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// The layer that the file is from.
    layer: soci_oci::Digest,
}

impl Ls {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let layers = open_image(&self.remote, &self.image.reference).await?;
        let view = View::new(&layers);
        let path = self.image.path.as_deref().unwrap_or("/");
        let node = view.find(path.as_bytes(), path.ends_with('/'))?;
        if self.json {
            let mut files = Vec::new();
            self.each_file(&view, path, &node, |file| files.push(file))?;
            return output::json(&files);
        }
        let style = Style::of_stdout();
        self.each_file(&view, path, &node, |file| {
            output::line(self.line(&file, path, style));
        })
    }

    /// Calls `found` with the file at `path`, or with what the directory there contains.
    fn each_file(
        &self,
        view: &View<'_>,
        path: &str,
        node: &Node,
        mut found: impl FnMut(File),
    ) -> anyhow::Result<()> {
        let directory = match node {
            Node::Directory(directory) => directory,
            Node::File(_) => {
                file(view, path.as_bytes(), node)?
                    .into_iter()
                    .for_each(found);
                return Ok(());
            }
        };
        let mut path = path.trim_end_matches('/').as_bytes().to_vec();
        // The directories down to the current one, for a layer may nest them deeper than the stack is:
        // the length of the path, and what is left.
        let mut open = vec![(path.len(), view.children(directory).into_iter())];
        while let Some((length, children)) = open.last_mut() {
            path.truncate(*length);
            let Some((name, child)) = children.next() else {
                open.pop();
                continue;
            };
            path.push(b'/');
            path.extend_from_slice(&name);
            if let Some(listed) = file(view, &path, &child)? {
                found(listed);
            }
            if let (true, Node::Directory(directory)) = (self.recursive, &child) {
                open.push((path.len(), view.children(directory).into_iter()));
            }
        }
        Ok(())
    }

    fn line(&self, file: &File, base: &str, style: Style) -> String {
        // Names relative to the requested path, as ls has them.
        let name = file
            .path
            .strip_prefix(base.trim_end_matches('/'))
            .map(|rest| rest.trim_start_matches('/'))
            .filter(|rest| !rest.is_empty())
            .unwrap_or(&file.path);
        if !self.long {
            return match file.r#type {
                "dir" => format!("{name}/"),
                _ => name.to_owned(),
            };
        }
        let target = file
            .target
            .as_ref()
            .map_or_else(String::new, |target| format!(" -> {target}"));
        let mode = u32::from_str_radix(&file.mode, 8).unwrap_or_default();
        format!(
            "{} {:>5} {:>5} {:>12} {} {name}{target}",
            mode_text(mode),
            file.uid,
            file.gid,
            style.size(file.size),
            file.mtime
        )
    }
}

fn file(view: &View<'_>, path: &[u8], node: &Node) -> anyhow::Result<Option<File>> {
    let Some((at, attr)) = node.at().and_then(|at| Some((at, view.attr(at)?))) else {
        return Ok(None);
    };
    let mtime = jiff::Timestamp::new(attr.mtime, i32::try_from(attr.mtime_nanos).unwrap_or(0));
    Ok(Some(File {
        path: String::from_utf8_lossy(path).into_owned(),
        r#type: kind_word(attr.mode),
        mode: format!("{:o}", attr.mode),
        uid: attr.uid,
        gid: attr.gid,
        size: attr.size,
        mtime: mtime.map_or_else(|_| String::new(), |at| at.to_string()),
        target: view
            .link_target(at)
            .map(|target| String::from_utf8_lossy(target).into_owned()),
        layer: view.layer(at)?.digest,
    }))
}
