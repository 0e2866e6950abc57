//! Certificates and handshakes as registries in the field have them, made and served by OpenSSL.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use soci_registry::{Client, Deadline, HostHeaders, NoCredentials, Origin, TlsSettings};
use soci_testkit::LocalPort;

use crate::fake::config;

const SIGNED: &[&str] = &["-days", "30", "-subj", "/CN=localhost"];
const NAMED: &[&str] = &["-addext", "subjectAltName=DNS:localhost"];
const NO_CA: &[&str] = &["-addext", "basicConstraints=critical,CA:FALSE"];

/// Certificates in a folder.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // What the servers answer with.
        std::fs::create_dir_all(folder.path().join("v2/a/b/manifests")).unwrap();
        std::fs::write(folder.path().join("v2/a/b/manifests/t"), "{}").unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &[&str]) {
        let mut command = Command::new("openssl");
        let output = command
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
    }

    /// Makes `NAME.crt` and `NAME.key`, signed with its own key.
    fn own(&self, name: &str, key: &[&str], more: &[&[&str]]) {
        let (cert, keyout) = (format!("{name}.crt"), format!("{name}.key"));
        let mut all = vec!["req", "-x509", "-nodes", "-newkey"];
        all.extend_from_slice(key);
        all.extend_from_slice(SIGNED);
        all.extend(more.iter().copied().flatten());
        all.extend_from_slice(&["-keyout", &keyout, "-out", &cert]);
        self.openssl(&all);
    }

    /// Makes `NAME.crt` and `NAME.key`, signed with the key of `ca`.
    fn leaf(&self, name: &str, extensions: &str) {
        let [cert, key, request, file] =
            ["crt", "key", "csr", "ext"].map(|kind| format!("{name}.{kind}"));
        std::fs::write(self.path(&file), extensions).unwrap();
        self.openssl(&[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
            &key,
            "-out",
            &request,
        ]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "30",
            "-extfile",
            &file,
            "-out",
            &cert,
        ]);
    }

    /// Asks a server with the certificate `name` for a manifest; `trust` is trusted beside the system.
    async fn ask(&self, name: &str, trust: &str, options: &[&str]) -> Result<(), String> {
        let server = Server::start(self.0.path(), name, options);
        server.listens().await;
        let mut config = config();
        config.retries.max_retries = 0;
        config.tls = Arc::new(TlsSettings {
            extra_ca: vec![std::fs::read(self.path(trust)).unwrap()],
            ..TlsSettings::default()
        });
        let url = format!("https://localhost:{}", server.port.number());
        let origin = Origin {
            url: url.parse().unwrap(),
            headers: HostHeaders::default(),
        };
        config.origins.insert("registry.test".to_owned(), origin);
        let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
        let reference = "registry.test/a/b:t".parse().unwrap();
        let got = client.manifest(&reference, "t").await;
        got.map(|_| ()).map_err(|error| {
            assert!(!error.is_transient(), "{error}");
            error.to_string()
        })
    }
}

/// A web server that OpenSSL has.
struct Server {
    process: Child,
    port: LocalPort,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(folder: &Path, name: &str, options: &[&str]) -> Self {
        let port = LocalPort::claim().unwrap();
        let process = Command::new("openssl")
            .args(["s_server", "-quiet", "-WWW", "-accept"])
            .arg(port.address().to_string())
            .args([
                "-cert",
                &format!("{name}.crt"),
                "-key",
                &format!("{name}.key"),
            ])
            .args(options)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, port }
    }

    async fn listens(&self) {
        let deadline = Deadline::after(Duration::from_secs(60));
        while tokio::net::TcpStream::connect(self.port.address())
            .await
            .is_err()
        {
            assert!(deadline.remaining() > Duration::ZERO);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_certificate_that_is_itself_trusted_is_accepted_whatever_its_form() {
    let made = Certificates::new();
    let usage: &[&str] = &["-addext", "keyUsage=keyCertSign,digitalSignature"];
    made.own("catrue", &["rsa:2048"], &[NAMED]);
    made.own("keyusage", &["rsa:2048"], &[NAMED, usage]);
    made.own("cafalse", &["rsa:2048"], &[NAMED, NO_CA]);
    made.own("ed25519", &["ed25519"], &[NAMED, NO_CA]);
    let p521 = &["ec", "-pkeyopt", "ec_paramgen_curve:P-521"];
    made.own("p521", p521, &[NAMED, NO_CA]);
    made.own("p521ca", p521, &[NAMED]);
    for name in ["catrue", "keyusage", "cafalse", "ed25519", "p521", "p521ca"] {
        let trust = format!("{name}.crt");
        for options in [&[][..], &["-tls1_2"]] {
            let asked = made.ask(name, &trust, options).await;
            assert_eq!(asked, Ok(()), "{name} {options:?}");
        }
    }
    made.own("ca", &["rsa:2048"], &[&["-subj", "/CN=authority"]]);
    made.leaf("leaf", "subjectAltName=DNS:localhost\n");
    assert_eq!(made.ask("leaf", "ca.crt", &[]).await, Ok(()));
    // One that is signed by a trusted one may say that it is an authority, as for Go; all else of it counts.
    for (name, critical) in [("leafca", ""), ("leafcritical", "critical,")] {
        let marked = format!(
            "subjectAltName=DNS:localhost\nbasicConstraints={critical}CA:TRUE,pathlen:0\nkeyUsage=keyCertSign,digitalSignature\n"
        );
        made.leaf(name, &marked);
        for options in [&[][..], &["-tls1_2"]] {
            assert_eq!(made.ask(name, "ca.crt", options).await, Ok(()), "{name}");
        }
    }
    for (extensions, expected) in [
        (
            "subjectAltName=DNS:other.test\n",
            "is for other.test, not for localhost",
        ),
        (
            "subjectAltName=DNS:localhost\nextendedKeyUsage=clientAuth\n",
            "serverAuth",
        ),
    ] {
        made.leaf("bad", &format!("{extensions}basicConstraints=CA:TRUE\n"));
        let error = made.ask("bad", "ca.crt", &[]).await.unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    // A certificate that is not trusted is not helped by one that is.
    let error = made.ask("catrue", "cafalse.crt", &[]).await.unwrap_err();
    assert!(error.contains("CA:TRUE"), "{error}");
}

#[tokio::test]
async fn what_is_refused_on_purpose_says_so_by_name() {
    let made = Certificates::new();
    made.own("ca", &["rsa:2048"], &[&["-subj", "/CN=authority"]]);
    made.own("small", &["rsa:1024"], &[NAMED, NO_CA]);
    made.own("cnonly", &["rsa:2048"], &[]);
    made.own(
        "other",
        &["rsa:2048"],
        &[&["-addext", "subjectAltName=DNS:other.test"]],
    );
    made.leaf("leaf", "subjectAltName=DNS:localhost\n");
    made.leaf(
        "clients",
        "subjectAltName=DNS:localhost\nextendedKeyUsage=clientAuth\n",
    );
    made.leaf(
        "authority",
        "subjectAltName=DNS:localhost\nbasicConstraints=CA:TRUE\n",
    );
    let small: &[&str] = &["-cipher", "DEFAULT@SECLEVEL=0"];
    for (name, trust, options, expected) in [
        (
            "small",
            "small.crt",
            small,
            &["1024 bits", "on purpose"][..],
        ),
        ("cnonly", "cnonly.crt", &[], &["common name", "on purpose"]),
        (
            "other",
            "other.crt",
            &[],
            &["other.test", "not for localhost"],
        ),
        ("clients", "ca.crt", &[], &["serverAuth"]),
        ("authority", "other.crt", &[], &["CA:TRUE", "--tlscacert"]),
        ("leaf", "other.crt", &[], &["trusts no authority", "`ca`"]),
        (
            "leaf",
            "ca.crt",
            &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA"],
            &["CBC", "on purpose"],
        ),
    ] {
        let error = made.ask(name, trust, options).await.unwrap_err();
        for words in expected {
            assert!(error.contains(words), "{name} {options:?}: {error}");
        }
        assert!(
            !error.contains("OtherError") && !error.contains("host is right"),
            "{error}"
        );
    }
    for options in [
        ["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"],
        ["-tls1_3", "-groups", "P-384"],
        ["-tls1_3", "-groups", "P-521"],
        ["-tls1_2", "-groups", "P-521"],
    ] {
        let asked = made.ask("leaf", "ca.crt", &options).await;
        assert_eq!(asked, Ok(()), "{options:?}");
    }
}
