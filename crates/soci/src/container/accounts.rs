//! The user that an image names, by its own `/etc/passwd` and `/etc/group`.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// Bytes of such a file that are read.
const MOST: u64 = 1 << 20;

/// Who a process runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Finds `user[:group]`, names or numbers, in the file system below `root`.
pub(super) fn find(root: &Path, text: &str) -> anyhow::Result<User> {
    if text.is_empty() {
        return Ok(User::default());
    }
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let passwd = read(root, "etc/passwd");
    let (uid, mut gid) = match (line_of(&passwd, user), user.parse()) {
        (Some(account), _) => (number(&account, 2)?, number(&account, 3)?),
        (None, Ok(uid)) => (uid, by_number(&passwd, uid).unwrap_or(0)),
        (None, Err(_)) => bail!("the image runs as {user:?}, which its /etc/passwd does not have"),
    };
    if let Some(group) = group {
        let groups = read(root, "etc/group");
        gid = match (line_of(&groups, group), group.parse()) {
            (Some(line), _) => number(&line, 2)?,
            (None, Ok(gid)) => gid,
            (None, Err(_)) => {
                bail!("the image runs as group {group:?}, which its /etc/group does not have")
            }
        };
    }
    Ok(User { uid, gid })
}

/// The fields of the line that begins with a name.
fn line_of(text: &str, name: &str) -> Option<Vec<String>> {
    let fields = text
        .lines()
        .map(|line| line.split(':').map(str::to_owned).collect());
    let mut fields = fields.filter(|fields: &Vec<String>| fields.len() > 2);
    fields.find(|fields| fields.first().is_some_and(|first| first == name))
}

/// The group of the user with a number.
fn by_number(passwd: &str, uid: u32) -> Option<u32> {
    let mut lines = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let line = lines.find(|fields| fields.get(2).is_some_and(|field| field.parse() == Ok(uid)))?;
    line.get(3)?.parse().ok()
}

fn number(fields: &[String], at: usize) -> anyhow::Result<u32> {
    let field = fields
        .get(at)
        .context("a line of /etc/passwd or /etc/group is too short")?;
    field
        .parse()
        .with_context(|| format!("{field:?} in /etc/passwd or /etc/group is not a number"))
}

/// Reads a file within the image: its links do not lead out of it.
fn read(root: &Path, path: &str) -> String {
    let open = || -> std::io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let folder = rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let file = rustix::fs::openat2(folder, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        Ok(file.into())
    };
    let mut text = Vec::new();
    if let Ok(file) = open() {
        // What cannot be read has no accounts.
        let _ = file.take(MOST).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_number_within_the_image() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(etc.join("real"), "root:x:0:0::/:\nweb:x:33:34::/:\nbad\n").unwrap();
        // The link stays in the image.
        std::os::unix::fs::symlink("/etc/real", etc.join("passwd")).unwrap();
        std::fs::write(etc.join("group"), "root:x:0:\nstaff:x:50:\n").unwrap();
        for (text, uid, gid) in [
            ("", 0, 0),
            ("web", 33, 34),
            ("33", 33, 34),
            ("7", 7, 0),
            ("web:staff", 33, 50),
            ("7:8", 7, 8),
        ] {
            assert_eq!(
                find(root.path(), text).unwrap(),
                User { uid, gid },
                "{text}"
            );
        }
        assert!(find(root.path(), "nosuch").is_err());
        assert!(find(root.path(), "web:nosuch").is_err());
        assert_eq!(
            find(Path::new("/nonexistent"), "5").unwrap(),
            User { uid: 5, gid: 0 }
        );
    }

    #[test]
    fn a_pipe_in_place_of_the_accounts_is_not_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        for name in ["passwd", "group"] {
            let (path, mode) = (etc.join(name), Mode::RUSR | Mode::WUSR);
            rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
        let (sender, found) = std::sync::mpsc::channel();
        let path = root.path().to_owned();
        std::thread::spawn(move || sender.send(find(&path, "5:6").unwrap()));
        // What waits for a writer does so for ever.
        let found = found.recv_timeout(std::time::Duration::from_secs(60));
        assert_eq!(found.unwrap(), User { uid: 5, gid: 6 });
    }
}
