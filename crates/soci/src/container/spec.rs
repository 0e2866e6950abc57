//! The runtime specification of a container (OCI runtime spec, `config.json`).

use std::path::Path;

use anyhow::bail;
use serde::Deserialize;
use serde_json::{Value, json};

use super::accounts;

/// Where programs are looked for if the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a root user in a container may do, as container engines have it by default.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What is run in place of what the image says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Process {
    /// Replaces the image's `Cmd`.
    pub(crate) command: Vec<String>,
    /// Replaces the image's `Entrypoint`; empty: none.
    pub(crate) entrypoint: Option<String>,
    /// More environment, `NAME=VALUE`.
    pub(crate) environment: Vec<String>,
}

/// The part `config` of an image's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
}

/// The specification of a container that runs `process` on the file system at `root`, in the
/// network of this machine.
pub(crate) fn runtime_spec(image: &Value, root: &Path, process: &Process) -> anyhow::Result<Value> {
    let config = image.get("config").cloned().unwrap_or_default();
    let config: Option<Config> = serde_json::from_value(config)?;
    let config = config.unwrap_or_default();
    let mut arguments = match &process.entrypoint {
        Some(entrypoint) if entrypoint.is_empty() => Vec::new(),
        Some(entrypoint) => vec![entrypoint.clone()],
        None => config.entrypoint.unwrap_or_default(),
    };
    match process.command.is_empty() {
        true if process.entrypoint.is_none() => arguments.extend(config.cmd.unwrap_or_default()),
        true => {}
        false => arguments.extend(process.command.iter().cloned()),
    }
    if arguments.is_empty() {
        bail!("the image defines no command: give one after --");
    }
    let mut environment = config.env.unwrap_or_default();
    if environment
        .iter()
        .all(|variable| !variable.starts_with("PATH="))
    {
        environment.push(PATH.to_owned());
    }
    environment.extend(process.environment.iter().cloned());
    let user = accounts::find(root, &config.user.unwrap_or_default())?;
    let cwd = config.working_dir.filter(|cwd| cwd.starts_with('/'));
    let capabilities = match user.uid {
        0 => json!(CAPABILITIES),
        _ => json!([]),
    };
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": user.uid, "gid": user.gid },
            "args": arguments,
            "env": environment,
            "cwd": cwd.unwrap_or_else(|| "/".to_owned()),
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": capabilities,
                "permitted": capabilities,
            },
        },
        "root": { "path": root },
        "hostname": "soci-profile",
        "mounts": mounts(),
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/scsi",
                "/proc/timer_list", "/sys/firmware",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    }))
}

fn mounts() -> Vec<Value> {
    let quiet = ["nosuid", "noexec", "nodev"];
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": quiet }),
        json!({
            "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        }),
        json!({
            "destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        }),
        json!({
            "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777"],
        }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": quiet }),
        json!({
            "destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"],
        }),
    ];
    for file in ["/etc/resolv.conf", "/etc/hosts"] {
        if Path::new(file).exists() {
            let options = ["rbind", "ro"];
            mounts.push(
                json!({ "destination": file, "type": "bind", "source": file, "options": options }),
            );
        }
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_is_what_the_image_says_unless_the_command_line_does() {
        let image = json!({ "config": {
            "Entrypoint": ["/entry"], "Cmd": ["a"], "Env": ["PATH=/bin", "A=1"], "User": "5:6", "WorkingDir": "/w",
        }});
        let root = tempfile::tempdir().unwrap();
        let arguments = |command: &[&str], entrypoint: Option<&str>| {
            let process = Process {
                command: command.iter().map(|&text| text.to_owned()).collect(),
                entrypoint: entrypoint.map(str::to_owned),
                environment: vec!["A=2".to_owned()],
            };
            runtime_spec(&image, root.path(), &process).map(|spec| spec["process"]["args"].clone())
        };
        assert_eq!(arguments(&[], None).unwrap(), json!(["/entry", "a"]));
        assert_eq!(
            arguments(&["b", "c"], None).unwrap(),
            json!(["/entry", "b", "c"])
        );
        assert_eq!(arguments(&["b"], Some("")).unwrap(), json!(["b"]));
        assert_eq!(arguments(&["b"], Some("/e")).unwrap(), json!(["/e", "b"]));
        assert_eq!(arguments(&[], Some("/e")).unwrap(), json!(["/e"]));
        assert!(arguments(&[], Some("")).is_err());

        let spec = runtime_spec(&image, root.path(), &Process::default()).unwrap();
        let process = &spec["process"];
        assert_eq!(process["env"], json!(["PATH=/bin", "A=1"]));
        assert_eq!(
            (&process["cwd"], &process["user"]),
            (&json!("/w"), &json!({"uid": 5, "gid": 6}))
        );
        assert_eq!(process["capabilities"]["effective"], json!([]));

        // An image may leave everything out, or say null.
        for image in [
            json!({}),
            json!({"config": null}),
            json!({"config": {"Cmd": null}}),
        ] {
            let process = Process {
                command: vec!["x".to_owned()],
                ..Process::default()
            };
            let spec = runtime_spec(&image, root.path(), &process).unwrap();
            assert_eq!(spec["process"]["cwd"], "/");
            assert_eq!(spec["process"]["env"], json!([PATH]));
            assert!(runtime_spec(&image, root.path(), &Process::default()).is_err());
        }
    }

    /// As container engines have it by default. It is root of this machine that runs the image.
    #[test]
    fn the_kernels_files_are_hidden_or_read_only_and_namespaces_are_its_own() {
        let image = json!({ "config": { "Cmd": ["x"] } });
        let root = tempfile::tempdir().unwrap();
        let spec = runtime_spec(&image, root.path(), &Process::default()).unwrap();
        let has = |list: &str, wanted: &[&str]| {
            let list: Vec<_> = spec["linux"][list].as_array().unwrap().iter().collect();
            for path in wanted {
                assert!(list.contains(&&json!(path)), "{path}: {list:?}");
            }
        };
        let read_only = [
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
        ];
        has("readonlyPaths", &read_only);
        let masked = [
            "/proc/acpi",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/scsi",
            "/proc/timer_list",
            "/sys/firmware",
        ];
        has("maskedPaths", &masked);
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        for kind in ["pid", "ipc", "uts", "mount"] {
            assert!(namespaces.contains(&json!({ "type": kind })), "{kind}");
        }
        let bounding = &spec["process"]["capabilities"]["bounding"];
        for denied in [
            "CAP_SYS_ADMIN",
            "CAP_SYS_PTRACE",
            "CAP_SYS_MODULE",
            "CAP_BPF",
        ] {
            assert!(!bounding.as_array().unwrap().contains(&json!(denied)));
        }
        let sys = spec["mounts"].as_array().unwrap();
        let sys = sys.iter().find(|mount| mount["destination"] == "/sys");
        let options = sys.unwrap()["options"].as_array().unwrap();
        assert!(options.contains(&json!("ro")), "{options:?}");
    }
}
