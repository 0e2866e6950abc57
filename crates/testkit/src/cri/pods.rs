//! Pods and their containers through CRI.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Cri;
use super::api::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, IdMapping, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, RemoveContainerRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest, UserNamespace,
};
use super::images::spec;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct Pod {
    id: String,
    namespaces: NamespaceOption,
    config: PodSandboxConfig,
}

/// A container of a pod.
#[derive(Debug, Clone)]
pub struct PodContainer {
    id: String,
    log: PathBuf,
}

/// What a command that was executed in a container did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Its exit status.
    pub status: i32,
    /// Its output.
    pub stdout: String,
    /// Its errors.
    pub stderr: String,
}

impl PodContainer {
    /// The runtime's id, which is also the name of the container's snapshot.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the container wrote so far, from its log file: each line there is
    /// `time stream tag text`.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        let text = std::fs::read_to_string(&self.log)
            .with_context(|| format!("read {}", self.log.display()))?;
        let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        Ok(lines.map(|line| format!("{line}\n")).collect())
    }
}

impl Cri {
    /// Runs a pod on the host's network; its logs go below `logs`.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn run_pod(&self, logs: &Path) -> Result<Pod> {
        self.run_pod_in(logs, on_the_hosts_network())
    }

    /// Runs a pod in a user namespace, for users and groups that are mapped alike, and in a network
    /// namespace without any network, as such a pod cannot have the host's.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn run_pod_in_user_namespace(&self, logs: &Path, host_id: u32, length: u32) -> Result<Pod> {
        let map = vec![IdMapping {
            host_id,
            container_id: 0,
            length,
        }];
        let namespaces = NamespaceOption {
            network: NamespaceMode::Pod.into(),
            userns_options: Some(UserNamespace {
                mode: NamespaceMode::Pod.into(),
                uids: map.clone(),
                gids: map,
            }),
            ..on_the_hosts_network()
        };
        self.run_pod_in(logs, namespaces)
    }

    fn run_pod_in(&self, logs: &Path, namespaces: NamespaceOption) -> Result<Pod> {
        let name = format!("tk-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let log_directory = logs.join(&name);
        std::fs::create_dir_all(&log_directory)
            .with_context(|| format!("make {}", log_directory.display()))?;
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                uid: format!("{name}-{}", std::process::id()),
                name,
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            log_directory: log_directory.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces.clone()),
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            ..RunPodSandboxRequest::default()
        };
        let id = self
            .call("RunPodSandbox", async {
                self.pods.clone().run_pod_sandbox(request).await
            })?
            .pod_sandbox_id;
        Ok(Pod {
            id,
            namespaces,
            config,
        })
    }

    /// Stops a pod with its containers and removes it.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let pod_sandbox_id = pod.id.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id };
        self.call("StopPodSandbox", async {
            self.pods.clone().stop_pod_sandbox(request).await
        })?;
        let pod_sandbox_id = pod.id.clone();
        let request = RemovePodSandboxRequest { pod_sandbox_id };
        self.call("RemovePodSandbox", async {
            self.pods.clone().remove_pod_sandbox(request).await
        })
        .map(drop)
    }

    /// Makes and starts a container in a pod.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn start_container(
        &self,
        pod: &Pod,
        image: &str,
        command: &[&str],
    ) -> Result<PodContainer> {
        let name = format!("c{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let log_path = format!("{name}.log");
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name, attempt: 0 }),
            image: Some(spec(image)),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: log_path.clone(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(pod.namespaces.clone()),
                    ..LinuxContainerSecurityContext::default()
                }),
            }),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let id = self
            .call("CreateContainer", async {
                self.pods.clone().create_container(request).await
            })?
            .container_id;
        let container_id = id.clone();
        let request = StartContainerRequest { container_id };
        self.call("StartContainer", async {
            self.pods.clone().start_container(request).await
        })?;
        let log = Path::new(&pod.config.log_directory).join(log_path);
        Ok(PodContainer { id, log })
    }

    /// Runs a command in a container and waits for its end, at most a minute.
    ///
    /// # Errors
    /// When the runtime refuses; a command that fails is not an error.
    pub fn exec(&self, container: &PodContainer, command: &[&str]) -> Result<Executed> {
        let request = ExecSyncRequest {
            container_id: container.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 60,
        };
        let done = self.call("ExecSync", async {
            self.pods.clone().exec_sync(request).await
        })?;
        Ok(Executed {
            status: done.exit_code,
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        })
    }

    /// How a container does.
    ///
    /// # Errors
    /// When the runtime does not know it.
    pub fn container(&self, container: &PodContainer) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: container.id.clone(),
            verbose: false,
        };
        self.call("ContainerStatus", async {
            self.pods.clone().container_status(request).await
        })?
        .status
        .context("CRI ContainerStatus says nothing")
    }

    /// Waits for the end of a container's command; returns its exit code.
    ///
    /// # Errors
    /// When it still runs after `patience`.
    pub fn wait_container(&self, container: &PodContainer, patience: Duration) -> Result<i32> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.container(container)?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status.exit_code);
            }
            ensure!(
                Instant::now() < deadline,
                "the container still runs after {patience:?}: {status:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills a container.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn stop_container(&self, container: &PodContainer) -> Result<()> {
        let request = StopContainerRequest {
            container_id: container.id.clone(),
            timeout: 0,
        };
        self.call("StopContainer", async {
            self.pods.clone().stop_container(request).await
        })
        .map(drop)
    }

    /// Removes a container that has ended.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn remove_container(&self, container: &PodContainer) -> Result<()> {
        let request = RemoveContainerRequest {
            container_id: container.id.clone(),
        };
        self.call("RemoveContainer", async {
            self.pods.clone().remove_container(request).await
        })
        .map(drop)
    }
}

fn on_the_hosts_network() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        userns_options: None,
    }
}
