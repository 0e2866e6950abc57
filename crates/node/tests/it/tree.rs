//! Installing into a tree whose systemd and containerd do nothing but answer.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use soci_node::{Command, HandedBack, Host, Installed, Layout, NodeError, Payload, ServiceAccount};
use tempfile::TempDir;

const ORIGINAL: &str = "# mine\nversion = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  \
                        snapshotter = \"native\" # why\n";

/// A node: programs that are found, a daemon's unit that starts, a containerd that does not run and whose
/// `config dump` is its file.
struct Node {
    root: TempDir,
    layout: Layout,
    commands: RefCell<Vec<String>>,
    active: Cell<bool>,
    /// A command that fails, by its beginning.
    broken: Cell<Option<&'static str>>,
}

impl Host for Node {
    fn run(&self, command: &Command) -> Result<String, NodeError> {
        let text = command.words().collect::<Vec<_>>().join(" ");
        self.commands.borrow_mut().push(text.clone());
        let fails = |why: &str| {
            Err(NodeError::Failed {
                command: text.clone(),
                outcome: "exit status: 1".to_owned(),
                output: why.to_owned(),
            })
        };
        if self
            .broken
            .get()
            .is_some_and(|start| text.starts_with(start))
        {
            return fails("broken");
        }
        if text == "containerd --version" {
            return Ok("containerd example 1.7.1 abc".to_owned());
        }
        if text.ends_with("config dump") {
            return Ok(self.read("/etc/containerd/config.toml").unwrap_or_default());
        }
        match text.as_str() {
            "systemctl is-active --quiet soci-snapshotter.service" if !self.active.get() => {
                return fails("inactive");
            }
            "systemctl is-active --quiet containerd.service" => return fails("inactive"),
            _ => {}
        }
        if text.starts_with("systemctl start") {
            self.active.set(true);
        } else if text.starts_with("systemctl disable --now") {
            self.active.set(false);
        }
        Ok(String::new())
    }

    fn note(&self, _line: &str) {}
}

impl Node {
    fn new() -> Self {
        let root = TempDir::new().unwrap();
        let node = Self {
            layout: Layout {
                root: root.path().to_owned(),
                ..Layout::default()
            },
            root,
            commands: RefCell::default(),
            active: Cell::new(false),
            broken: Cell::new(None),
        };
        node.write("/etc/containerd/config.toml", ORIGINAL);
        node.write("/image/soci", "program 1");
        node.write("/image/soci-snapshotter-grpc", "daemon 1");
        node
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.path(path)).ok()
    }

    fn payload(&self, config: Option<&Path>) -> Payload {
        Payload::read(&self.path("/image"), config).unwrap()
    }

    fn install(&self) -> Result<Installed, NodeError> {
        soci_node::install(self, &self.layout, &self.payload(None), false)
    }

    fn uninstall(&self) -> HandedBack {
        soci_node::uninstall(self, &self.layout, false).unwrap()
    }

    fn ran(&self) -> Vec<String> {
        self.commands.take()
    }

    /// Paths and contents of all files but the image's.
    fn files(&self) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        let mut folders = vec![self.root.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.starts_with(self.path("/image")) {
                    found.push((path.clone(), std::fs::read_to_string(path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }
}

#[test]
fn a_second_installation_changes_nothing_and_an_upgrade_hands_over() {
    let node = Node::new();
    let all = Installed {
        daemon: true,
        containerd: true,
    };
    assert_eq!(node.install().unwrap(), all);
    assert!(
        node.ran().contains(
            &"systemctl start soci-snapshotter.socket soci-snapshotter.service".to_owned()
        )
    );
    let config = node.read("/etc/containerd/config.toml").unwrap();
    assert!(config.contains("snapshotter = \"soci\" # why"), "{config}");

    let files = node.files();
    assert_eq!(node.install().unwrap(), Installed::default());
    assert_eq!(node.files(), files);
    let restarts = |commands: Vec<String>| {
        let words = ["start ", "restart", "reload"];
        let restarts = |command: &String| words.iter().any(|word| command.contains(word));
        commands.into_iter().filter(restarts).collect::<Vec<_>>()
    };
    assert_eq!(restarts(node.ran()), Vec::<String>::new());

    node.write("/image/soci-snapshotter-grpc", "daemon 2");
    let upgraded = node.install().unwrap();
    assert_eq!(
        upgraded,
        Installed {
            daemon: true,
            containerd: false
        }
    );
    assert_eq!(
        restarts(node.ran()),
        ["systemctl reload soci-snapshotter.service"]
    );
    assert_eq!(
        node.read("/usr/local/bin/soci-snapshotter-grpc").unwrap(),
        "daemon 2"
    );
}

#[test]
fn uninstalling_restores_every_byte_and_leaves_nothing() {
    let node = Node::new();
    // Of another installation.
    node.write("/usr/local/bin/soci", "an older program");
    let before = node.files();
    node.install().unwrap();
    node.write("/image/soci", "program 2");
    node.install().unwrap();
    assert_eq!(node.uninstall(), HandedBack::Removed);
    assert_eq!(node.files(), before);
    assert_eq!(node.uninstall(), HandedBack::NothingInstalled);
}

/// A service account's folder as the kubelet makes it: names that lead through a link, which it replaces.
fn account(node: &Node, version: &str) {
    let data = format!("/account/..{version}");
    node.write(&format!("{data}/token"), &format!("token {version}"));
    node.write(&format!("{data}/ca.crt"), "an authority");
    let link = |to: &str, name: &str| {
        let path = node.path(&format!("/account/{name}"));
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink(to, path).unwrap();
    };
    link(&format!("..{version}"), "..data");
    link("..data/token", "token");
    link("..data/ca.crt", "ca.crt");
}

#[test]
fn the_token_of_a_service_account_is_copied_for_root_only_and_again_when_it_was_renewed() {
    use std::os::unix::fs::PermissionsExt as _;
    let node = Node::new();
    let before = node.files();
    account(&node, "1");
    let opened = || ServiceAccount::open(&node.path("/account"), "https://192.0.2.1:443").unwrap();
    // Opened once, as by an installer that stays.
    let payload = node.payload(None).with_account(Some(opened()));
    let install = || soci_node::install(&node, &node.layout, &payload, false).unwrap();
    install();
    let folder = "/etc/soci-snapshotter-grpc";
    let file = |name: &str| node.read(&format!("{folder}/{name}")).unwrap();
    assert_eq!(
        (file("token"), file("ca.crt")),
        ("token 1".to_owned(), "an authority".to_owned())
    );
    let kubeconfig = file("kubeconfig");
    for line in [
        "server: \"https://192.0.2.1:443\"",
        "certificate-authority: \"/etc/soci-snapshotter-grpc/ca.crt\"",
        "tokenFile: \"/etc/soci-snapshotter-grpc/token\"",
    ] {
        assert!(kubeconfig.contains(line), "{kubeconfig}");
    }
    assert!(
        !kubeconfig.contains("token 1"),
        "the token has a file of its own"
    );
    for name in ["token", "ca.crt", "kubeconfig"] {
        let path = node.path(&format!("{folder}/{name}"));
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let shown = format!("{payload:?}");
    assert!(!shown.contains("token 1"), "{shown}");

    account(&node, "2");
    node.ran();
    assert_eq!(install(), Installed::default(), "no restart");
    assert_eq!(file("token"), "token 2");
    let restarts = ["start ", "restart", "reload "];
    let ran = node.ran();
    assert!(
        !ran.iter()
            .any(|ran| restarts.iter().any(|word| ran.contains(word))),
        "{ran:?}"
    );

    let missing = ServiceAccount::open(&node.path("/none"), "").unwrap_err();
    assert!(missing.to_string().starts_with("cannot open "), "{missing}");
    soci_dirtree::remove_path(&node.path("/account")).unwrap();
    assert_eq!(node.uninstall(), HandedBack::Removed);
    assert_eq!(node.files(), before, "nothing of it is left on the node");
}

#[test]
fn configuration_that_others_changed_since_keeps_their_changes() {
    let node = Node::new();
    node.install().unwrap();
    let config = node.read("/etc/containerd/config.toml").unwrap();
    node.write(
        "/etc/containerd/config.toml",
        &format!("{config}[debug]\n  level = \"warn\"\n"),
    );
    // The installer runs again in between: what it finds is what others made of it.
    node.install().unwrap();
    assert_eq!(node.uninstall(), HandedBack::Removed);
    let config = node.read("/etc/containerd/config.toml").unwrap();
    assert_eq!(config, format!("{ORIGINAL}[debug]\n  level = \"warn\"\n"));
}

#[test]
fn configuration_that_was_rewritten_is_changed_again() {
    let node = Node::new();
    node.install().unwrap();
    node.write("/etc/containerd/config.toml", "version = 2\n# rewritten\n");
    let again = node.install().unwrap();
    assert!(again.containerd && !again.daemon);
    assert_eq!(node.uninstall(), HandedBack::Removed);
    let config = node.read("/etc/containerd/config.toml").unwrap();
    assert!(
        config.contains("# rewritten") && !config.contains("soci"),
        "{config}"
    );
}

#[test]
fn a_first_installation_that_fails_at_any_step_leaves_the_node_as_it_was() {
    for step in [
        "/usr/local/bin/soci-snapshotter-grpc --version",
        "systemctl daemon-reload",
        "systemctl enable",
        "systemctl start",
        "containerd --version",
        "containerd --config",
    ] {
        let node = Node::new();
        let before = node.files();
        node.broken.set(Some(step));
        let error = node.install().unwrap_err();
        assert!(
            matches!(error, NodeError::RolledBack { .. }),
            "{step}: {error:?}"
        );
        assert_eq!(node.files(), before, "{step}");
        assert!(!node.active.get(), "{step}: no daemon is left");
        node.broken.set(None);
        node.install().unwrap();
    }
}

#[test]
fn an_upgrade_that_fails_leaves_the_version_before_and_the_way_back() {
    let node = Node::new();
    let original = node.files();
    node.install().unwrap();
    let installed = node.files();
    node.write("/image/soci", "program 2");
    node.broken
        .set(Some("systemctl reload soci-snapshotter.service"));
    assert!(node.install().is_err());
    assert_eq!(node.files(), installed);
    assert!(node.active.get());
    node.broken.set(None);
    assert_eq!(node.uninstall(), HandedBack::Removed);
    assert_eq!(node.files(), original);
}

#[test]
fn configuration_that_another_file_overrides_is_refused_with_the_file() {
    let node = Node::new();
    // The daemon's configuration is given, and may be changed.
    node.write("/daemon.toml", "# given\n");
    let given = node.path("/daemon.toml");
    let before = node.files();
    // containerd reads something else: its dump is what this node's file says, which does not select soci.
    let mut layout = node.layout.clone();
    layout.containerd_config = "/etc/containerd/other.toml".into();
    let payload = node.payload(Some(&given));
    let error = soci_node::install(&node, &layout, &payload, false).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        source.contains("it still uses the snapshotter native"),
        "{source}"
    );
    assert_eq!(node.files(), before);
}
